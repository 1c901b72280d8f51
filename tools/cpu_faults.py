"""The faults that `make mutations` makes in the CPU kernel: each wait left out, and the changes listed here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LOOPS = FORWARD, BACKWARD, BFLOAT = tuple(f"csrc/cpu/{name}.h" for name in ("forward", "backward", "bfloat"))
BARRIER, LAYOUT, NOISE, NORM = (f"csrc/cpu/{name}.h" for name in ("barrier", "layout", "noise", "norm"))
NORM_FORWARD, NORM_BACKWARD = (f"csrc/cpu/norm_{name}.h" for name in ("forward", "backward"))
SOURCES = (*LOOPS, BARRIER, LAYOUT, NOISE, NORM, NORM_FORWARD, NORM_BACKWARD)
WAIT = re.compile(r"\b(all|team)\.wait\(\)(?=;)")


class Mutation(NamedTuple):
    """In `place`, found once in the file, the first `old` becomes `new`; without `old` the whole place disappears."""

    what: str
    file: str
    place: str
    old: str = ""
    new: str = ""


MUTATIONS = (
    Mutation("barrier does not wait for the first thread", BARRIER, "for (int i = 0", "0", "1"),
    Mutation("barrier does not wait for the last thread", BARRIER, "i < threads; i++", "threads", "threads - 1"),
    Mutation("barrier lets pass who is a wait behind", BARRIER, "__ATOMIC_ACQUIRE) < now", "now", "now - 1"),
    Mutation("forward: teams share a barrier", FORWARD, "+ 8 * (thread - me.column),", "(thread - me.column)", "0"),
    Mutation("backward: teams share a barrier", BACKWARD, "+ 8 * (thread - me.column),", "(thread - me.column)", "0"),
    Mutation("backward: a team's barrier is that of all", BACKWARD, "f.epochs + 1", "1", "0"),
    Mutation("one state buffer instead of two", FORWARD, "at.h + (2 * s + (step & 1))", "(step & 1)", "0"),
    Mutation("forward: zeros are not written", FORWARD, "zeros[j] = 0"),
    Mutation("a state to go back to is another stream's", FORWARD, "f.reset_h + s * l.H", "s * l.H", "0"),
    Mutation("c goes back to zeros", FORWARD, "anew ? start_c(s)", "start_c(s)", "zeros"),
    Mutation(
        "W_hh sees all of a state gone back to", FORWARD, "V::load(start_h(s) + v * W) * factor", "factor", "V(T(1))"
    ),
    Mutation("forward: a reset does not cut h", FORWARD, "h_rows[i] = anew", "anew", "false"),
    Mutation("forward: a reset does not cut c", FORWARD, "c_rows[i] = anew", "anew", "false"),
    Mutation("a late row's state is in one buffer only", FORWARD, "h.store(state(s, 1) + to)"),
    Mutation("an ended row's state is in one buffer only", FORWARD, "if (ended_just_now)", "ended_just_now", "false"),
    Mutation("padded rows of y are not zeroed", FORWARD, "none.store(f.y.at(t, b, s) + j, n)"),
    Mutation("padded rows of cs are not zeroed", FORWARD, "none.store(f.cs.at(t, b, s) + j, n)"),
    Mutation(
        "padded rows of the kept gates are not zeroed",
        FORWARD,
        "none.store(f.kept.at(t, b, s) + v * f.kept.vector + z * f.kept.value, n)",
    ),
    Mutation(
        "a reset cuts a backward stream a step early", LAYOUT, "return backwards(s) ? t + 1 < T", "backwards(s)", "0"
    ),
    Mutation(
        "a reset behind a row's end cuts", LAYOUT, "rows.real(t + 1, b, s) && rows.cut", "rows.real(t + 1, b, s)", "1"
    ),
    Mutation(
        "a backward row starts at T only", LAYOUT, "|| !rows.real(t + 1, b, s)", "!rows.real(t + 1, b, s)", "false"
    ),
    Mutation("backward: zeros are not written", BACKWARD, "zeros[j] = 0"),
    Mutation(
        "backward: a reset does not cut the direct half of dh", BACKWARD, "(cut ? V(T(0)) : rest)", "cut", "false"
    ),
    Mutation("backward: h starts from zeros at a reset", BACKWARD, "(l.goes_back ? f.reset_h", "l.goes_back", "false"),
    Mutation("backward: c starts from zeros at a reset", BACKWARD, "(l.goes_back ? f.reset_c", "l.goes_back", "false"),
    Mutation("what a state gone back to gets is not cleared", BACKWARD, "V(T(0)).store(f.dreset_h + from, n)"),
    Mutation(
        "a row hands back its last reset alone",
        BACKWARD,
        "(V::load(sum + v * W, n) + V::load(from))",
        "V::load(sum + v * W, n)",
        "V(T(0))",
    ),
    Mutation("what went back at a reset goes on", BACKWARD, "V(T(0)).store(from)"),
    Mutation("backward: a reset does not cut dc", BACKWARD, "(cut ? V(T(0)) : dcell)", "cut", "false"),
    Mutation(
        "backward: a reset does not cut W_hh's half of dh",
        BACKWARD,
        "if (l.goes_back || !l.cut(f.rows, t, batch[i], s))",
        "!l.cut(f.rows, t, batch[i], s)",
        "true",
    ),
    Mutation(
        "padded rows of dgates are not zeroed",
        BACKWARD,
        "none.store(f.dgates_x.at(t, b, s) + g * l.H + v * W, l.H - v * W)",
    ),
    Mutation("padded rows of dq are not zeroed", BACKWARD, "none.store(f.dq.at(t, b, s) + v * W, l.H - v * W)"),
    Mutation("padded rows of dx are not zeroed", BACKWARD, "f.dx[i / l.B * f.dx_t + i % l.B * f.dx_b + j] = 0"),
    Mutation("padded rows of the second dx are not zeroed", BACKWARD, "dx_second[i * l.I + j] = 0"),
    Mutation("the second direction's dx replaces the first's", BACKWARD, "add = s > 0", "s > 0", "false"),
    Mutation("dW begins from what was in memory", BACKWARD, "begins ? nullptr", "begins", "false"),
    Mutation("dW forgets the chunks before", BACKWARD, "nullptr : c_p", "c_p", "nullptr"),
    Mutation("db begins from what was in memory", BACKWARD, "mine[at.db + i] = 0"),
    Mutation("dW is that of the first rows only", BACKWARD, "part < plan.batches", "plan.batches", "1"),
    Mutation("db is that of the first thread only", BACKWARD, "t < plan.threads(); t++", "plan.threads()", "1"),
    Mutation("a round of Philox too few", NOISE, "round < 10", "10", "9"),
    Mutation("a unit gets the word of the next one", NOISE, "(unit + i) % 4", "unit + i", "unit + i + 1"),
    Mutation("all rows draw alike", NOISE, "word[1][i] = uint32_t(b)", "uint32_t(b)", "0u"),
    Mutation("all streams draw alike", NOISE, "uint32_t(4 * s)", "4 * s", "0"),
    Mutation("dropout does not scale", NOISE, "T(1 / (1 - noise.dropout))", "1 / (1 - noise.dropout)", "1"),
    Mutation("forward: zoneout is drawn by the order of steps", FORWARD, "kZoneoutH, t, b, s, j", " t", " step"),
    Mutation("forward: zoneout of h keeps nothing", FORWARD, "portion(of_h, h_old)", "of_h", "V(T(0))"),
    Mutation("forward: c is zoned out as h is", FORWARD, "old_share<T>(f.noise, kZoneoutC", "kZoneoutC", "kZoneoutH"),
    Mutation(
        "forward: W_hh sees all units",
        FORWARD,
        "(h * V::load(mask(s) + b * l.ldh + j))",
        "h * V::load(mask(s) + b * l.ldh + j)",
        "h",
    ),
    Mutation(
        "one buffer instead of two of what W_hh sees", FORWARD, "at.seen + (2 * s + (step & 1))", "(step & 1)", "0"
    ),
    Mutation("what W_hh sees of a late row is in one buffer only", FORWARD, "(h * factor).store(seen(s, 1) + to)"),
    Mutation("forward: a reset does not cut what W_hh sees", FORWARD, "seen_rows[i] = anew", "anew", "false"),
    Mutation("backward: zoneout is drawn by the order of steps", BACKWARD, "kZoneoutH, t, b, s, j", " t", " step"),
    Mutation("backward: nothing reaches an h that stayed", BACKWARD, "rest + h_stays", "h_stays", "V(T(0))"),
    Mutation("backward: nothing reaches a c that stayed", BACKWARD, "dcell + c_stays", "c_stays", "V(T(0))"),
    Mutation(
        "backward: c after zoneout for the cell's own",
        BACKWARD,
        "(f.noise.zoneout_c > 0)",
        "f.noise.zoneout_c > 0",
        "false",
    ),
    Mutation("backward: gradients reach what W_hh did not see", BACKWARD, "if (l.dropout) more", "l.dropout", "false"),
    Mutation("padding counts in a variance", NORM, "first_lanes(load(j, g) - mean[Parts::of(g)], H - j)", "H - j", "W"),
    Mutation("a variance without eps", NORM, "T(kNormEps)", "kNormEps", "0"),
    Mutation("a mean over one gate of several", NORM, "T(Parts::gates(p) * H)", "Parts::gates(p)", "1"),
    Mutation("gradients of a mean do not come off", NORM, "upward(j, g) - even[p]", "even[p]", "V(T(0))"),
    Mutation("gradients of a variance do not come off", NORM, "* along[p]", "along[p]", "V(T(0))"),
    Mutation("padded rows of products are not zeroed", FORWARD, "none.store(f.products.at(t, b, s) + g * l.H + j, n)"),
    Mutation("a stream has the gains of the first", NORM_FORWARD, "f.norms.hh + (s * G + g)", "s * G", "0"),
    Mutation("h sees the gain of the first stream's c", NORM_FORWARD, "f.norms, s * l.H + j", "s * l.H", "0 * l.H"),
    Mutation("all rows have the product of the first", NORM_FORWARD, "products + i * l.ldp", "i * l.ldp", "0"),
    Mutation(
        "padded rows of dproducts are not zeroed",
        BACKWARD,
        "none.store(f.dproducts.at(t, b, s) + g * l.H + v * W, l.H - v * W)",
    ),
    Mutation(
        "backward: h saw c after zoneout", NORM_BACKWARD, "f.noise.zoneout_c > 0", "f.noise.zoneout_c > 0", "false"
    ),
    Mutation("all of dh reaches c, zoneout or not", NORM_BACKWARD, "* kept[3] * subtract", "kept[3]", "V(T(1))"),
    Mutation("the product gets the gradients of what follows it", NORM_BACKWARD, "d.store(gates + g * l.Hp + j)"),
    Mutation(
        "what c's normalisation hands on is left out",
        BACKWARD,
        "dcell + V::load(of_c + l.Hp)",
        "V::load(of_c + l.Hp)",
        "V(T(0))",
    ),
    Mutation("bfloat: teams share a barrier", BFLOAT, "+ 8 * (thread - me.column),", "(thread - me.column)", "0"),
    Mutation("bfloat: one buffer of h's tiles instead of two", BFLOAT, "(2 * s + (step & 1))", "(step & 1)", "0"),
    Mutation("bfloat: zeros are not written", BFLOAT, "zeros[j] = 0"),
    Mutation("bfloat: a reset does not cut the direct half of h", BFLOAT, "anew ? zeros : h,", "anew", "false"),
    Mutation("bfloat: a reset does not cut c", BFLOAT, "anew ? zeros : c,", "anew", "false"),
    Mutation("bfloat: a reset does not cut h's tiles", BFLOAT, "lives ? __mmask16(0xffff)", "lives", "true"),
    Mutation("bfloat: a reset does not cut h0's tiles", BFLOAT, "rounded(anew ? V(0.f) : h)", "anew", "false"),
    Mutation(
        "bfloat: a late row's h is in one buffer only",
        BFLOAT,
        "_mm256_store_si256((__m256i*)h_place(s, 1, b, v), rounded(h))",
    ),
    Mutation(
        "bfloat: half a tile of h is not zeroed",
        BFLOAT,
        "_mm256_store_si256((__m256i*)h_place(s, parity, b, l.hv), _mm256_setzero_si256())",
    ),
    Mutation("bfloat: a block begins with the rows of the one before", BFLOAT, "% (2 * at.tile_rows)", "2", "1"),
    Mutation(
        "bfloat: padded rows of y are not zeroed",
        BFLOAT,
        "store(_mm256_setzero_si256(), f.y.at(t, b, s) + v * W, l.H - v * W)",
    ),
    Mutation(
        "bfloat: padded rows of cs are not zeroed",
        BFLOAT,
        "store(_mm256_setzero_si256(), f.cs.at(t, b, s) + v * W, l.H - v * W)",
    ),
)

LATE_US = 250  # of a thread that comes late
LATENESS = """#pragma once
#include <unistd.h>
extern "C" {
__attribute__((visibility("default"))) inline int fusedrnn_mutant = -1, fusedrnn_last_is_late = 1;
}
inline thread_local bool fusedrnn_late = false;
inline void fusedrnn_lag() {
  if (fusedrnn_late) usleep(LATE_US);
}
inline void fusedrnn_start(int thread, int threads) {
  fusedrnn_late = threads > 1 && (thread == threads - 1) == bool(fusedrnn_last_is_late);
  fusedrnn_lag();
}
""".replace("LATE_US", str(LATE_US))


def replaced(text: str, place: str, new: str, file: str) -> str:
    """The text with its one `place` changed."""
    if text.count(place) != 1:
        raise ValueError(
            f"{file}: `{place}` is there {text.count(place)} times, expected once: mend tools/cpu_faults.py"
        )
    return text.replace(place, new)


def mutated(texts: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The sources with every mutation to choose from, threads that come late and outputs that begin as NaN.

    Returns:
        The sources, and what each mutation does.

    Raises:
        ValueError: a mutation's place is not found exactly once, or no wait is found at all.
    """
    texts, names = dict(texts), []

    def choice(new: str, old: str) -> str:
        return f"(fusedrnn_mutant == {len(names) - 1} ? ({new}) : ({old}))"

    for file in LOOPS:
        whole = texts[file]

        def leave_out(wait: re.Match[str], file: str = file, whole: str = whole) -> str:
            line = whole.count("\n", 0, wait.start()) + 1
            names.append(f"{Path(file).name}:{line}: no {wait[0]}")
            return f"({choice('void()', wait[0])}, {wait[1]}.threads > 1 ? fusedrnn_lag() : void())"

        texts[file], found = WAIT.subn(leave_out, whole)
        if not found:
            raise ValueError(f"{file}: no wait is found: mend tools/cpu_faults.py")
        start = "void run() {"
        texts[file] = replaced(texts[file], start, f"{start} fusedrnn_start(all.me, all.threads);", file)
    for what, file, place, old, new in MUTATIONS:
        names.append(what)
        change = place.replace(old, choice(new, old), 1) if old else choice("void()", f"void({place})")
        texts[file] = replaced(texts[file], place, change, file)
    for file in SOURCES:
        texts[file] = replaced(texts[file], "#pragma once\n", '#pragma once\n#include "cpu/lateness.h"\n', file)
    return texts, names


def read() -> dict[str, str]:
    """The sources that are changed."""
    return {file: (ROOT / file).read_text() for file in SOURCES}
