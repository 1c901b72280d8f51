"""The adjoint of the recurrence: `backward_resident` holds W_hh on chip, `backward_tiled` reads it from L2 every step.

Computes: the gradients of the gates' two halves, of h0 and of c0: fusedrnn/reference.py, `scan_backward`. Products over
    all steps (dW and the rest) are not here: torch's matrix products make them after the loop.
Mapping: as in forward.py. Of W_hh^T, rows are the units that get a gradient, columns the gate rows it comes from.
Memory: backward_resident keeps W_hh, dh and dc. backward_tiled hands gate gradients over by its outputs and, unrounded,
    what passes a step beside the product by `carry_h` (the GRU's dh z, and what zoneout holds) and `carry_c` (the
    LSTM's dc), both [S, B, H].
Synchronisation: as in forward.py.
Requires: T*B*S < 2^31. Tensors are dense but for lengths and reset, which come by strides.
Source: cells as in csrc/cells.
"""

import triton
import triton.language as tl

from . import cells
from .cells import cast, dot
from .noise import ZONEOUT_C, ZONEOUT_H, parted, seen
from .walk import NUMBERS, cut_at, load_state, load_tiles, longest, row_at, rows, state_before, time_at, zero_tail


@triton.jit
def store_step(dgates_x, dq, row, u, H, live, dx, da, CELL: tl.constexpr, G: tl.constexpr):
    """The gate gradients of a step."""
    for g in tl.static_range(G):
        tl.store(dgates_x + row * (G * H) + (g * H + u), cast(dx[g], dgates_x.dtype.element_ty), mask=live)
    if CELL == 0:
        tl.store(dq + row * H + u, cast(da[2], dq.dtype.element_ty), mask=live)


@triton.jit
def finish(dgates_x, dq, lengths, offsets, n, T, B, S, b, s, u, H, CELL: tl.constexpr, G: tl.constexpr):
    """Zeros beyond the rows' ends."""
    if lengths is not None and offsets is None:
        zero_tail(dgates_x, n, T, B, S, b, s, u, H, G)
        if CELL == 0:
            zero_tail(dq, n, T, B, S, b, s, u, H, 1)


