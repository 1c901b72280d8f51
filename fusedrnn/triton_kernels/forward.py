"""The forward recurrence: `forward_resident` holds W_hh on chip, `forward_tiled` reads it from L2 at every step.

Computes: a = W_hh h + b_hh and the cell, for every step of every row: fusedrnn/reference.py, `scan`.
Mapping: tiles are [units, rows]. W_hh is the stationary left operand, batch rows are columns of the product and never
    meet: what an ended row goes on computing harms nobody, so only loads and stores ask for q < n, and no state is
    selected. A program owns a tile of rows of one stream; forward_tiled in its form of a launch a step, one tile of
    units of them.
Memory: forward_resident keeps W_hh, h and c. forward_tiled hands h over by y and, unrounded, the state that no matrix
    multiplies (the GRU's h, the LSTM's c) by `carry` [S, B, H].
Synchronisation: resident none; streamed a barrier of the program a step; a launch a step none.
Requires: T*B*S < 2^31. Tensors are dense but for lengths and reset, which come by strides.
Source: cells as in csrc/cells; a group that stops at its longest row, as in csrc/cuda.
"""

import triton
import triton.language as tl

from . import cells
from .cells import cast, dot
from .noise import ZONEOUT_C, ZONEOUT_H, seen, zoneout
from .walk import NUMBERS, cut_at, load_state, load_tiles, longest, row_at, rows, state_before, time_at, zero_tail


@triton.jit
def store_step(y, gates, cs, row, u, H, live, h, c, kept, CELL: tl.constexpr, Z: tl.constexpr):
    """What a step leaves in memory."""
    tl.store(y + row * H + u, cast(h, y.dtype.element_ty), mask=live)
    if CELL == 1:
        tl.store(cs + row * H + u, cast(c, cs.dtype.element_ty), mask=live)
    if gates is not None:
        for g in tl.static_range(Z):
            tl.store(gates + row * (Z * H) + (g * H + u), cast(kept[g], gates.dtype.element_ty), mask=live)


@triton.jit
def finish(y, gates, cs, h0, c0, hn, cn, lengths, offsets, n, last, T, B, S, b, s, u, H,
           CELL: tl.constexpr, Z: tl.constexpr, AT: tl.constexpr):  # fmt: skip
    """hn and cn, the states in row `last` (the initial ones of an empty row), and zeros beyond the rows' ends.

    Once a call, so that it may be slow and the time loop need keep no state for it.
    """
    tl.debug_barrier()  # other threads of this program stored what is read here
    edge = (s * B + b).to(tl.int64) * H + u
    inside = (b < B) & (u < H)
    ran = inside & (n > 0)
    h = tl.load(y + last * H + u, mask=ran, other=0.0).to(AT) + load_state(h0, edge, inside & (n == 0), AT)
    tl.store(hn + edge, cast(h, hn.dtype.element_ty), mask=inside)
    if CELL == 1:
        c = tl.load(cs + last * H + u, mask=ran, other=0.0).to(AT) + load_state(c0, edge, inside & (n == 0), AT)
        tl.store(cn + edge, cast(c, cn.dtype.element_ty), mask=inside)
    if lengths is not None and offsets is None:
        zero_tail(y, n, T, B, S, b, s, u, H, 1)
        if gates is not None:
            zero_tail(gates, n, T, B, S, b, s, u, H, Z)
        if CELL == 1:
            zero_tail(cs, n, T, B, S, b, s, u, H, 1)


@triton.jit(do_not_specialize=[*NUMBERS])
def forward_resident(gates_x, h0, c0, w, b_hh, lengths, reset, offsets, key, dropout, y, hn, gates, cs, cn,
                     T, B, S, blocks, D, len_s, len_b, rst_t, rst_b, rst_s, zone_h, zone_c,
                     CELL: tl.constexpr, G: tl.constexpr, Z: tl.constexpr, AT: tl.constexpr, PRECISION: tl.constexpr,
                     BLOCK: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """A program runs a tile of rows of one stream from their first to their last step; UNITS >= H, a power of two."""
    H = blocks * BLOCK  # so that the compiler knows what divides it
    b = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :]
    s = tl.program_id(1)
    u = tl.arange(0, UNITS)[:, None]
    k = tl.arange(0, UNITS)[None, :]
    block = s.to(tl.int64) * G
    n, first, reverse = rows(lengths, T, B, b, s, D, len_s, len_b)
    edge = (s * B + b).to(tl.int64) * H + u
    inside = (b < B) & (u < H)
    tiles = ()
    bias = ()
    for g in tl.static_range(G):
        tiles = tiles + (tl.load(w + ((block + g) * H + u) * H + k, mask=(u < H) & (k < H), other=0.0),)
        if b_hh is not None:
            bias = bias + (tl.load(b_hh + (block + g) * H + u, mask=u < H, other=0.0).to(AT),)
    h = load_state(h0, edge, inside, AT)
    c = h
    if CELL == 1:
        c = load_state(c0, edge, inside, AT)
    if reset is not None:
        cut = cut_at(0, n, first, reverse, reset, b, s, rst_t, rst_b, rst_s)
    for q in tl.range(0, longest(lengths, n, T), num_stages=STAGES):
        if reset is not None:
            h = tl.where(cut, 0.0, h)
            if CELL == 1:
                c = tl.where(cut, 0.0, c)
            # a step early: its latency hides
            cut = cut_at(q + 1, n, first, reverse, reset, b, s, rst_t, rst_b, rst_s)
        live = (q < n) & (u < H)
        row = row_at(q, first, reverse, offsets, b, s, T, B, S)
        x = load_tiles(gates_x, row, u, H, live, G, AT)
        operand = cast(seen(dropout, edge, inside, h), w.dtype.element_ty)
        a = ()
        for g in tl.static_range(G):
            total = tl.zeros((UNITS, ROWS), AT)
            if b_hh is not None:
                total += bias[g]
            a = a + (dot(tiles[g], operand, total, PRECISION),)
        new_h, new_c, kept = cells.forward(CELL, x, a, h, c)
        t = time_at(q, first, reverse)
        h = zoneout(key, zone_h, ZONEOUT_H, t, b, s, u, h, new_h)
        c = zoneout(key, zone_c, ZONEOUT_C, t, b, s, u, c, new_c)
        store_step(y, gates, cs, row, u, H, live, h, c, kept, CELL, Z)
    last = row_at(n - 1, first, reverse, offsets, b, s, T, B, S)
    finish(y, gates, cs, h0, c0, hn, cn, lengths, offsets, n, last, T, B, S, b, s, u, H, CELL, Z, AT)


