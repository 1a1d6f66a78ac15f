"""Activations inside kernels, in float32, their derivatives, and the affine map in front of them.

The names and formulas are those of fastnest's reference.
"""

import triton
import triton.language as tl

IDEMPOTENT = ("relu", "identity")  # f(f(z)) = f(z), and f'(z) can be read off f(z)

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_INV_SQRT_TWO_PI = tl.constexpr(0.3989422804014327)
_SQRT_TWO_OVER_PI = tl.constexpr(0.7978845608028654)
_CUBIC = tl.constexpr(0.044715)
_LEAKY_SLOPE = tl.constexpr(0.01)


@triton.jit
def affine(x, scale, shift, column, of_column, AFFINE: tl.constexpr):
    """scale x + shift for a chunk of columns [rows, chunk], and scale."""
    factor = tl.full([1, 1], 1.0, tl.float32)
    u = x
    if AFFINE:
        factor = tl.load(scale + column, of_column, other=0).to(tl.float32)[None, :]
        u = x * factor + tl.load(shift + column, of_column, other=0).to(tl.float32)[None, :]
    return u, factor


@triton.jit
def tanh(z):
    # Of e^(-2|z|) <= 1, which does not overflow; libdevice's is not there on every target.
    t = tl.exp(-2 * tl.abs(z))
    value = (1 - t) / (1 + t)
    return tl.where(z < 0, -value, value)


@triton.jit
def activate(z, NAME: tl.constexpr):
    """f(z)."""
    if NAME == "relu":
        return tl.where(z < 0, 0.0, z)  # NaN stays
    elif NAME == "leaky_relu":
        return tl.where(z < 0, z * _LEAKY_SLOPE, z)
    elif NAME == "gelu":
        return 0.5 * z * (1 + tl.erf(z * _SQRT_HALF))
    elif NAME == "gelu_tanh":
        return 0.5 * z * (1 + tanh((z + z * z * z * _CUBIC) * _SQRT_TWO_OVER_PI))
    elif NAME == "silu":
        return z * tl.sigmoid(z)
    elif NAME == "tanh":
        return tanh(z)
    else:
        tl.static_assert(NAME == "identity", "unknown activation")
        return z


@triton.jit
def activate_backward(df, z, NAME: tl.constexpr):
    """f'(z) df; of relu and identity z may be f(z)."""
    if NAME == "relu":
        return tl.where(z <= 0, 0.0, df)
    elif NAME == "leaky_relu":
        return tl.where(z > 0, df, df * _LEAKY_SLOPE)
    elif NAME == "gelu":
        return df * (0.5 * (1 + tl.erf(z * _SQRT_HALF)) + z * tl.exp(-0.5 * z * z) * _INV_SQRT_TWO_PI)
    elif NAME == "gelu_tanh":
        # 1 + tanh(y) = 2 r or 2 r t, and 1 - tanh(y)^2 = 4 r^2 t: as differences from 1 they would lose the digits that
        # z times the slope of y then multiplies.
        y = (z + z * z * z * _CUBIC) * _SQRT_TWO_OVER_PI
        t = tl.exp(-2 * tl.abs(y))
        r = 1 / (1 + t)
        slope = (1 + z * z * (3 * _CUBIC)) * (2 * _SQRT_TWO_OVER_PI)
        return df * r * (tl.where(y < 0, t, 1.0) + z * (r * t) * slope)
    elif NAME == "silu":
        # sigmoid(z) and 1 - sigmoid(z) are r and r t, or the other way round, for the same reason.
        t = tl.exp(-tl.abs(z))
        r = 1 / (1 + t)
        return df * tl.where(z < 0, r * t, r) * (1 + z * tl.where(z < 0, r, r * t))
    elif NAME == "tanh":
        t = tanh(z)
        return df * (1 - t * t)
    else:
        return df
