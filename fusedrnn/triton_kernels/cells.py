"""One step of every cell, forward and backward, on tiles [units, rows], and the few helpers that know about dtypes.

The names, the order and the formulas are those of csrc/cells.

    cell        gates    kept for backward             the state that no matrix multiplies
    0  GRU      r z n    r z n q (q = W_hn h + b_hn)   forward h, backward dh z
    1  LSTM     i f g o  i f g o                       forward c, backward dc
    2  tanh     h        nothing: the output itself    none
    3  relu     h        nothing: the output itself    none

`x` are the input halves of the pre-activations, `a` the recurrent halves, bias included. Everything is in the type of
the accumulators: float32, or float64 for float64.
"""

import triton
import triton.language as tl

INTERPRET = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def cast(x, DT: tl.constexpr):
    """x as DT, to nearest even. Triton's interpreter would truncate to bfloat16."""
    if INTERPRET and DT == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        rounded = bits.to(tl.float32, bitcast=True)
        x = tl.where(x == x, rounded, x)  # the carry would make a number of a NaN
    return x.to(DT)


@triton.jit
def dot(w, v, acc, PRECISION: tl.constexpr):
    """acc + w @ v. Triton's interpreter would multiply the bit patterns of bfloat16."""
    if INTERPRET and w.dtype == tl.bfloat16:
        w = w.to(tl.float32)
        v = v.to(tl.float32)
    return tl.dot(w, v, acc=acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def hyperbolic_tangent(x):
    """To a few roundings of itself: near zero by Cephes' polynomials, else by exp, which saturates without an overflow.

    Everything is of what the interpreter has. By exp alone small states would drown in the roundings of 1.
    """
    s = x * x
    if x.dtype == tl.float64:
        p = (-9.64399179425052238628e-1 * s - 9.92877231001918586564e1) * s - 1.61468768441708447952e3
        q = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3
        p = p / q
    else:
        p = (2.06390887954531e-2 - 5.70498872745345e-3 * s) * s - 5.37397155531373e-2
        p = (p * s + 1.33314422036078e-1) * s - 3.33332819422229e-1
    return tl.where(s < 0.390625, x + x * (s * p), 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0)


@triton.jit
def forward(CELL: tl.constexpr, x, a, h, c):
    """The next h and c, and what backward needs of the step; c is the LSTM's, other cells hand it through."""
    kept = ()
    if CELL == 0:
        r = sigmoid(x[0] + a[0])
        z = sigmoid(x[1] + a[1])
        n = hyperbolic_tangent(x[2] + r * a[2])
        h = n + z * (h - n)
        kept = (r, z, n, a[2])
    elif CELL == 1:
        i = sigmoid(x[0] + a[0])
        f = sigmoid(x[1] + a[1])
        g = hyperbolic_tangent(x[2] + a[2])
        o = sigmoid(x[3] + a[3])
        c = f * c + i * g
        h = o * hyperbolic_tangent(c)
        kept = (i, f, g, o)
    elif CELL == 2:
        h = hyperbolic_tangent(x[0] + a[0])
    else:
        p = x[0] + a[0]
        h = tl.where(p < 0.0, 0.0, p)  # a NaN stays one
    return h, c, kept


@triton.jit
def own_c(kept, before):
    """What the LSTM made of c, where zoneout may have kept the one before."""
    return kept[1] * before + kept[0] * kept[2]


@triton.jit
def backward(CELL: tl.constexpr, dh, dc, kept, dkept, before, after):
    """The gradients of `x`, of `a`, and of the state that no matrix multiplies.

    Args:
        dh: gradient of the step's h.
        dc: gradient of the step's c; for the LSTM.
        kept: what forward kept; for the RNNs nothing.
        dkept: gradients that reach `kept` from a second derivative; None in the first.
        before: the state before the step, the GRU's h or the LSTM's c.
        after: the state after the step, the LSTM's c or the RNN's h.
    """
    if CELL == 0:
        r, z, n, q = kept
        dn = dh * (1.0 - z)
        dz = dh * (before - n)
        if dkept is not None:
            dn += dkept[2]
            dz += dkept[1]
        dn = dn * (1.0 - n * n)
        dz = dz * z * (1.0 - z)
        dr = dn * q
        dq = dn * r
        if dkept is not None:
            dr += dkept[0]
            dq += dkept[3]
        dr = dr * r * (1.0 - r)
        dx = (dr, dz, dn)
        da = (dr, dz, dq)
        passed = dh * z
    elif CELL == 1:
        i, f, g, o = kept
        t = hyperbolic_tangent(after)
        dc += dh * o * (1.0 - t * t)
        di = dc * g
        df = dc * before
        dg = dc * i
        do = dh * t
        if dkept is not None:
            di += dkept[0]
            df += dkept[1]
            dg += dkept[2]
            do += dkept[3]
        dx = (di * i * (1.0 - i), df * f * (1.0 - f), dg * (1.0 - g * g), do * o * (1.0 - o))
        da = dx
        passed = dc * f
    else:
        if CELL == 2:
            dp = dh * (1.0 - after * after)
        else:
            dp = tl.where(after <= 0.0, 0.0, dh)  # a select: 0 * Inf must not become NaN
        dx = (dp,)
        da = dx
        passed = dp
    return dx, da, passed
