"""The faults that `mutate_cuda` makes in the CUDA kernels, found in their sources.

- A call of the device API that synchronises is left out, or asked for one thing more or less (parity, bytes, arrivals,
  the number of a barrier, the lane that is asked).
- A load or store that asks whether it is valid no longer asks, or is never valid.
- A double buffer (`& 1`) becomes a single one.
- A random event is drawn as of another kind, or of the next step.
- A function that answers yes or no (is the row real, is it cut off, ...) always says yes, or always no.
- A comparison is off by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

LEFT, RIGHT = re.compile(r"[\w.()\[\]]+$"), re.compile(r"[(~-]*[\w.:]+")
CONSTANT = re.compile(r"\bk[A-Z]\w*$")

API = ("device_api.h", "device_math.h", "device_memory.h")  # what kernels are written with, not kernels
LEFT_OUT = [
    "cta_sync",
    "warp_sync",
    "named_sync",
    "cluster_sync",
    "mbar_init",
    "mbar_init_fence",
    "mbar_arrive_expect",
    "mbar_wait",
]
LEFT_OUT += ["st_async4", "st_async8", "st_async16"]
CHANGED = {  # by one argument: its number, and what becomes of it
    "mbar_wait": [(1, "({}) ^ {}", "the other parity")],
    "mbar_arrive_expect": [(1, "({}) + 16 * {}", "16 bytes more"), (1, "({}) - 16 * {}", "16 bytes less")],
    "mbar_init": [(1, "({}) + {}", "an arrival more")],
    "lane_xor": [(1, "({}) ^ {}", "another lane")],
    "named_sync": [(0, "{1} ? 1 : ({0})", "always barrier 1")],
    "happens": [(0, "NoiseKind((({}) + {}) % 3)", "another kind"), (1, "({}) + {}", "of the next step")],
    "old_share": [(0, "NoiseKind((({}) + {}) % 3)", "another kind"), (1, "({}) + {}", "of the next step")],
}
CONDITIONAL = ["ld4_if", "ld8_if", "ld16_if", "st4_if", "st8_if", "st16_if"]  # their last argument is the condition
PREDICATE = re.compile(r"\bFUSEDRNN_DEVICE (?:static )?bool (\w+)\(")
COMPARISON = re.compile(r" (<|<=|>|>=|==|!=) (?!nullptr|Exchange::|Pass::|Precision::)")

HARMLESS: dict[tuple[str, str], str] = {
    ("no cta_sync", "cta_sync(); cluster_sync();"): "a barrier of all threads of the cluster follows",
    ("no mbar_init_fence", ""): "seen by no stand-in: PTX asks for it before others use the barrier",
    ("no warp_sync", "exchange_grid.h"): "seen by no stand-in: it makes the lanes meet for mma after a loop",
    (
        "no cluster_sync",
        "exchange.h: FUSEDRNN_DEVICE void end",
    ): "a CTA has waited for the last bytes that are sent to it",
    ("no cluster_sync", "scatter.h: cluster_sync(); if (finisher)"): "as in exchange.h",
    ("no cluster_sync", "split.h: cluster_sync(); }"): "as in exchange.h",
    ("off by one: (thread_id() == 0", "if (thread_id() == 0)"): "thread 1 does it instead of thread 0",
    ("off by one: (lane_id() == 0", "if (lane_id() == 0)"): "every lane has the same sums",
    ("real: always yes", "norm_step.h: if (walk.real(after, b)"): "its gradients are zeros where the row has no step",
    ("zones_out: always yes", "if (zones_out())"): "of the old state nothing is kept then",
    ("cut_off: always yes", "norm_step.h: if (f.reset_h || Base::cut_off(b))"): "what follows asks of every unit again",
    ("finisher: always yes", "scatter.h"): "it is yes where k_split is 1 or 2, as in every small kernel",
    ("finisher: always yes", "split.h"): "it is yes where k_split is 1 or 2, as in every small kernel",
    ("vote_any: always yes", "const bool multiplies ="): "the product is taken, of zeros, and nobody reads it",
    ("vote_any: always yes", "if (vote_any(last))"): "what follows asks every row again",
    ("vote_any: always yes", "L::kMasked ? vote_any(last)"): "what follows asks every row again",
    ("off by one: length < 0", "return length < 0"): "0 becomes 0",
    ("off by one: length < T", "return length < 0"): "T becomes T",
    ("off by one: (t >= p.T", "row_length("): "no row is longer than T: the other half of the line sees it",
    ("0 for sums[k & 1]", "mma<"): "both chains of sums are one; they are added anyway",
    (
        "off by one: kept[k < kRegisters",
        "product.h",
    ): "the inner one is asked where the outer one holds, for the compiler only",
    (
        "off by one: kept[x < kRegisters",
        "scatter.h",
    ): "the inner one is asked where the outer one holds, for the compiler only",
    ("off by one: z < Z", "kept[z] = z < Z ?"): "Z is 0 or 4, z below 4: only z = 0 of Z = 0 changes, without an array",
    ("off by one: given.tile_rows < f.problem.B", ""): "where they are equal, both sides are the same number",
    ("off by one: (i < columns", ""): "columns of rows that do not exist; nobody reads them",
    ("off by one: kRowStep < tile.rows", ""): "sums of rows that do not exist; nobody reads them",
    (
        "off by one: 1 < rows.steps",
        "scatter.h: if (finisher",
    ): "the step behind the last one is no row's: nothing is loaded",
}
"""Faults that no run can see, by what is done and to which line, and the proof."""


class Fault(NamedTuple):
    """What is done to which line of which file."""

    file: str
    line: int
    text: str
    after: str  # the line below
    what: str

    def proof(self) -> str:
        """Why no run can see it; "" if one has to."""
        found = (proof for (what, text), proof in HARMLESS.items() if self.named(what, text))
        return next(found, "")

    def named(self, what: str, text: str) -> bool:
        """Whether an entry of HARMLESS means it."""
        return what == self.what and text in f"{self.file}: {self.text} {self.after}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.text}"


@dataclass
class Source:
    """A file whose text changes from rule to rule, but not its lines."""

    file: str
    text: str
    original: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.original = self.text.splitlines()

    def fault(self, position: int, what: str) -> Fault:
        """A fault at a place of the text as it is now."""
        line = self.text.count("\n", 0, position)
        after = "".join(self.original[line + 1 : line + 2]).strip()
        return Fault(self.file, line + 1, self.original[line].strip(), after, what)


class Mutator:
    """Puts faults into sources, each behind its number."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def chosen(self, fault: Fault) -> str:
        """What is true (1) where the fault is made."""
        self.faults.append(fault)
        return f"fusedrnn_mutant({len(self.faults) - 1})"

    def leave_out(self, source: Source, name: str) -> None:
        for start, _, end in reversed(list(calls(source.text, rf"\b{name}"))):
            call = source.text[start:end]
            new = f"({self.chosen(source.fault(start, f'no {name}'))} ? void() : {call})"
            source.text = source.text[:start] + new + source.text[end:]

    def change(self, source: Source, name: str, number: int, form: str, what: str) -> None:
        for start, opened, end in reversed(list(calls(source.text, rf"\b{name}"))):
            arguments = split(source.text[opened + 1 : end - 1])
            if arguments[number].strip() in ("true", "false"):
                continue
            chosen = self.chosen(source.fault(start, f"{name}: {what}"))
            arguments[number] = form.format(arguments[number].strip(), chosen)
            source.text = f"{source.text[: opened + 1]}{', '.join(arguments)}{source.text[end - 1 :]}"

    def answer(self, source: Source, name: str) -> None:
        for start, _, end in reversed(list(calls(source.text, rf"(?:\w+(?:<\w+>)?(?:\.|->|::))*\b{name}"))):
            call = source.text[start:end]
            if source.text[end] == ";" and re.search(r"(?:[;{})]|\belse)$", source.text[:start].rstrip()):
                continue  # a statement: another function of the same name, which answers nothing
            yes, no = (self.chosen(source.fault(start, f"{name}: always {word}")) for word in ("yes", "no"))
            source.text = f"{source.text[:start]}((int({call}) | {yes}) & !{no}){source.text[end:]}"

    def single_buffer(self, source: Source) -> None:
        for found in reversed(list(matches(source.text, re.compile(r"& 1\b")))):
            around = re.search(r"[\w.\[]+ $", source.text[: found.start()])
            what = f"0 for {around[0] if around else ''}{source.text[found.start() : found.end() + 1].strip()}"
            chosen = self.chosen(source.fault(found.start(), what))
            source.text = f"{source.text[: found.start()]}& (1 ^ {chosen}){source.text[found.end() :]}"

    def off_by_one(self, source: Source) -> None:
        for found in reversed(list(matches(source.text, COMPARISON))):
            if CONSTANT.search(source.text[: found.start()]) and source.text[found.end()].isdigit():
                continue
            left, right = LEFT.search(source.text[: found.start()]), RIGHT.match(source.text[found.end() :])
            what = f"off by one: {left[0] if left else ''} {found[1]} {right[0] if right else ''}"
            chosen = self.chosen(source.fault(found.start() + 1, what))
            source.text = f"{source.text[: found.start()]} - {chosen}{source.text[found.start() :]}"


