"""The recurrence over the whole GPU: every program holds the part of W_hh for a tile of units, for the whole loop.

Computes: as forward.py and backward.py.
Mapping: program (tile of rows, stream, tile of units). The product is split over k: a warp multiplies its part of k for
    all units and rows of the tile (a tl.dot of three axes [K_SPLIT, UNITS, INNER] x [K_SPLIT, INNER, ROWS]), and the
    parts are added. Without the split every warp would multiply the same few units by all of k.
Memory: W_hh in shared memory. h, c and what passes a step beside the product stay in registers, in the type of the
    accumulators: a program owns its units for all steps. What others need goes through L2, by y forward and by the
    gate gradients backward; loads of it pass L1 by, which may hold what stood there before.
Synchronisation: a barrier of all tiles of units of a tile of rows after each step. What the next step reads of this
    program's own is on its way before the wait.
Requires: all programs of a launch at once: a cooperative launch, no more programs than SMs. T*B*S < 2^31. No recurrent
    dropout: its mask beside W_hh and the states that are read at once takes more registers than there are.
Source: split of k and barrier: this project's prototype; a grid barrier of one counter, as in CUDA's cooperative
    groups.
"""

import triton
import triton.language as tl

from . import cells
from .backward import finish as finish_backward
from .backward import store_step as store_gradients
from .cells import cast, dot
from .forward import finish as finish_forward
from .forward import store_step as store_states
from .noise import ZONEOUT_C, ZONEOUT_H, parted, zoneout
from .walk import NUMBERS, cut_at, grid_sync, load_state, load_tiles, longest, row_at, rows, state_before, time_at


@triton.jit(do_not_specialize=["tile", *NUMBERS])
def forward_grid(gates_x, h0, c0, w, b_hh, lengths, reset, offsets, key, y, hn, gates, cs, cn, barrier, tile,
                 T, B, S, blocks, D, len_s, len_b, rst_t, rst_b, rst_s, zone_h, zone_c,
                 CELL: tl.constexpr, G: tl.constexpr, Z: tl.constexpr, AT: tl.constexpr, PRECISION: tl.constexpr,
                 UNITS: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, K_SPLIT: tl.constexpr,
                 BLOCK: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """All steps of a tile of rows, `tile` and on, for one tile of units; CHUNKS * K_SPLIT * INNER >= H."""
    H = blocks * BLOCK  # so that the compiler knows what divides it
    b = (tile + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)[None, :]
    s = tl.program_id(1)
    u = tl.program_id(2) * UNITS + tl.arange(0, UNITS)[:, None]
    block = s.to(tl.int64) * G
    n, first, reverse = rows(lengths, T, B, b, s, D, len_s, len_b)
    edge = (s * B + b).to(tl.int64) * H
    k_row = tl.arange(0, K_SPLIT)[:, None, None] * INNER + tl.arange(0, INNER)[None, None, :]
    k_column = tl.arange(0, K_SPLIT)[:, None, None] * INNER + tl.arange(0, INNER)[None, :, None]
    tiles = ()
    for chunk in tl.static_range(CHUNKS):
        for g in tl.static_range(G):
            v = chunk * K_SPLIT * INNER + k_row
            at = w + ((block + g) * H + u[None, :, :]) * H + v
            tiles = tiles + (tl.load(at, mask=(u[None, :, :] < H) & (v < H), other=0.0),)
    bias = ()
    if b_hh is not None:
        for g in tl.static_range(G):
            bias = bias + (tl.load(b_hh + (block + g) * H + u, mask=u < H, other=0.0).to(AT),)
    inside = (b < B) & (u < H)
    h = load_state(h0, edge + u, inside, AT)
    c = h
    if CELL == 1:
        c = load_state(c0, edge + u, inside, AT)
    row = row_at(0, first, reverse, offsets, b, s, T, B, S)
    before = row
    x = load_tiles(gates_x, row, u, H, (n > 0) & (u < H), G, AT)
    steps = longest(lengths, n, T)
    for q in tl.range(0, steps, num_stages=1):
        held = q < n
        if reset is not None:
            cut = cut_at(q, n, first, reverse, reset, b, s, rst_t, rst_b, rst_s)
            held = held & (cut == 0)
            h = tl.where(cut, 0.0, h)
            if CELL == 1:
                c = tl.where(cut, 0.0, c)
        sums = ()
        for _ in tl.static_range(G):
            sums = sums + (tl.zeros((K_SPLIT, UNITS, ROWS), AT),)
        for chunk in tl.static_range(CHUNKS):
            k = chunk * K_SPLIT * INNER + k_column
            mask = held[None, :, :] & (k < H)
            state = state_before(y, h0, q, before[None, :, :], edge[None, :, :], k, H, mask, AT, ".cg")
            operand = cast(state, w.dtype.element_ty)
            totals = ()
            for g in tl.static_range(G):
                totals = totals + (dot(tiles[chunk * G + g], operand, sums[g], PRECISION),)
            sums = totals
        a = ()
        for g in tl.static_range(G):
            total = tl.sum(sums[g], axis=0)
            if b_hh is not None:
                total += bias[g]
            a = a + (total,)
        new_h, new_c, kept = cells.forward(CELL, x, a, h, c)
        t = time_at(q, first, reverse)
        h = zoneout(key, zone_h, ZONEOUT_H, t, b, s, u, h, new_h)
        c = zoneout(key, zone_c, ZONEOUT_C, t, b, s, u, c, new_c)
        live = (q < n) & (u < H)
        store_states(y, gates, cs, row, u, H, live, h, c, kept, CELL, Z)
        before = row
        row = row_at(q + 1, first, reverse, offsets, b, s, T, B, S)
        x = load_tiles(gates_x, row, u, H, (q + 1 < n) & (u < H), G, AT)
        grid_sync(barrier + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), (q + 1) * tl.num_programs(2))
    last = row_at(n - 1, first, reverse, offsets, b, s, T, B, S)
    finish_forward(y, gates, cs, h0, c0, hn, cn, lengths, offsets, n, last, T, B, S, b, s, u, H, CELL, Z, AT)