@triton.jit(do_not_specialize=[*NUMBERS])
def backward_resident(dy, dhn, dgates, dcs, dcn, gates, y, h0, cs, c0, w, lengths, reset, offsets, key, dropout,
                      dgates_x, dh0, dc0, dq, T, B, S, blocks, D, len_s, len_b, rst_t, rst_b, rst_s, zone_h, zone_c,
                      CELL: tl.constexpr, G: tl.constexpr, Z: tl.constexpr, AT: tl.constexpr, PRECISION: tl.constexpr,
                      BLOCK: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """A program runs a tile of rows of one stream from their last to their first step; UNITS >= H, a power of two."""
    H = blocks * BLOCK  # so that the compiler knows what divides it
    b = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :]
    s = tl.program_id(1)
    u = tl.arange(0, UNITS)[:, None]
    k = tl.arange(0, UNITS)[None, :]
    block = s.to(tl.int64) * G
    n, first, reverse = rows(lengths, T, B, b, s, D, len_s, len_b)
    edge = (s * B + b).to(tl.int64) * H
    inside = (b < B) & (u < H)
    tiles = ()
    for g in tl.static_range(G):
        tiles = tiles + (tl.load(w + ((block + g) * H + k) * H + u, mask=(u < H) & (k < H), other=0.0),)
    dh = load_state(dhn, edge + u, inside, AT)
    dc = dh
    after = dh
    steps = longest(lengths, n, T)
    if CELL == 1:
        dc = load_state(dcn, edge + u, inside, AT)
        end = row_at(steps - 1, first, reverse, offsets, b, s, T, B, S)
        after = tl.load(cs + end * H + u, mask=(n > 0) & (steps <= n) & (u < H), other=0.0).to(AT)
    for i in tl.range(0, steps, num_stages=STAGES):
        q = steps - 1 - i
        live = (q < n) & (u < H)
        row = row_at(q, first, reverse, offsets, b, s, T, B, S)
        kept = load_tiles(gates, row, u, H, live, Z, AT)
        dkept = None
        if dgates is not None:
            dkept = load_tiles(dgates, row, u, H, live, Z, AT)
        if reset is not None:
            cut = cut_at(q, n, first, reverse, reset, b, s, rst_t, rst_b, rst_s)
        stored = dh
        if CELL < 2:
            before = row_at(q - 1, first, reverse, offsets, b, s, T, B, S)
            if CELL == 0:
                stored = state_before(y, h0, q, before, edge, u, H, live, AT, "")
            else:  # a step early, for the next turn's `after`
                stored = state_before(cs, c0, q, before, edge, u, H, (q <= n) & inside, AT, "")
        else:
            after = tl.load(y + row * H + u, mask=live, other=0.0).to(AT)
        previous = stored
        if reset is not None:
            previous = tl.where(cut, 0.0, previous)
        dh_all = dh
        if dy is not None:
            dh_all += tl.load(dy + row * H + u, mask=live, other=0.0).to(AT)
        dc_all = dc
        if dcs is not None:
            dc_all += tl.load(dcs + row * H + u, mask=live, other=0.0).to(AT)
        t = time_at(q, first, reverse)
        if zone_h is not None:
            held_h, dh_all = parted(key, zone_h, ZONEOUT_H, t, b, s, u, dh_all)
        if zone_c is not None:
            held_c, dc_all = parted(key, zone_c, ZONEOUT_C, t, b, s, u, dc_all)
            after = cells.own_c(kept, previous)
        dx, da, passed = cells.backward(CELL, dh_all, dc_all, kept, dkept, previous, after)
        store_step(dgates_x, dq, row, u, H, live, dx, da, CELL, G)
        total = passed if CELL == 0 and dropout is None else tl.zeros((UNITS, ROWS), AT)
        for g in tl.static_range(G):
            total = dot(tiles[g], cast(da[g], w.dtype.element_ty), total, PRECISION)
        if dropout is not None:
            total = seen(dropout, edge + u, inside, total)
            if CELL == 0:
                total += passed
        if zone_h is not None:
            total += held_h
        if zone_c is not None:
            passed += held_c
        if reset is not None:
            total = tl.where(cut, 0.0, total)
            passed = tl.where(cut, 0.0, passed)
        # a row that has not begun yet keeps the gradient of its last state
        dh = total if lengths is None else tl.where(q < n, total, dh)
        if CELL == 1:
            dc = passed if lengths is None else tl.where(q < n, passed, dc)
            after = stored
    tl.store(dh0 + edge + u, cast(dh, dh0.dtype.element_ty), mask=inside)
    if CELL == 1:
        tl.store(dc0 + edge + u, cast(dc, dc0.dtype.element_ty), mask=inside)
    finish(dgates_x, dq, lengths, offsets, n, T, B, S, b, s, u, H, CELL, G)


