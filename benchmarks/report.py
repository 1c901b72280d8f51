"""One report from the recorded rows alone: Markdown, and one HTML page that opens offline. Verdicts first."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import decision, plots
from .record import Row, write_whole
from .studies import STUDIES, Study
from .studies.base import Figure, Section, Table, Text, Verdict

TITLE = "fusedrnn: the study"
BUSY_SHARE = 0.25
"""Cores kept busy by others at the start, over all cores, from which the report warns."""
NO_KERNEL = (
    "**The fused CPU kernel did not run here: fusedrnn's layers took the backend {}, and their times are not the "
    "kernel's.** `python -m fusedrnn` says what is missing."
)
QUICK = (
    "**A quick run: it shows that everything runs. Its few measurements decide nothing, whatever the verdicts say.**"
)
BUSY = (
    "**Other work kept this machine busy when the run began ({busy_cores} of {cores} cores): times, and the verdicts "
    "on speed, are of little worth.** Run it again on a quiet machine."
)
NO_FIGURES = (
    "matplotlib is not installed, so this report has no figures: "
    "`pip install matplotlib` and `python -m benchmarks report` draw them."
)

CSS = """
:root{color-scheme:light
dark;--ink:#1c2024;--soft:#5c6570;--line:#d9dde3;--page:#fff;--tint:#f5f7fa;--good:#1a7f4b;--bad:#b3261e;--open:#8a5a00}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#a0a8b2;--line:#343a42;--page:#14171a;--tint:#1c2025;--good:#5fd39a;--bad:#ff8a80;--open:#f0b95a}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:62rem;margin:0
auto;padding:1rem 1rem 4rem}
h1{line-height:1.2}h2{margin-top:3rem;border-top:1px solid var(--line);padding-top:1.2rem}
.machine,figcaption,.caption{color:var(--soft);font-size:.9rem;text-align:left}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--line);padding:.3rem .7rem .3rem
0;text-align:left;vertical-align:top}th{color:var(--soft);font-weight:600}
.confirmed{color:var(--good)}.refuted{color:var(--bad)}.depends,.undecided{color:var(--open)}
figure{margin:1.5rem 0}svg{height:auto;display:block}.question{font-size:1.05rem;color:var(--soft)}
@media(max-width:40rem){.verdicts thead{display:none}.verdicts td{display:block;border:0;padding:.1rem 0}
.verdicts tr{display:block;border-bottom:1px solid var(--line);padding:.5rem 0}
.verdicts td:first-child{font-weight:600}}
code{background:var(--tint);padding:.05rem .3rem;border-radius:.2rem}
"""


def write(folder: Path, rows: Sequence[Row], environment: dict[str, Any], *, interrupted: bool = False) -> Path:
    """Writes report.md, report.html and figures/*.svg into the folder, each whole or not at all; returns the page."""
    there = {row.study for row in rows}
    studies = [study for name, study in STUDIES.items() if name in there]
    verdicts = sorted((verdict for study in studies for verdict in study.verdicts(rows)), key=_number)
    sections = [page for page in (decision.section(rows), *(study.section(rows) for study in studies)) if page]
    lead = [_machine(environment)]
    unjudged = [_open(study) for name, study in STUDIES.items() if name not in there]
    if environment.get("backend") not in (None, "cpu"):
        lead.append(NO_KERNEL.format(environment["backend"]))
    if environment.get("effort") == "quick":
        lead.append(QUICK)
    if environment.get("busy_cores", 0) > BUSY_SHARE * environment.get("cores", 1):
        lead.append(BUSY.format(**environment))
    if interrupted:
        lead.append("**The run was interrupted: this report holds what was measured until then.**")
    if not plots.available():
        lead.append(NO_FIGURES)
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Figure) and block.svg:
                write_whole(folder / "figures" / f"{block.name}.svg", plots.standalone(block.svg))
    write_whole(folder / "report.md", markdown(lead, verdicts, sections, unjudged))
    write_whole(folder / "report.html", page(lead, verdicts, sections, unjudged))
    return folder / "report.html"


def _number(verdict: Verdict) -> tuple[int, str]:
    """Claims by their numbers, what has none behind them."""
    found = re.match(r"(\d+)(\w*)\.", verdict.claim)
    return (int(found[1]), found[2]) if found else (1000, "")


def _open(study: Study) -> str:
    """A study that was not run, and the claims that it would judge."""
    numbers = [f"{n}{part}" for n, part in map(_number, study.verdicts([])) if n < 1000]
    return f"`{study.name}`" + (f" (claims {', '.join(numbers)})" if numbers else "")


def _machine(environment: dict[str, Any]) -> str:
    known = {
        name: environment.get(name, "?")
        for name in ("cpu", "isa", "cores", "threads", "torch", "python", "fusedrnn", "date")
    }
    commit = environment.get("git_sha") or "no commit"
    changed = ", with uncommitted changes" if environment.get("git_dirty") else ""
    return (
        "{cpu} ({isa}), {cores} cores, {threads} threads; torch {torch}, Python {python}, fusedrnn {fusedrnn}".format(
            **known
        )
        + f" ({commit[:12]}{changed}); {known['date']}."
    )


VERDICT_HEADER = ("claim", "measured here", "verdict", "why")


def _not_run(unjudged: Sequence[str]) -> list[str]:
    return [f"Studies that were not run: {', '.join(unjudged)}."] if unjudged else []


def markdown(
    lead: Sequence[str], verdicts: Sequence[Verdict], sections: Sequence[Section], unjudged: Sequence[str] = ()
) -> str:
    parts = [
        f"# {TITLE}",
        *lead,
        "## Verdicts",
        _markdown_table(VERDICT_HEADER, [(v.claim, v.measured, f"**{v.verdict}**", v.why) for v in verdicts]),
        *_not_run(unjudged),
    ]
    for section in sections:
        parts += [f"## {section.title}", f"*{section.question}*"]
        for block in section.blocks:
            if isinstance(block, Text):
                parts.append(block.text)
            elif isinstance(block, Table):
                parts += [block.caption] * bool(block.caption) + [_markdown_table(block.header, block.rows)]
            elif block.svg:
                parts.append(f"![{block.name}](figures/{block.name}.svg)\n\n{block.caption}")
            else:
                parts.append(f"(no figure) {block.caption}")
    return "\n\n".join(parts) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(
    lead: Sequence[str], verdicts: Sequence[Verdict], sections: Sequence[Section], unjudged: Sequence[str] = ()
) -> str:
    rows = [
        (_inline(v.claim), _inline(v.measured), f'<strong class="{v.verdict}">{v.verdict}</strong>', _inline(v.why))
        for v in verdicts
    ]
    body = [f"<h1>{TITLE}</h1>", *(f'<p class="machine">{_inline(text)}</p>' for text in lead), "<h2>Verdicts</h2>"]
    body.append(_html_table(VERDICT_HEADER, rows, kind="verdicts"))
    body += [f"<p>{_inline(text)}</p>" for text in _not_run(unjudged)]
    for section in sections:
        body += [f"<h2>{_inline(section.title)}</h2>", f'<p class="question">{_inline(section.question)}</p>']
        body += [_html_block(block) for block in section.blocks]
    view = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"{view}<title>{TITLE}</title><style>{CSS}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _html_block(block: Text | Table | Figure) -> str:
    if isinstance(block, Text):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Table):
        return _html_table(block.header, [[_inline(str(cell)) for cell in row] for row in block.rows], block.caption)
    return (
        f'<figure><div class="wide">{block.svg or ""}</div><figcaption>{_inline(block.caption)}</figcaption></figure>'
    )


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", kind: str = "figures") -> str:
    """Cells are HTML already. A caption is no <caption>, which would be as narrow as its table."""
    title = f'<p class="caption">{_inline(caption)}</p>' if caption else ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
    return f'{title}<div class="wide">{table}</div>'


def _inline(text: str) -> str:
    """Escaped text with `code` and **strong**."""
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", escaped)
