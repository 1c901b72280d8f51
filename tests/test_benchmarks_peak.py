"""`peak`: rows of fresh processes, taken up where they ended, and the table that says where ours is above."""

from __future__ import annotations

import pytest

from benchmarks import __main__ as command
from benchmarks import memory
from benchmarks.cases import Case
from benchmarks.record import measured, read_rows, remark

CASES = [Case(cell, 30, 64, 50, 128) for cell in ("gru", "lstm", "rnn")]


def test_the_table_says_where_ours_is_above():
    rows = []
    values = ([10.0, 10.1], [5.0, 5.1]), ([10.0, 10.1], [12.0, 12.1]), ([10.0, 12.0], [11.0, 13.0])
    for case, (theirs, ours) in zip(CASES, values, strict=True):
        for provider, mib in (("nn", theirs), ("fusedrnn", ours)):
            rows.append(measured("peak", "peak", "MiB", mib, case, provider=provider, mode="train", threads=2))
    table = memory.markdown(rows)
    assert "**fusedrnn above nn at 1 of 3**" in table
    assert "| 30, 64, 50, 128 | gru | 2 | 10.1 (10.0-10.1) | 5.0 (5.0-5.1) | 0.50 |" in table
    assert "| 30, 64, 50, 128 | lstm | 2 | 10.1 (10.0-10.1) | 12.1 (12.0-12.1) | **1.20** |" in table
    assert "| rnn | 2 | 11.0 (10.5-11.5) | 12.0 (11.5-12.5) | 1.09 |" in table  # quartiles overlap


def test_failures_are_listed():
    rows = [remark("peak", "failed", "no such kernel", CASES[0], provider="fusedrnn")]
    assert "Failed: gru T30 B64 I50 H128 fp32, fusedrnn: no such kernel" in memory.markdown(rows)


def test_peaks_are_taken_up_where_they_ended(tmp_path, monkeypatch, capsys):
    asked = []

    def peak_bytes(providers, case):
        asked.append((providers[0].name, case.cell))
        return {
            providers[0].name: "out of memory" if case.cell == "rnn" else (4 if providers[0].name == "nn" else 2) << 20
        }

    monkeypatch.setattr(memory, "peak_bytes", peak_bytes)
    options = ["peak", "--shapes", "0", "--repeats", "2", "--out", str(tmp_path)]
    assert command.main([*options, "--cells", "gru"]) == 0
    assert asked == [("nn", "gru")] * 2 + [("fusedrnn", "gru")] * 2
    assert command.main([*options, "--cells", "gru,rnn"]) == 0
    assert asked[4:] == [("nn", "rnn")] * 2 + [("fusedrnn", "rnn")] * 2
    found = [
        (row.provider, row.unit, row.p50, row.n) for row in read_rows(tmp_path / "peak.csv") if row.metric == "peak"
    ]
    assert found == [("nn", "MiB", 4.0, 2), ("fusedrnn", "MiB", 2.0, 2)]
    out = capsys.readouterr().out
    assert "above nn at 0 of 1" in out
    assert "rnn T30 B64 I50 H128 fp32, nn: out of memory" in out
    assert (tmp_path / "peak.env.json").exists()


@pytest.mark.parametrize("wrong", [["--repeats", "0"], ["--provider", "nn"], ["--shapes", "7"]])
def test_wrong_arguments_write_nothing(tmp_path, capsys, wrong):
    assert command.main(["peak", *wrong, "--out", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
