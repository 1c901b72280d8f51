"""The faults that `mutate_triton` makes in fusedrnn/triton_kernels, one at a time."""

from __future__ import annotations

import re
from typing import NamedTuple


class Fault(NamedTuple):
    """In a function of a file, what stands there once, `old`, becomes `new`."""

    what: str
    where: str  # file.function
    old: str
    new: str = ""

    def made(self, text: str) -> str:
        """The file's text with the fault.

        Raises:
            ValueError: `old` is not there exactly once.
        """
        name = self.where.partition(".")[2]
        found = re.search(rf"^def {name}\(.*?(?=^@triton\.jit|^def |\Z)", text, re.DOTALL | re.MULTILINE)
        count = found[0].count(self.old) if found else 0
        if found is None or count != 1:
            raise ValueError(f"{self.where}: `{self.old}` is there {count} times, expected once: mend the fault's line")
        return text[: found.start()] + found[0].replace(self.old, self.new) + text[found.end() :]


ROWS, LONGEST, TIME, ROW, CUT, BEFORE, TAIL = (
    f"walk.{name}" for name in ("rows", "longest", "time_at", "row_at", "cut_at", "state_before", "zero_tail")
)
SYNC = "walk.grid_sync"
STEP, FINISH, RESIDENT, TILED = (
    f"forward.{name}" for name in ("store_step", "finish", "forward_resident", "forward_tiled")
)
BACK_STEP, BACK_FINISH, BACK_RESIDENT, BACK_TILED = (
    f"backward.{name}" for name in ("store_step", "finish", "backward_resident", "backward_tiled")
)
GRID, PRODUCT, NEEDED, BACK_GRID = (f"grid.{name}" for name in ("forward_grid", "product", "needed", "backward_grid"))
CUT_HERE = "(cut_at(q, n, first, reverse, reset, b, s, rst_t, rst_b, rst_s) == 0)"