@triton.jit
def product(tiles, dgates_x, dq, row, linked, k_column, H, CELL: tl.constexpr, G: tl.constexpr, AT: tl.constexpr,
            PRECISION: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr,
            K_SPLIT: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """W_hh^T times the gate gradients in `row`, of the rows that are `linked` to it."""
    total = tl.zeros((K_SPLIT, UNITS, ROWS), AT)
    for g in tl.static_range(G):
        if CELL == 0 and g == 2:
            source = dq + row * H
        else:
            source = dgates_x + row * (G * H) + g * H
        for chunk in tl.static_range(CHUNKS):
            k = chunk * K_SPLIT * INNER + k_column
            mask = linked[None, :, :] & (k < H)
            operand = tl.load(source[None, :, :] + k, mask=mask, other=0.0, cache_modifier=".cg")
            total = dot(tiles[g * CHUNKS + chunk], operand, total, PRECISION)
    return tl.sum(total, axis=0)


@triton.jit
def needed(dy, dcs, y, cs, h0, c0, q, row, before, edge, u, H, live, CELL: tl.constexpr, AT: tl.constexpr):
    """What step q reads beside the product and the gates: dy, dcs, the state before it and the state after it."""
    of_y = tl.zeros(live.shape, AT)
    of_cs = of_y
    previous = of_y
    after = of_y
    if dy is not None:
        of_y = tl.load(dy + row * H + u, mask=live, other=0.0).to(AT)
    if dcs is not None:
        of_cs = tl.load(dcs + row * H + u, mask=live, other=0.0).to(AT)
    if CELL == 0:
        previous = state_before(y, h0, q, before, edge, u, H, live, AT, "")
    elif CELL == 1:
        previous = state_before(cs, c0, q, before, edge, u, H, live, AT, "")
        after = tl.load(cs + row * H + u, mask=live, other=0.0).to(AT)
    else:
        after = tl.load(y + row * H + u, mask=live, other=0.0).to(AT)
    return of_y, of_cs, previous, after


@triton.jit(do_not_specialize=["tile", *NUMBERS])
def backward_grid(dy, dhn, dgates, dcs, dcn, gates, y, h0, cs, c0, w, lengths, reset, offsets, key,
                  dgates_x, dh0, dc0, dq, barrier, tile,
                  T, B, S, blocks, D, len_s, len_b, rst_t, rst_b, rst_s, zone_h, zone_c,
                  CELL: tl.constexpr, G: tl.constexpr, Z: tl.constexpr, AT: tl.constexpr, PRECISION: tl.constexpr,
                  UNITS: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, K_SPLIT: tl.constexpr,
                  BLOCK: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """All steps of a tile of rows, `tile` and on, for one tile of units; CHUNKS * K_SPLIT * INNER >= H."""
    H = blocks * BLOCK  # so that the compiler knows what divides it
    b = (tile + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)[None, :]
    s = tl.program_id(1)
    u = tl.program_id(2) * UNITS + tl.arange(0, UNITS)[:, None]
    block = s.to(tl.int64) * G
    n, first, reverse = rows(lengths, T, B, b, s, D, len_s, len_b)
    edge = (s * B + b).to(tl.int64) * H
    k_row = tl.arange(0, K_SPLIT)[:, None, None] * INNER + tl.arange(0, INNER)[None, None, :]
    k_column = tl.arange(0, K_SPLIT)[:, None, None] * INNER + tl.arange(0, INNER)[None, :, None]
    tiles = ()
    for g in tl.static_range(G):
        for chunk in tl.static_range(CHUNKS):
            v = chunk * K_SPLIT * INNER + k_row
            at = w + ((block + g) * H + v) * H + u[None, :, :]
            tiles = tiles + (tl.load(at, mask=(u[None, :, :] < H) & (v < H), other=0.0),)
    inside = (b < B) & (u < H)
    steps = longest(lengths, n, T)
    passed = tl.zeros((UNITS, ROWS), AT)
    held_h = passed
    linked = b < 0  # none: no step comes after the last
    row = row_at(steps - 1, first, reverse, offsets, b, s, T, B, S)
    before = row_at(steps - 2, first, reverse, offsets, b, s, T, B, S)
    next = row
    live = (n > 0) & (steps <= n) & (u < H)
    of_y, of_cs, previous, after = needed(dy, dcs, y, cs, h0, c0, steps - 1, row, before, edge, u, H, live, CELL, AT)
    kept = load_tiles(gates, row, u, H, live, Z, AT)
    if dgates is not None:
        dkept = load_tiles(dgates, row, u, H, live, Z, AT)
    # the turn after the last step forms dh0 and dc0 alone
    for i in tl.range(0, steps + 1, num_stages=1):
        q = steps - 1 - i
        ends = inside & (q == n - 1)
        dh = product(tiles, dgates_x, dq, next, linked, k_column, H, CELL, G, AT, PRECISION, UNITS, ROWS, INNER,
                     K_SPLIT, CHUNKS)  # fmt: skip
        dh += load_state(dhn, edge + u, ends, AT)
        dc = tl.zeros((UNITS, ROWS), AT)
        if CELL == 0:
            dh += tl.where(linked, passed, 0.0)
        elif zone_h is not None:
            dh += tl.where(linked, held_h, 0.0)
        if CELL == 1:
            dc = tl.where(linked, passed, 0.0) + load_state(dcn, edge + u, ends, AT)
        if q >= 0:
            linked = q < n
            if reset is not None:
                cut = cut_at(q, n, first, reverse, reset, b, s, rst_t, rst_b, rst_s)
                previous = tl.where(cut, 0.0, previous)
                linked = linked & (cut == 0)
            second = None
            if dgates is not None:
                second = dkept
            dh_all = dh + of_y
            dc_all = dc + of_cs
            t = time_at(q, first, reverse)
            if zone_h is not None:
                held_h, dh_all = parted(key, zone_h, ZONEOUT_H, t, b, s, u, dh_all)
            if zone_c is not None:
                held_c, dc_all = parted(key, zone_c, ZONEOUT_C, t, b, s, u, dc_all)
                after = cells.own_c(kept, previous)
            dx, da, passed = cells.backward(CELL, dh_all, dc_all, kept, second, previous, after)
            if CELL == 0 and zone_h is not None:
                passed += held_h
            if zone_c is not None:
                passed += held_c
            store_gradients(dgates_x, dq, row, u, H, (q < n) & (u < H), dx, da, CELL, G)
            next = row
            row = before
            before = row_at(q - 2, first, reverse, offsets, b, s, T, B, S)
            live = (q - 1 < n) & (n * 0 + q > 0) & (u < H)
            of_y, of_cs, previous, after = needed(
                dy, dcs, y, cs, h0, c0, q - 1, row, before, edge, u, H, live, CELL, AT
            )
            kept = load_tiles(gates, row, u, H, live, Z, AT)
            if dgates is not None:
                dkept = load_tiles(dgates, row, u, H, live, Z, AT)
            grid_sync(barrier + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), (i + 1) * tl.num_programs(2))
        else:
            tl.store(dh0 + edge + u, cast(dh, dh0.dtype.element_ty), mask=inside)
            if CELL == 1:
                tl.store(dc0 + edge + u, cast(dc, dc0.dtype.element_ty), mask=inside)
    finish_backward(dgates_x, dq, lengths, offsets, n, T, B, S, b, s, u, H, CELL, G)
