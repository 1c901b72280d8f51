"""Which units zoneout and recurrent dropout hit, and what zoneout makes of a state and of its gradient.

Computes: the words of fusedrnn/philox.py, bit for bit, by Triton's own Philox of ten rounds.
Mapping: each unit draws its own block of four words and takes one. In the tiles of a product the units of a block lie
    in threads that do not meet, so that sharing it would cost a way through shared memory. Drawn four times it costs
    ten rounds of four products and four xors a unit, row and step, none of which waits for the state.
Memory: nothing is read but the key, which never leaves the device. Dropout's mask, one a sequence, is drawn once a call
    to [S, B, H], because the operand that it multiplies is read by many programs at every step.
Requires: a probability comes as the bits of a double, since Triton hands a Python float on as a float32; None: it is 0.
Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

import triton
import triton.language as tl

ZONEOUT_H = tl.constexpr(0)
ZONEOUT_C = tl.constexpr(1)
DROPOUT = tl.constexpr(2)


@triton.jit
def double(bits):
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def happens(key, rate, KIND: tl.constexpr, t, b, s, u):
    """Whether the event of probability `rate` takes place at time t in rows b [1, rows] and units u [units, 1]."""
    k = tl.load(key).to(tl.uint32)
    m = tl.load(key + 1).to(tl.uint32)
    block = (u // 4).to(tl.uint32)
    first, second, third, fourth = tl.philox_impl(
        t.to(tl.uint32), b.to(tl.uint32), block, (4 * s + KIND).to(tl.uint32), k, m
    )
    place = u % 4
    word = tl.where(place < 2, tl.where(place == 0, first, second), tl.where(place == 2, third, fourth))
    below = (double(rate) * 4294967296.0).to(tl.int64)  # from 0 to 2^32: what is compared has 32 bits, which is faster
    return (word <= (below - 1).to(tl.uint32)) & (below > 0)


@triton.jit
def zoneout(key, rate, KIND: tl.constexpr, t, b, s, u, old, new):
    """The state after zoneout: the old one or the new one where it is drawn, else the mean."""
    if rate is None:
        return new
    elif key is None:
        share = double(rate).to(new.dtype)
        return share * old + (1.0 - share) * new
    else:
        return tl.where(happens(key, rate, KIND, t, b, s, u), old, new)


@triton.jit
def parted(key, rate, KIND: tl.constexpr, t, b, s, u, gradient):
    """Its adjoint: the gradients of the old state and of the new one."""
    if key is None:
        share = double(rate).to(gradient.dtype)
        return share * gradient, (1.0 - share) * gradient
    else:
        held = happens(key, rate, KIND, t, b, s, u)
        return tl.where(held, gradient, 0.0), tl.where(held, 0.0, gradient)


@triton.jit
def seen(dropout, edge, mask, state):
    """What W_hh sees of a tile of states, or what of its gradient comes back."""
    if dropout is None:
        return state
    else:
        return state * tl.load(dropout + edge, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["rate", "scale", "B", "H"])
def draw_dropout(dropout, key, rate, scale, B, H, UNITS: tl.constexpr, ROWS: tl.constexpr):
    """Dropout's mask [S, B, H], a program a tile: 0 with probability `rate`, else `scale`."""
    s = tl.program_id(2)
    b = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[None, :]
    u = tl.program_id(0) * UNITS + tl.arange(0, UNITS)[:, None]
    dropped = happens(key, rate, DROPOUT, b * 0, b, s, u)
    factor = tl.where(dropped, 0.0, double(scale)).to(dropout.dtype.element_ty)
    tl.store(dropout + (s * B + b).to(tl.int64) * H + u, factor, mask=(b < B) & (u < H))