FAULTS = (
    # where rows are
    Fault("a reverse stream begins at the last step of all", ROWS, "(n - 1)", "(T - 1)"),
    Fault("no stream runs backwards", ROWS, "(s % D)", "(s % 1)"),
    Fault("a length above T is none of T", ROWS, "tl.minimum(tl.maximum(n, 0), T)", "tl.maximum(n, 0)"),
    Fault("a length below 0 is not 0", ROWS, "tl.maximum(n, 0)", "n"),
    Fault("rows outside the batch have steps", ROWS, "tl.where(b < B, T, 0)", "tl.where(b < B, T, T)"),
    Fault("rows outside the batch have a step where there are lengths", ROWS, "other=0", "other=1"),
    Fault("a program stops at its shortest row", LONGEST, "tl.max(n)", "tl.min(n)"),
    Fault("a program stops a step early", LONGEST, "tl.max(n)", "tl.max(n) - 1"),
    Fault("every stream's steps count upwards", TIME, "(1 - 2 * reverse)", "1"),
    Fault("packed: the step's number instead of its time", ROW, "offsets + t", "offsets + (t * 0 + q)"),
    Fault("packed: a step before the first is looked up", ROW, "(t >= 0) & ", ""),
    Fault("packed: a step behind the last is looked up", ROW, " & (t < T)", ""),
    Fault("packed: rows as if they were not", ROW, "(step + b)", "(t * B + b)"),
    Fault("a reset cuts a reverse stream a step early", CUT, " + reverse)", ")"),
    Fault("a reset behind a row's end cuts", CUT, " & (boundary < n)", ""),
    Fault("rows that have ended look for resets", CUT, "(q < n) & ", ""),
    Fault("all rows have the first row's resets", CUT, "b * rst_b", "(b * 0) * rst_b"),
    Fault("all streams have the first stream's resets", CUT, " + s * rst_s", ""),
    Fault("the first state is taken a step late", BEFORE, "if q == 0", "if q == 1"),
    Fault("an absent first state is read", BEFORE, "mask = mask & (before * 0 + q > 0)", "mask = mask"),
    Fault("zeros begin a step late", TAIL, "t >= n", "t > n"),
    Fault("zeros begin behind the longest row", TAIL, "tl.min(tl.where(b < B, n, T))", "tl.max(n)"),
    Fault("zeros are written outside the batch", TAIL, " & (b < B) & (u < H)", " & (u < H)"),
    # forward
    Fault("the kept gates lie one block apart", STEP, "row * (Z * H)", "row * H"),
    Fault("last states are read before all threads have stored", FINISH, "tl.debug_barrier()", "pass"),
    Fault("rows without steps have a last state", FINISH, "(n > 0)", "(n >= 0)"),
    Fault(
        "hn: the first state is added to every row's",
        FINISH,
        "load_state(h0, edge, inside & (n == 0)",
        "load_state(h0, edge, inside",
    ),
    Fault(
        "cn: the first state is added to every row's",
        FINISH,
        "load_state(c0, edge, inside & (n == 0)",
        "load_state(c0, edge, inside",
    ),
    Fault("packed rows are given padding", FINISH, " and offsets is None", ""),
    Fault("padding of y", FINISH, "zero_tail(y, n, T, B, S, b, s, u, H, 1)", "pass"),
    Fault("padding of the kept gates", FINISH, "zero_tail(gates, n, T, B, S, b, s, u, H, Z)", "pass"),
    Fault("padding of cs", FINISH, "zero_tail(cs, n, T, B, S, b, s, u, H, 1)", "pass"),
    Fault("units outside W_hh are read", RESIDENT, "(u < H) & (k < H), other", "u < H, other"),
    Fault("a reset does not cut h", RESIDENT, "h = tl.where(cut, 0.0, h)", "h = h"),
    Fault("a reset does not cut c", RESIDENT, "c = tl.where(cut, 0.0, c)", "c = c"),
    Fault("the first cut is the second step's", RESIDENT, "cut_at(0, n", "cut_at(1, n"),
    Fault("a cut comes a step late", RESIDENT, "cut_at(q + 1, n", "cut_at(q, n"),
    Fault("a row ends a step early", RESIDENT, "live = (q < n)", "live = (q + 1 < n)"),
    Fault("a row ends a step late", RESIDENT, "live = (q < n)", "live = (q <= n)"),
    Fault("the last states are the longest row's", RESIDENT, "row_at(n - 1", "row_at(T - 1"),
    Fault("a reset does not cut what is read", TILED, f"held & {CUT_HERE}", "held"),
    Fault("a reset cuts a step early", TILED, f"held & {CUT_HERE}", f"held & {CUT_HERE.replace('q, n', 'q + 1, n')}"),
    Fault("a reset does not cut what is carried", TILED, "later = held & (u < H)", "later = live"),
    Fault(
        "a reset does not cut the GRU's first state",
        TILED,
        "load_state(h0, edge + u, held &",
        "load_state(h0, edge + u, (q < n) &",
    ),
    Fault(
        "a reset does not cut the LSTM's first c",
        TILED,
        "load_state(c0, edge + u, held &",
        "load_state(c0, edge + u, (q < n) &",
    ),
    Fault("the carry is read before there is one", TILED, " & (before * 0 + q > 0)", ""),
    Fault("the last tile of units is left out", TILED, "end = tl.cdiv(H, UNITS)", "end = tl.maximum(H // UNITS, 1)"),
    Fault("units outside W_hh are read", TILED, "mask=(u < H) & (k + inner_row < H)", "mask=u < H"),
    Fault("units outside the state are read", TILED, "there = held & (v < H)", "there = held & (v >= 0)"),
    Fault("a step begins before all threads have stored the last", TILED, "tl.debug_barrier()", "pass"),
    Fault("the last states are the longest row's", TILED, "row_at(n - 1", "row_at(T - 1"),
    Fault("a launch makes a step too few", TILED, "tl.minimum(q1, longest(lengths, n, T))", "tl.minimum(q1, T - 1)"),
    # the cells
    Fault("tanh: no end of the polynomial in float32", "cells.hyperbolic_tangent", " - 5.70498872745345e-3 * s", ""),
    Fault("tanh: no end of the polynomial in float64", "cells.hyperbolic_tangent", "-9.64399179425052238628e-1", "0.0"),
    Fault("tanh: the polynomial too far out", "cells.hyperbolic_tangent", "0.390625", "2.0"),
    Fault("GRU: second derivatives of n", "cells.backward", "            dn += dkept[2]\n"),
    Fault("GRU: second derivatives of q", "cells.backward", "            dq += dkept[3]\n"),
    Fault("GRU: the direct half of dh", "cells.backward", "passed = dh * z", "passed = dh"),
    Fault("LSTM: second derivatives of o", "cells.backward", "            do += dkept[3]\n"),
    Fault("LSTM: c before the step", "cells.backward", "df = dc * before", "df = dc * after"),
    Fault("relu: a gradient passes at 0", "cells.backward", "after <= 0.0", "after < 0.0"),
    # noise
    Fault("c is drawn as h", RESIDENT, "zone_c, ZONEOUT_C", "zone_c, ZONEOUT_H"),
    Fault("zoneout is drawn by the step", BACK_TILED, "t = time_at(q, first, reverse)", "t = q + first * 0"),
    Fault("backward draws the step behind", BACK_RESIDENT, "t = time_at(q,", "t = time_at(q + 1,"),
    Fault("dropout: W_hh sees the whole state", RESIDENT, "seen(dropout, edge, inside, h)", "h"),
    Fault(
        "dropout: the GRU's direct half is dropped too",
        BACK_RESIDENT,
        "dropout is None else",
        "True else",
    ),
    Fault(
        "zoneout: the gradient of the old state", "noise.parted", "tl.where(held, gradient, 0.0),", "gradient * 0.0,"
    ),
    Fault("a unit takes its block's first word", "noise.happens", "place = u % 4", "place = u * 0"),
    Fault(
        "zoneout: the gradient of c is of the c that was kept",
        BACK_GRID,
        "cells.own_c(kept, previous)",
        "after",
    ),
    # backward
    Fault("GRU: dq is the input half's", BACK_STEP, "cast(da[2]", "cast(dx[2]"),
    Fault("packed rows are given padding", BACK_FINISH, " and offsets is None", ""),
    Fault("padding of dgates_x", BACK_FINISH, "zero_tail(dgates_x, n, T, B, S, b, s, u, H, G)", "pass"),
    Fault("padding of dq", BACK_FINISH, "zero_tail(dq, n, T, B, S, b, s, u, H, 1)", "pass"),
    Fault("where no row has a step, a step is read", BACK_RESIDENT, "(n > 0) & (steps <= n)", "(steps <= n)"),
    Fault("the longest row's last c is not read", BACK_RESIDENT, "(steps <= n)", "(steps < n)"),
    Fault("a row's last c is not read a step early", BACK_RESIDENT, "(q <= n) & inside", "live"),
    Fault(
        "a row that has not begun loses dhn",
        BACK_RESIDENT,
        "total if lengths is None else tl.where(q < n, total, dh)",
        "total",
    ),
    Fault(
        "a row that has not begun loses dcn",
        BACK_RESIDENT,
        "passed if lengths is None else tl.where(q < n, passed, dc)",
        "passed",
    ),
    Fault("a row begins a step early", BACK_RESIDENT, "tl.where(q < n, total", "tl.where(q <= n, total"),
    Fault("a reset does not cut dh", BACK_RESIDENT, "total = tl.where(cut, 0.0, total)", "total = total"),
    Fault("a reset does not cut dc", BACK_RESIDENT, "passed = tl.where(cut, 0.0, passed)", "passed = passed"),
    Fault(
        "a reset does not cut the state before",
        BACK_RESIDENT,
        "previous = tl.where(cut, 0.0, previous)",
        "previous = previous",
    ),
    Fault("the state after a step is cut too", BACK_RESIDENT, "after = stored", "after = previous"),
    Fault("a cut comes a step early", BACK_RESIDENT, "cut_at(q, n", "cut_at(q + 1, n"),
    Fault("the last step is linked to one behind it", BACK_TILED, "linked = q + 1 < n", "linked = q < n"),
    Fault("a reset does not cut dh", BACK_TILED, f"linked & {CUT_HERE.replace('q, n', 'q + 1, n')}", "linked"),
    Fault("a reset cuts dh a step early", BACK_TILED, "linked & (cut_at(q + 1, n", "linked & (cut_at(q, n"),
    Fault(
        "a reset does not cut the GRU's direct half",
        BACK_TILED,
        "dh += tl.load(carry_h + edge + u, mask=linked",
        "dh += tl.load(carry_h + edge + u, mask=(q + 1 < n)",
    ),
    Fault(
        "a reset does not cut dc",
        BACK_TILED,
        "dc = tl.load(carry_c + edge + u, mask=linked",
        "dc = tl.load(carry_c + edge + u, mask=(q + 1 < n)",
    ),
    Fault("dhn enters at the last step of all", BACK_TILED, "(q == n - 1)", "(q + n * 0 == T - 1)"),
    Fault("dhn enters where there is a step only", BACK_TILED, "(q == n - 1)", "(q == n - 1) & (n > 0)"),
    Fault("dcn enters at every step", BACK_TILED, "dcn, edge + u, ends", "dcn, edge + u, inside"),
    Fault(
        "a reset does not cut the state before",
        BACK_TILED,
        "previous = tl.where(cut, 0.0, previous)",
        "previous = previous",
    ),
    Fault("a reset cuts the state of the step behind", BACK_TILED, "cut = cut_at(q, n", "cut = cut_at(q + 1, n"),
    Fault("GRU: q's gradients are multiplied by n's", BACK_TILED, "CELL == 0 and g == 2", "CELL == 0 and g == 3"),
    Fault(
        "the last tile of units is left out", BACK_TILED, "end = tl.cdiv(H, UNITS)", "end = tl.maximum(H // UNITS, 1)"
    ),
    Fault("units outside W_hh are read", BACK_TILED, "mask=(u < H) & (k + inner_row < H)", "mask=u < H"),
    Fault("units outside the gradients are read", BACK_TILED, "mask=linked & (v < H)", "mask=linked & (v >= 0)"),
    Fault("a turn begins before all threads have stored the last", BACK_TILED, "tl.debug_barrier()", "pass"),
    Fault("dh0 is not formed", "launch.scan_backward", "else T + 1", "else T"),
    # the grid
    Fault(
        "a program speaks before its threads have stored",
        SYNC,
        "tl.debug_barrier()  # every warp's",
        "pass  # every warp's",
    ),
    Fault("threads go on before they know", SYNC, "tl.debug_barrier()  # the acquire", "pass  # the acquire"),
    Fault("a program does not wait for the last", SYNC, "< goal", "< goal - 1"),
    Fault("a program waits for itself", SYNC, "< goal", "<= goal"),
    Fault("forward: nobody waits", GRID, "(q + 1) * tl.num_programs(2)", "q * tl.num_programs(2)"),
    Fault("backward: nobody waits", BACK_GRID, "(i + 1) * tl.num_programs(2)", "i * tl.num_programs(2)"),
    Fault("a reset does not cut h", GRID, "h = tl.where(cut, 0.0, h)", "h = h"),
    Fault("a reset does not cut c", GRID, "c = tl.where(cut, 0.0, c)", "c = c"),
    Fault("a reset does not cut what is read", GRID, "held = held & (cut == 0)", "held = held"),
    Fault("units outside W_hh are read", GRID, "mask=(u[None, :, :] < H) & (v < H)", "mask=u[None, :, :] < H"),
    Fault("the step behind the last is read", GRID, "(q + 1 < n)", "(q < n)"),
    Fault("the last states are the longest row's", GRID, "row_at(n - 1", "row_at(T - 1"),
    Fault("GRU: q's gradients are multiplied by n's", PRODUCT, "CELL == 0 and g == 2", "CELL == 0 and g == 3"),
    Fault(
        "units outside the gradients are read", PRODUCT, "linked[None, :, :] & (k < H)", "linked[None, :, :] & (k >= 0)"
    ),
    Fault("dcs", NEEDED, "of_cs = tl.load(dcs + row * H + u, mask=live, other=0.0).to(AT)", "pass"),
    Fault("where no row has a step, a step is read", BACK_GRID, "(n > 0) & (steps <= n)", "(steps <= n)"),
    Fault("the step before the first is read", BACK_GRID, " & (n * 0 + q > 0)", ""),
    Fault("dhn enters at the last step of all", BACK_GRID, "(q == n - 1)", "(q + n * 0 == T - 1)"),
    Fault("a reset does not cut dh", BACK_GRID, "linked = linked & (cut == 0)", "linked = linked"),
    Fault("GRU: the direct half of dh is not cut", BACK_GRID, "dh += tl.where(linked, passed, 0.0)", "dh += passed"),
    Fault("a reset does not cut dc", BACK_GRID, "dc = tl.where(linked, passed, 0.0)", "dc = passed"),
    Fault(
        "a reset does not cut the state before",
        BACK_GRID,
        "previous = tl.where(cut, 0.0, previous)",
        "previous = previous",
    ),
    Fault("every launch runs the first rows", BACK_GRID, "(tile + tl.program_id(0))", "tl.program_id(0)"),
)

HARMLESS: tuple[tuple[str, str], ...] = ()
"""By name: what no run can show, and why that is right."""