@triton.jit(do_not_specialize=["q0", "q1", *NUMBERS])
def forward_tiled(gates_x, h0, c0, w, b_hh, lengths, reset, offsets, key, dropout, y, hn, gates, cs, cn, carry, q0, q1,
                  T, B, S, blocks, D, len_s, len_b, rst_t, rst_b, rst_s, zone_h, zone_c,
                  CELL: tl.constexpr, G: tl.constexpr, Z: tl.constexpr, AT: tl.constexpr, PRECISION: tl.constexpr,
                  UNITS: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, STAGES: tl.constexpr,
                  BLOCK: tl.constexpr, STREAMED: tl.constexpr, LAST: tl.constexpr):  # fmt: skip
    """Steps q0 .. q1-1. STREAMED: the program owns all tiles of units, else one, and q1 is q0 + 1. LAST: q1 is T."""
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
    # never pipelined: a step reads what the one before stored
    for q in tl.range(q0, tl.minimum(q1, longest(lengths, n, T)), num_stages=1):
        row = row_at(q, first, reverse, offsets, b, s, T, B, S)
        before = row_at(q - 1, first, reverse, offsets, b, s, T, B, S)
        held = q < n
        if reset is not None:  # the reader drops the state; y keeps it
            held = held & (cut_at(q, n, first, reverse, reset, b, s, rst_t, rst_b, rst_s) == 0)
        for j in range(mine, end):
            u = j * UNITS + tl.arange(0, UNITS)[:, None]
            live = (q < n) & (u < H)
            x = load_tiles(gates_x, row, u, H, live, G, AT)
            a = ()
            for g in tl.static_range(G):
                total = tl.zeros((UNITS, ROWS), AT)
                if b_hh is not None:
                    total += tl.load(b_hh + (block + g) * H + u, mask=u < H, other=0.0).to(AT)
                a = a + (total,)
            for k in tl.range(0, H, INNER, num_stages=STAGES):
                v = k + inner_column
                there = held & (v < H)
                state = seen(dropout, edge + v, there, state_before(y, h0, q, before, edge, v, H, there, AT, ""))
                operand = cast(state, w.dtype.element_ty)
                totals = ()
                for g in tl.static_range(G):
                    at = w + ((block + g) * H + u) * H + (k + inner_row)
                    tile = tl.load(at, mask=(u < H) & (k + inner_row < H), other=0.0)
                    totals = totals + (dot(tile, operand, a[g], PRECISION),)
                a = totals
            h = x[0] * 0.0
            c = h
            later = held & (u < H) & (before * 0 + q > 0)
            if CELL == 0:
                h = tl.load(carry + edge + u, mask=later, other=0.0)
                h += load_state(h0, edge + u, held & (u < H) & (before * 0 + q == 0), AT)
            if CELL == 1:
                c = tl.load(carry + edge + u, mask=later, other=0.0)
                c += load_state(c0, edge + u, held & (u < H) & (before * 0 + q == 0), AT)
            if CELL != 0 and zone_h is not None:
                h = state_before(y, h0, q, before, edge, u, H, held & (u < H), AT, "")
            new_h, new_c, kept = cells.forward(CELL, x, a, h, c)
            t = time_at(q, first, reverse)
            h = zoneout(key, zone_h, ZONEOUT_H, t, b, s, u, h, new_h)
            c = zoneout(key, zone_c, ZONEOUT_C, t, b, s, u, c, new_c)
            if CELL == 0:
                tl.store(carry + edge + u, h, mask=live)
            if CELL == 1:
                tl.store(carry + edge + u, c, mask=live)
            store_step(y, gates, cs, row, u, H, live, h, c, kept, CELL, Z)
        if STREAMED:
            tl.debug_barrier()  # the next step of this program reads what its other threads stored
    if LAST:
        last = row_at(n - 1, first, reverse, offsets, b, s, T, B, S)
        for j in range(mine, end):
            u = j * UNITS + tl.arange(0, UNITS)[:, None]
            finish(y, gates, cs, h0, c0, hn, cn, lengths, offsets, n, last, T, B, S, b, s, u, H, CELL, Z, AT)
