"""`compare`: whom it times, and that it keeps to its budget."""

from __future__ import annotations

import time

import pytest
from pairs import needs_kernel

from benchmarks import __main__ as command
from benchmarks import compare
from benchmarks.cases import Case
from benchmarks.providers import NN, Provider

SMALL = Case("gru", 6, 3, 4, 5)


def test_compare_prints_a_table(capsys):
    shape = ["--cell", "lstm", "--input", "4", "--hidden", "5", "--batch", "2", "--steps", "6", "--no-peak"]
    assert command.main(["compare", *shape, "--budget", "0.5"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("nn", "fusedrnn", "reference", "floor"))


@needs_kernel
def test_compare_times_the_backends_asked_for(capsys):
    shape = [
        "--input",
        "4",
        "--hidden",
        "5",
        "--batch",
        "2",
        "--steps",
        "6",
        "--budget",
        "0.5",
        "--no-peak",
        "--ragged",
    ]
    assert command.main(["compare", *shape, "--provider", "fusedrnn-cpu", "--provider", "fusedrnn-aten"]) == 0
    out = capsys.readouterr().out
    names = [line.split()[0] for line in out.splitlines()[2:]]
    assert names == ["nn", "fusedrnn-cpu", "floor", "fusedrnn-aten:"]
    assert "refused by the gate: UnsupportedProblem" in out
    assert "no lengths" in out


def test_compare_leaves_out_what_does_not_fit_its_budget(monkeypatch):
    def forward(layer, x, lengths):
        time.sleep(0.15)
        return layer(x)

    monkeypatch.setattr(compare, "gates", lambda providers, *_: {provider.name: None for provider in providers})
    table = compare.run(SMALL, [Provider("slow", NN.build, forward)], budget_s=1.0)
    assert "training steps left out" in table
    assert "peak memory left out" in table
    assert table.splitlines()[3].split()[0] == "slow"
    assert table.splitlines()[3].split()[-4:-2] == ["-", "-"]


def test_the_budget_that_is_advised_is_larger_than_the_one_that_was_too_small():
    for budget_s, needed, left in ((2, 0.1, 0.05), (2, 0.0, -1.0), (10, 3.0, 1.0)):
        assert compare._enough(budget_s, needed, left) > budget_s + needed - left


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "--threads", "0"],
        ["figures", "--threads", "2,-1"],
        ["peak", "--threads", "x"],
        ["compare", "--budget", "-1"],
        ["sweep", "--budget", "nan"],
    ],
)
def test_counts_and_budgets_that_make_no_sense_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        command.main(arguments)
    assert left.value.code == 2
    assert f"got '{arguments[-1].split(',')[-1]}'" in capsys.readouterr().err
