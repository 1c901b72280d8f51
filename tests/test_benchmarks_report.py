"""Verdicts from made-up rows, the report, and the command line."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import cases, data, plots, record, report
from benchmarks.cases import Case
from benchmarks.record import Row, measured, read_rows, remark
from benchmarks.studies import STUDIES, base, cells, claims, gradients, kernels, serving, text_claims

SMALL = Case("gru", 6, 3, 4, 5)


def _rows() -> list[Row]:
    return [
        measured("kernels", "time", "ms", [1.0, 2.0, 4.0], SMALL, provider="nn", mode="train", threads=2),
        remark("kernels", "failed", 'says "no",\nand why', SMALL, provider="fusedrnn"),
    ]


def _phrases(tmp_path: Path, *lines: str, header: str = "PhraseId\tSentenceId\tPhrase\tSentiment") -> Path:
    path = tmp_path / "train.tsv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def _epochs(case: str, provider: str, seconds: float, accuracy: float, *, epochs: int = 6, seeds: int = 3) -> list[Row]:
    rows = []
    for seed in range(seeds):
        for epoch in range(1, epochs + 1):
            where = {"provider": provider, "seed": seed, "epoch": epoch}
            rows.append(Row("text", case, "epoch_time", "s", seconds * (1 + 0.01 * epoch), n=100, **where))
            rows.append(Row("text", case, "accuracy", "", accuracy - 0.1 / epoch + 0.001 * seed, n=4000, **where))
            rows.append(Row("text", case, "early_loss", "", 1.0, n=10, **where))
    return rows


@pytest.mark.parametrize(
    ("fused_s", "nn_s", "accuracy", "epochs", "verdict"),
    [
        (0.5, 0.7, 0.7, 6, base.CONFIRMED),
        (1.5, 2.0, 0.5, 6, base.REFUTED),
        (0.5, 2.0, 0.7, 6, base.DEPENDS),
        (0.5, 0.7, 0.5, 6, base.DEPENDS),
        (0.5, 0.7, 0.7, 1, base.UNDECIDED),
    ],
)
def test_verdict_on_rnn_against_cnn(fused_s, nn_s, accuracy, epochs, verdict):
    seeds = 1 if epochs == 1 else 3
    rows = _epochs("phrases/RNN", "fusedrnn", fused_s, accuracy, epochs=epochs, seeds=seeds)
    rows += _epochs("phrases/RNN", "nn", nn_s, accuracy, epochs=epochs, seeds=1)
    rows += _epochs("phrases/CNN2", "conv", 1.0, 0.6, epochs=epochs, seeds=seeds)
    found = next(v for v in text_claims.verdicts(rows) if v.claim.startswith("1."))
    assert found.verdict == verdict, found


def test_verdict_on_curves_sees_another_start():
    rows = _epochs("phrases/RNN", "fusedrnn", 0.5, 0.6) + _epochs("phrases/RNN", "nn", 1.0, 0.6)
    assert text_claims.verdicts(rows)[0].verdict == base.CONFIRMED
    other = [
        dataclasses.replace(row, p50=1.01) if (row.metric, row.provider) == ("early_loss", "nn") else row
        for row in rows
    ]
    assert text_claims.verdicts(other)[0].verdict == base.REFUTED


@pytest.mark.parametrize(
    ("far", "near", "verdict"), [(0.95, 1.0, base.CONFIRMED), (0.4, 0.5, base.REFUTED), (0.95, 0.6, base.DEPENDS)]
)
def test_verdict_on_word_order(far, near, verdict):
    rows = []
    for model, provider in (("RNN", "fusedrnn"), ("BiRNN", "fusedrnn"), ("CNN2", "conv"), ("TextCNN", "conv")):
        case = f"grammar/{model}"
        rows += _epochs(case, provider, 1.0, 0.9)
        for gap in data.GAPS:
            accuracy = 0.6 if provider == "conv" else near if gap <= 1 else far
            rows.append(Row("text", case, "accuracy_at_gap", "", accuracy, n=300, provider=provider, seed=0, T=gap))
    found = next(v for v in text_claims.verdicts(rows) if v.claim.startswith("11."))
    assert found.verdict == verdict, found


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([base.CONFIRMED, base.CONFIRMED], base.CONFIRMED),
        ([base.REFUTED, base.REFUTED], base.REFUTED),
        ([base.CONFIRMED, base.REFUTED, base.UNDECIDED], base.DEPENDS),
        ([base.CONFIRMED, base.DEPENDS], base.DEPENDS),
        ([base.CONFIRMED, base.UNDECIDED], base.UNDECIDED),
        ([base.UNDECIDED], base.UNDECIDED),
    ],
)
def test_parts_of_a_claim_make_one_verdict(parts, verdict):
    assert claims.judge("", [claims.Finding(part, "") for part in parts]).verdict == verdict


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([2.0, 3.0], base.CONFIRMED),
        ([2.0, 0.6], base.DEPENDS),
        ([0.6, 0.7], base.REFUTED),
        ([], base.UNDECIDED),
    ],
)
def test_verdict_on_kernels(ratios, verdict):
    rows = [measured("kernels", "speedup", "", [r * 0.99, r, r * 1.01], SMALL, mode="train") for r in ratios]
    assert kernels.verdicts(rows)[0].verdict == verdict


def test_a_noisy_slow_case_forbids_confirmation():
    steady = measured("kernels", "speedup", "", [2.0, 2.1, 2.2], SMALL, mode="train")
    noisy = measured("kernels", "speedup", "", [0.3, 0.4, 2.0], SMALL, mode="infer")
    found = kernels.verdicts([steady, steady, noisy])[0]
    assert found.verdict == base.DEPENDS
    assert "too noisy to tell at infer" in found.why


def test_the_arithmetic_claim_is_computed():
    rows = [Row("text", "phrases/RNN", "accuracy", "", 0.5, provider="nn", seed=0, epoch=1, n=10)]
    for case, metric, value in (
        ("RNN", "products_a_step", 22_784),
        ("RNN", "parameters", 23_685),
        ("CNN2", "products_a_step", 22_400),
    ):
        rows.append(Row("text", f"phrases/{case}", metric, "", float(value), I=50))
    found = next(v for v in text_claims.verdicts(rows) if v.claim.startswith("12."))
    assert found.verdict == base.DEPENDS
    assert "quoted 44,800: refuted" in found.why


def _fixture_rows() -> list[Row]:
    rows = [measured("kernels", "peak", unit, [1e11], "machine") for unit in ("FLOP/s", "bytes/s")]
    for case in cases.kernel_grid("quick"):
        for mode in cases.MODES:
            for provider, scale in (("nn", 2.0), ("fusedrnn", 1.0), ("floor", 0.5)):
                samples = [scale, scale * 1.1, scale * 1.2]
                rows.append(measured("kernels", "time", "ms", samples, case, provider=provider, mode=mode))
            rows.append(measured("kernels", "speedup", "", [1.9, 2.0, 2.1], case, provider="fusedrnn", mode=mode))
        for provider in ("nn", "fusedrnn"):
            rows.append(measured("kernels", "bytes_kept", "bytes", [1e6], case, provider=provider, mode="train"))
    rows.append(remark("kernels", "skipped", "the budget of this study was spent", SMALL))
    for model, provider in (
        ("RNN", "fusedrnn"),
        ("RNN", "nn"),
        ("CNN2", "conv"),
        ("TextCNN", "conv"),
        ("BiRNN", "fusedrnn"),
    ):
        rows += _epochs(f"grammar/{model}", provider, 1.0, 0.7)
        rows += [
            Row("text", f"grammar/{model}", "accuracy_at_gap", "", 0.7, n=9, provider=provider, T=gap) for gap in (0, 6)
        ]
    return rows


@pytest.mark.slow
def test_the_report_puts_verdicts_first_and_needs_nothing_from_outside(tmp_path):
    page = report.write(tmp_path, _fixture_rows(), record.environment())
    markdown, html = page.with_suffix(".md").read_text(), page.read_text()
    assert markdown.index("## Verdicts") < markdown.index("## Kernels") < markdown.index("## Text")
    assert "**confirmed**" in markdown
    assert "Did not fit into the budget" in markdown
    assert html.count('class="confirmed"') >= 1
    outside = html.replace("http://www.w3.org/", "")  # names of XML, never fetched
    assert not [mark for mark in ("http://", "https://", "src=", "@import") if mark in outside]
    if plots.available():
        drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
        assert {
            "kernels-scaling",
            "kernels-speedup",
            "kernels-memory",
            "text-grammar-learning",
            "text-grammar-distance",
        } <= drawn
        assert html.count("<svg") == len(drawn)


def test_a_missing_kernel_is_said_at_the_top(tmp_path):
    page = report.write(tmp_path, _rows(), record.environment() | {"backend": "aten"})
    assert "did not run here" in page.with_suffix(".md").read_text().split("## Verdicts")[0]


@pytest.mark.parametrize(("cores", "busy"), [(0.2, False), (1.9, True)])
def test_a_busy_machine_is_said_at_the_top(tmp_path, cores, busy):
    page = report.write(tmp_path, _rows(), record.environment() | {"busy_cores": cores, "cores": 2})
    assert ("(1.9 of 2 cores)" in page.with_suffix(".md").read_text().split("## Verdicts")[0]) == busy


def test_a_process_that_spins_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        busy = record.busy_cores()
        spinning.kill()
    assert busy >= 0.5


def test_without_matplotlib_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    page = report.write(tmp_path, _fixture_rows(), record.environment())
    assert report.NO_FIGURES in page.with_suffix(".md").read_text()
    assert "<svg" not in page.read_text()


def test_every_study_writes_a_section_from_an_empty_record():
    for study in STUDIES.values():
        assert study.section([]).title
        assert all(verdict.verdict == base.UNDECIDED for verdict in study.verdicts([]))


@pytest.fixture
def tiny(monkeypatch):
    """Studies that end at once: one case, a handful of sentences; on one thread, which waits for no other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(cells, "HIDDEN", 8)
    monkeypatch.setattr(kernels, "kernel_grid", lambda effort: [SMALL])
    monkeypatch.setattr(
        data,
        "grammar_corpus",
        lambda **_: data.Corpus("grammar", 2, data.grammar(256, 0), data.grammar(64, 1), [], data.grammar(32, 2)),
    )
    monkeypatch.setattr(gradients, "NORMS", (0.5,))
    monkeypatch.setattr(serving, "export_missing", lambda: "left out")
    monkeypatch.setattr(cells, "FRESH", 64)
    monkeypatch.setattr(cells, "SERIES", 40)
    monkeypatch.setattr(data, "bayes_accuracy", lambda: 0.98)
    monkeypatch.setattr(plots, "available", lambda: False)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_study_quick(tmp_path, capsys, tiny):
    assert command.main(["study", "--quick", "--budget", "1", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "rows.csv")
    assert {row.study for row in rows} == set(STUDIES)
    assert not [row for row in rows if row.metric == "failed"]
    assert {"speedup", "bytes_kept", "epoch_time", "accuracy", "accuracy_at_gap"} <= {row.metric for row in rows}
    told = (tmp_path / "report.md").read_text()
    assert "## Verdicts" in told
    assert "A quick run: it shows that everything runs." in told
    assert command.main(["report", str(tmp_path)]) == 0


def test_study_on_phrases(tmp_path, tiny):
    rng = random.Random(0)
    lines = [
        f"{i}\t{i // 5}\t{' '.join(rng.choices(['good', 'bad', 'film', 'not'], k=i % 9))}\t{i % 5}" for i in range(300)
    ]
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("good 0.1 0.2 0.3\nbad -0.1 0.2 0.3\n")
    files = ["--data", str(_phrases(tmp_path, *lines)), "--embeddings", str(vectors)]
    assert command.main(["study", "text", "--quick", "--budget", "1", "--out", str(tmp_path / "out"), *files]) == 0
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "movie-review phrases" in markdown
    assert "Word vectors of width 3 from the given file cover 2 of 4 words" in markdown


def test_an_interrupted_study_keeps_and_reports_its_rows(tmp_path, monkeypatch, capsys, tiny):
    def interrupt(ctx):
        ctx.recorder.add(*_rows())
        raise KeyboardInterrupt

    monkeypatch.setitem(STUDIES, "kernels", dataclasses.replace(STUDIES["kernels"], run=interrupt))
    assert command.main(["study", "kernels", "--out", str(tmp_path)]) == command.INTERRUPTED
    assert len(read_rows(tmp_path / "rows.csv")) == 2
    assert "interrupted" in (tmp_path / "report.md").read_text()
    assert "2 rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["compare", "--budget", "0.001"], "give fewer --steps or --budget"),
        (["study", "text", "--data", "absent.tsv"], "cannot read absent.tsv: No such file"),
        (["study", "speed"], "unknown study speed; there are kernels, providers"),
        (["compare", "--hidden", "0"], "sizes must be at least 1"),
        (["figures", "--shapes", "9"], "not in 0 to 5"),
        (["sweep", "--provider", "nn"], "nothing to compare"),
        (["report", "absent"], "No such file"),
    ],
)
def test_wrong_arguments_end_with_one_line(tmp_path, capsys, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
