"""residual_chain: L bottleneck residual blocks on rows as one op."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _backend
from ..reference import residual_chain as reference
from .arguments import (
    autocast_dtype,
    cast,
    check_activation,
    check_rows,
    contiguous,
    misfit,
    need_grad,
    raise_misfit,
    rows,
)

OP = "residual_chain"

if _backend.CPP_IS_BUILT:
    torch.library.register_fake("fastnest::residual_chain_forward")(reference.residual_chain_forward_fake)
    torch.library.register_fake("fastnest::residual_chain_backward")(reference.residual_chain_backward_fake)
    _forward = torch.ops.fastnest.residual_chain_forward.default
    _backward = torch.ops.fastnest.residual_chain_backward.default


class Sizes(NamedTuple):
    """n rows, m width, k bottleneck features, l blocks, of which `ups` end in an up-projection."""

    n: int
    m: int
    k: int
    l: int
    ups: int


class Inputs(NamedTuple):
    """The tensors of one call, in the order of every function of this op."""

    x: Tensor
    down: Tensor
    down_bias: Tensor | None
    mid: Tensor | None
    mid_bias: Tensor | None
    up: Tensor
    scale: Tensor | None
    shift: Tensor | None


def check(inputs: Inputs, activation: str, return_features: bool) -> Sizes:
    """The sizes of a call whose arguments fit together; ValueError or TypeError names the one that does not."""
    x, down, down_bias, mid, mid_bias, up, scale, shift = inputs
    check_activation(OP, activation)
    if not isinstance(down, Tensor) or down.dim() != 3 or 0 in down.shape:
        got = list(down.shape) if isinstance(down, Tensor) else type(down).__name__
        error = ValueError if isinstance(down, Tensor) else TypeError
        raise error(f"{OP}: down must be [blocks, bottleneck, width] with no size 0, got {got}")
    n, features = x.shape
    l, k, m = down.shape
    if features != m:
        raise ValueError(f"{OP}: x must have {m} features to match down {[l, k, m]}, got x {[n, features]}")
    # One block less ends in its features, which then have to be asked for.
    ups = l - 1 if return_features and isinstance(up, Tensor) and up.shape[0] == l - 1 else l
    expected = (
        ("down", down, (l, k, m)),
        ("down_bias", down_bias, (l, k)),
        ("mid", mid, (l, k, k)),
        ("mid_bias", mid_bias, (l, k)),
        ("up", up, (ups, m, k)),
        ("scale", scale, (l, m)),
        ("shift", shift, (l, m)),
    )
    wrong = misfit(x, expected)
    if wrong is not None:
        raise_misfit(OP, x, wrong, f"down {[l, k, m]}")
    if up is None:
        raise TypeError(f"{OP}: up must be a torch.Tensor, got NoneType")
    if mid_bias is not None and mid is None:
        raise ValueError(f"{OP}: mid_bias needs mid, got mid None")
    if (scale is None) != (shift is None):
        raise ValueError(f"{OP}: scale and shift go together, got {'scale' if shift is None else 'shift'} alone")
    return Sizes(n, m, k, l, ups)


class _ResidualChain(torch.autograd.Function):
    """The kernels' forward and backward. Keeps the inputs, the end of the stream, and `hidden` [n, l, 1 or 2, k].

    Returns y, and second the features if asked for: as `hidden` where the kernel keeps the same values there.
    """

    @staticmethod
    def forward(ctx, activation, pre_activation, return_features, *inputs):
        y, features, hidden, stream = _forward(*inputs, activation, pre_activation, return_features, True)
        # The kernel's float32 stream ends in y itself; a rounded y would not give the stream back.
        stream = y if y.dtype is torch.float32 else stream
        ctx.save_for_backward(*inputs, stream, hidden)
        ctx.activation, ctx.pre_activation = activation, pre_activation
        ctx.set_materialize_grads(False)
        if not return_features:
            return y
        return y, hidden if reference.features_in_hidden(activation, Inputs(*inputs).mid) else features

    @staticmethod
    def backward(ctx, dy, dfeatures=None):
        *inputs, stream, hidden = ctx.saved_tensors
        inputs = Inputs(*inputs)
        if dfeatures is not None and dfeatures.dim() == 4:
            dfeatures = dfeatures.squeeze(2)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The graph of this backward is asked for: by the definition, which is made of differentiable operations.
            with torch.autocast(inputs.x.device.type, enabled=False):
                options = ctx.activation, ctx.pre_activation
                gradients = reference.residual_chain_backward(dy, dfeatures, *inputs, *options)
        else:
            dy, dfeatures = rows("dy", dy), contiguous("dfeatures", dfeatures)
            x, *weights = inputs
            gradients = _backward(dy, dfeatures, x, stream, hidden, *weights, ctx.activation, ctx.pre_activation)
            gradients = [None if t is None else g for t, g in zip(inputs, gradients, strict=True)]
        return None, None, None, *gradients


def residual_chain(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    *,
    down_bias: Tensor | None = None,
    mid: Tensor | None = None,
    mid_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "relu",
    pre_activation: bool = True,
    return_features: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """L bottleneck residual blocks, x_i = x_{i-1} + up_i v_i with v_i = f(down_i f(x_{i-1}) + down_bias_i), i = 1..L.

    The ResNEst of arXiv 2111.05496, equation 1, with the bottleneck as G_i. With `mid`, v_i = f(mid_i h_i + mid_bias_i)
    of h_i = f(down_i f(x_{i-1}) + down_bias_i). `scale` and `shift` apply to x_{i-1} before the first activation (a
    folded batch norm). With one block less in `up`, the last block yields its features only, and x_L = x_{L-1}
    (A-ResNEst).

    Args:
        x: the rows [n, m], float32, bfloat16 or float16 for the kernels (float64 runs the reference). Rows may be
            strided; where the stride along features is not 1 the kernel reads a copy.
        down: the first linear maps [l, k, m]; every other tensor has x's dtype and device.
        up: the last linear maps [l, m, k], or [l - 1, m, k] with return_features=True.
        down_bias: [l, k], default none.
        mid: [l, k, k], default none.
        mid_bias: [l, k], default none; needs mid.
        scale, shift: [l, m], default none; both or neither.
        activation: f, one of relu, gelu, gelu_tanh, silu, tanh, leaky_relu (slope 0.01), identity.
        pre_activation: whether f is also applied before down.
        return_features: whether to return v_1..v_L too.

    Returns:
        y = x_L [n, m], or with return_features=True (y, features [n, l, k]).

    Raises:
        ValueError, TypeError: naming the argument that does not fit, what was expected and what came.
        RuntimeError: where a forced backend (`fastnest.backend`) cannot take the call.
    """
    check_rows(OP, x)
    inputs = Inputs(x, down, down_bias, mid, mid_bias, up, scale, shift)
    dtype = autocast_dtype(x)
    if dtype is not None:
        inputs = Inputs(*(cast(tensor, dtype) for tensor in inputs))
    check(inputs, activation, return_features)
    if _backend.choose(OP, inputs.x) == "reference":
        y, features = reference.residual_chain_forward(*inputs, activation, pre_activation, return_features)
        return (y, features) if return_features else y
    inputs = [rows("x", inputs.x), *map(contiguous, Inputs._fields[1:], inputs[1:])]
    if not need_grad(inputs):
        y, features, _, _ = _forward(*inputs, activation, pre_activation, return_features, False)
        return (y, features) if return_features else y
    if not return_features:
        return _ResidualChain.apply(activation, pre_activation, False, *inputs)
    y, features = _ResidualChain.apply(activation, pre_activation, True, *inputs)
    return y, features.squeeze(2) if features.dim() == 4 else features