def fixed(text: str) -> list[tuple[int, int]]:
    """Where nothing may be changed: comments, preprocessor lines, loop heads and what the compiler works out."""
    spans = [m.span() for m in re.finditer(r"//[^\n]*|^#[^\n]*", text, re.M)]
    for m in re.finditer(r"\b(?:if constexpr|for) \(", text):
        spans.append((m.start(), closing(text, m.end() - 1)))
    # a constant up to its semicolon, a constexpr function to the end of its body
    for m in re.finditer(r"\b(?<!if )(?:constexpr|static_assert|using|template|requires)\b[^;{]*", text):
        end = m.end()
        spans.append((m.start(), closing(text, end) if text[end : end + 1] == "{" and "constexpr" in m[0] else end))
    return spans


def matches(text: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """What matches where something may be changed."""
    spans = fixed(text)
    for found in pattern.finditer(text):
        if not any(first <= found.start() < last for first, last in spans):
            yield found


def calls(text: str, name: str) -> Iterator[tuple[int, int, int]]:
    """Calls of a function: where they start, their opening bracket, and where they end."""
    for found in matches(text, re.compile(name + r"\(")):
        before = text[: found.start()].rstrip()
        if not re.search(r"\b(?:bool|void|V)$", before):  # not its declaration
            yield found.start(), found.end() - 1, closing(text, found.end() - 1)


def closing(text: str, opened: int) -> int:
    """Behind the bracket that closes the one at `opened`."""
    depth = 0
    for i in range(opened, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if not depth:
            return i + 1
    raise ValueError("a bracket is not closed")


def split(arguments: str) -> list[str]:
    """Arguments of a call, at the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in arguments:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def mutate(copy: Path) -> list[Fault]:
    """Changes the kernels' sources in a copy of the checkout."""
    folder = copy / "csrc/cuda"
    paths = [p for p in sorted(folder.glob("*.h")) if p.name not in API and "FUSEDRNN_DEVICE" in p.read_text()]
    sources = [Source(path.name, path.read_text()) for path in paths]
    predicates = sorted({name for source in sources for name in PREDICATE.findall(source.text)})
    mutator = Mutator()
    for source in sources:
        for name in (*predicates, "vote_any"):
            mutator.answer(source, name)
        for name in CONDITIONAL:
            mutator.change(source, name, -1, "({}) || {}", "always valid")
            mutator.change(source, name, -1, "({}) && !{}", "never valid")
        for name, changes in CHANGED.items():
            for number, form, what in changes:
                mutator.change(source, name, number, form, what)
        for name in LEFT_OUT:
            mutator.leave_out(source, name)
        mutator.single_buffer(source)
        mutator.off_by_one(source)
    for path, source in zip(paths, sources, strict=True):
        path.write_text(source.text.replace("#pragma once\n", '#pragma once\n#include "cuda/mutant.h"\n', 1))
    (folder / "mutant.h").write_text(MUTANT.format(count=len(mutator.faults)))
    return mutator.faults


MUTANT = """#pragma once
extern "C" {{
__attribute__((visibility("default"))) inline int fusedrnn_chosen = -1;
__attribute__((visibility("default"))) inline char fusedrnn_passed[{count}] = {{}};
}}
inline int fusedrnn_mutant(int number) {{
  fusedrnn_passed[number] = 1;
  return fusedrnn_chosen == number;
}}
"""