@triton.jit(do_not_specialize=["i0", "i1", *NUMBERS])
def backward_tiled(dy, dhn, dgates, dcs, dcn, gates, y, h0, cs, c0, w, lengths, reset, offsets, key, dropout,
                   dgates_x, dh0, dc0, dq, carry_h, carry_c, i0, i1,
                   T, B, S, blocks, D, len_s, len_b, rst_t, rst_b, rst_s, zone_h, zone_c,
                   CELL: tl.constexpr, G: tl.constexpr, Z: tl.constexpr, AT: tl.constexpr, PRECISION: tl.constexpr,
                   UNITS: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, STAGES: tl.constexpr,
                   BLOCK: tl.constexpr, STREAMED: tl.constexpr, LAST: tl.constexpr):  # fmt: skip
    """Turns i0 .. i1-1, of which turn i does step q = T-1-i: dh from the gate gradients of step q+1, then the cell.

    Turn T, the last, forms dh0 and dc0 alone. STREAMED: the program owns all tiles of units, else one, and i1 = i0 + 1.
    """
    H = blocks * BLOCK  # so that the compiler knows what divides it
    b = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :]
    s = tl.program_id(1)
    block = s.to(tl.int64) * G
    n, first, reverse = rows(lengths, T, B, b, s, D, len_s, len_b)
    edge = (s * B + b).to(tl.int64) * H
    inner_row = tl.arange(0, INNER)[None, :]
    inner_column = tl.arange(0, INNER)[:, None]
    mine = tl.program_id(2)
    end = mine + 1
    if STREAMED:
        end = tl.cdiv(H, UNITS)
    # never pipelined: a turn reads what the one before stored
    for i in tl.range(tl.maximum(i0, T - longest(lengths, n, T)), i1, num_stages=1):
        q = T - 1 - i
        row = row_at(q, first, reverse, offsets, b, s, T, B, S)
        next = row_at(q + 1, first, reverse, offsets, b, s, T, B, S)
        before = row_at(q - 1, first, reverse, offsets, b, s, T, B, S)
        linked = q + 1 < n  # step q+1 exists and took its state from step q
        if reset is not None:
            linked = linked & (cut_at(q + 1, n, first, reverse, reset, b, s, rst_t, rst_b, rst_s) == 0)
        for j in range(mine, end):
            u = j * UNITS + tl.arange(0, UNITS)[:, None]
            inside = (b < B) & (u < H)
            ends = inside & (q == n - 1)
            dh = tl.zeros((UNITS, ROWS), AT)
            for g in tl.static_range(G):
                if CELL == 0 and g == 2:
                    source = dq + next * H
                else:
                    source = dgates_x + next * (G * H) + g * H
                for k in tl.range(0, H, INNER, num_stages=STAGES):
                    v = k + inner_column
                    operand = tl.load(source + v, mask=linked & (v < H), other=0.0)
                    at = w + ((block + g) * H + (k + inner_row)) * H + u
                    tile = tl.load(at, mask=(u < H) & (k + inner_row < H), other=0.0)
                    dh = dot(tile, operand, dh, PRECISION)
            dh = seen(dropout, edge + u, inside, dh)
            dh += load_state(dhn, edge + u, ends, AT)
            dc = tl.zeros((UNITS, ROWS), AT)
            if carry_h is not None:
                dh += tl.load(carry_h + edge + u, mask=linked & (u < H), other=0.0)
            if CELL == 1:
                dc = tl.load(carry_c + edge + u, mask=linked & (u < H), other=0.0)
                dc += load_state(dcn, edge + u, ends, AT)
            if q >= 0:
                live = (q < n) & (u < H)
                kept = load_tiles(gates, row, u, H, live, Z, AT)
                dkept = None
                if dgates is not None:
                    dkept = load_tiles(dgates, row, u, H, live, Z, AT)
                previous = dh
                after = dh
                if CELL == 0:
                    previous = state_before(y, h0, q, before, edge, u, H, live, AT, "")
                elif CELL == 1:
                    previous = state_before(cs, c0, q, before, edge, u, H, live, AT, "")
                    after = tl.load(cs + row * H + u, mask=live, other=0.0).to(AT)
                else:
                    after = tl.load(y + row * H + u, mask=live, other=0.0).to(AT)
                if reset is not None:
                    cut = cut_at(q, n, first, reverse, reset, b, s, rst_t, rst_b, rst_s)
                    previous = tl.where(cut, 0.0, previous)
                if dy is not None:
                    dh += tl.load(dy + row * H + u, mask=live, other=0.0).to(AT)
                if dcs is not None:
                    dc += tl.load(dcs + row * H + u, mask=live, other=0.0).to(AT)
                t = time_at(q, first, reverse)
                if zone_h is not None:
                    held_h, dh = parted(key, zone_h, ZONEOUT_H, t, b, s, u, dh)
                if zone_c is not None:
                    held_c, dc = parted(key, zone_c, ZONEOUT_C, t, b, s, u, dc)
                    after = cells.own_c(kept, previous)
                dx, da, passed = cells.backward(CELL, dh, dc, kept, dkept, previous, after)
                if CELL == 0:
                    if zone_h is not None:
                        passed += held_h
                    tl.store(carry_h + edge + u, passed, mask=live)
                elif zone_h is not None:
                    tl.store(carry_h + edge + u, held_h, mask=live)
                if CELL == 1:
                    if zone_c is not None:
                        passed += held_c
                    tl.store(carry_c + edge + u, passed, mask=live)
                store_step(dgates_x, dq, row, u, H, live, dx, da, CELL, G)
            else:
                tl.store(dh0 + edge + u, cast(dh, dh0.dtype.element_ty), mask=inside)
                if CELL == 1:
                    tl.store(dc0 + edge + u, cast(dc, dc0.dtype.element_ty), mask=inside)
        if STREAMED:
            tl.debug_barrier()  # the next turn of this program reads what its other threads stored
    if LAST:
        for j in range(mine, end):
            u = j * UNITS + tl.arange(0, UNITS)[:, None]
            finish(dgates_x, dq, lengths, offsets, n, T, B, S, b, s, u, H, CELL, G)
