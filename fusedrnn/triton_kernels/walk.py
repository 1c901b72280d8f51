"""Where a row is at which step, and the tiles that go with it.

Every row walks its own steps: step q = 0 .. n-1 is time q, in a reverse stream time n-1-q. All rows begin at step 0 and
only end early; a program stops at its longest row. A row outside the batch has n = 0, so that `q < n` is the only
condition on rows there is.
"""

import triton
import triton.language as tl

NUMBERS = ("T", "B", "S", "blocks", "D", "len_s", "len_b", "rst_t", "rst_b", "rst_s", "zone_h", "zone_c")
"""Arguments of the kernels for whose values none is compiled anew."""


@triton.jit
def rows(lengths, T, B, b, s, D, len_s, len_b):
    """Of the rows b [1, rows] of stream s: the steps n of each, the time of step 0, and whether time runs backwards."""
    if lengths is None:
        n = tl.where(b < B, T, 0)
    else:
        n = tl.load(lengths + s * len_s + b * len_b, mask=b < B, other=0)
        n = tl.minimum(tl.maximum(n, 0), T).to(tl.int32)
    reverse = (s % D).to(tl.int32)
    return n, reverse * (n - 1), reverse


@triton.jit
def longest(lengths, n, T):
    """The steps of the program: those of its longest row."""
    if lengths is None:
        return T
    else:
        return tl.max(n)


@triton.jit
def time_at(q, first, reverse):
    """The time of step q."""
    return first + q * (1 - 2 * reverse)


@triton.jit
def row_at(q, first, reverse, offsets, b, s, T, B, S):
    """Where step q of the rows lies among the fewer than 2^31 rows [T, B, S] (packed: [N, S]) of a sequence.

    The step may be none; what is read there is masked. 64 bits wide, because the row times H may need them.
    """
    t = time_at(q, first, reverse)
    if offsets is None:
        step = t * B
    else:
        step = tl.load(offsets + t, mask=(t >= 0) & (t < T), other=0).to(tl.int32)
    return ((step + b) * S + s).to(tl.int64)


@triton.jit
def cut_at(q, n, first, reverse, reset, b, s, rst_t, rst_b, rst_s):
    """Whether the state is dropped before step q.

    A reset at time t stands between times t-1 and t, whichever of them comes first: a reverse stream drops what it
    brings from t to t-1. None stands before the first step of a reverse stream.
    """
    boundary = (time_at(q, first, reverse) + reverse).to(tl.int64)
    there = (q < n) & (boundary < n)
    return tl.load(reset + boundary * rst_t + b * rst_b + s * rst_s, mask=there, other=0) != 0


@triton.jit
def load_tiles(p, row, u, H, mask, N: tl.constexpr, AT: tl.constexpr):
    """The N tiles of a [..., N*H] tensor."""
    tiles = ()
    for g in tl.static_range(N):
        tiles = tiles + (tl.load(p + row * (N * H) + (g * H + u), mask=mask, other=0.0).to(AT),)
    return tiles


@triton.jit
def load_state(p, edge, mask, AT: tl.constexpr):
    """A tile of an initial state or of a last state's gradient [S, B, H]; an absent one is zero."""
    if p is None:
        return tl.zeros(mask.shape, AT)
    else:
        return tl.load(p + edge, mask=mask, other=0.0).to(AT)


@triton.jit
def state_before(p, p0, q, before, edge, u, H, mask, AT: tl.constexpr, CACHE: tl.constexpr):
    """A tile of the stored states p [T, B, S, H] that step q starts from, row `before`, or from p0 if q is 0."""
    source = p
    offset = before * H
    if p0 is None:
        mask = mask & (before * 0 + q > 0)
    else:
        if q == 0:  # a select between pointers would hide from the compiler that neighbours lie side by side
            source = p0
            offset = edge
    return tl.load(source + (offset + u), mask=mask, other=0.0, cache_modifier=CACHE).to(AT)


@triton.jit
def zero_tail(p, n, T, B, S, b, s, u, H, N: tl.constexpr):
    """Zeros a [T, B, S, N*H] tensor beyond the rows' ends."""
    for t in range(tl.min(tl.where(b < B, n, T)), T):
        row = ((t * B + b) * S + s).to(tl.int64)
        dead = (t >= n) & (b < B) & (u < H)
        for g in tl.static_range(N):
            tl.store(p + row * (N * H) + (g * H + u), tl.zeros(dead.shape, p.dtype.element_ty), mask=dead)


@triton.jit
def grid_sync(barrier, goal):
    """All programs that share `barrier` (an int32 that was 0) meet; goal: how many arrivals there are by then."""
    tl.debug_barrier()  # every warp's stores come before the release
    tl.atomic_add(barrier, 1, sem="release", scope="gpu")
    while tl.atomic_add(barrier, 0, sem="acquire", scope="gpu") < goal:
        pass
    tl.debug_barrier()  # the acquire comes before every warp's loads
