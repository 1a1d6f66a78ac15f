"""residual_chain: L bottleneck residual blocks on rows as one op."""

from functools import partial

import torch
from torch import Tensor

from .. import _backend
from ..reference import residual_chain as reference
from ..reference.residual_chain import Inputs
from . import residual_chain_autograd as autograd
from .arguments import (
    autocast_dtype,
    cast,
    check_activation,
    check_flags,
    check_rows,
    contiguous,
    misfit,
    need_grad,
    raise_misfit,
    rows,
)

OP = "residual_chain"
MOST_FEATURES = 128  # in Triton: of a block that a multiprocessor has room for
# In CUDA C++: the width of a block of threads, of which a cluster has 8; and the most features by what room they have.
CUDA_WIDTH, CUDA_CLUSTER = 1024, 8
OPTIONAL = ("down_bias", "mid", "mid_bias", "scale", "shift")


def check(inputs: Inputs, activation: str, return_features: bool) -> None:
    """All arguments fit together; ValueError or TypeError names the first that does not."""
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
    ups = l - 1 if return_features and isinstance(up, Tensor) and up.shape[:1] == (l - 1,) else l
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


def triton_limit(k: int) -> str | None:
    """Why the kernels in Triton cannot take these sizes."""
    if k <= MOST_FEATURES:
        return None
    return f"on a GPU, the kernels take up to {MOST_FEATURES} bottleneck features, got {k}"


def cuda_limit(inputs: Inputs, room: _backend.Room) -> str | None:
    """Why the kernels in CUDA C++ cannot take these sizes on a GPU."""
    _, k, m = inputs.down.shape
    kib = room.shared_bytes // 1024
    most = 192 if kib >= 227 else 128 if kib >= 163 else 64
    width = CUDA_WIDTH * (CUDA_CLUSTER if room.clusters else 1)
    if kib < 163 and inputs.x.dtype is torch.float32:
        return f"float32 needs more shared memory than this GPU's {kib} KiB"
    if k <= most and m <= width:
        return None
    return f"on this GPU, the kernels take up to {most} bottleneck features and a width of {width}, got {k} and {m}"


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

    The kernels' backward keeps of the stream only x_0 and x_L and steps back, x_{i-1} = x_i - up_i v_i, rounding once a
    step. If y was changed in place, it runs the forward again first. Known limit: where the first relu of a block other
    than the first reads exactly 0, the backward may see +-rounding there instead, so that relu's mask is 1 where
    torch's is 0 (leaky_relu: 1 for its slope). On a GPU, a row whose features are infinite or NaN cannot be stepped
    back: the gradients of its blocks but the first are those of an x_{i-1} that is NaN.

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
    check_flags(OP, pre_activation=pre_activation, return_features=return_features)
    inputs = Inputs(x, down, down_bias, mid, mid_bias, up, scale, shift)
    dtype = autocast_dtype(x)
    if dtype is not None:
        optional = {name: cast(getattr(inputs, name), dtype) for name in OPTIONAL}
        inputs = Inputs(x=cast(x, dtype), down=cast(down, dtype), up=cast(up, dtype), **optional)
    check(inputs, activation, return_features)
    l, k, m = inputs.down.shape
    backend = _backend.choose(
        OP, inputs.x, triton_limit(k), partial(cuda_limit, inputs), n=inputs.x.shape[0], m=m, k=k, l=l
    )
    y: Tensor
    features: Tensor | None
    if backend == "reference":
        y, features = reference.residual_chain_forward(*inputs, activation, pre_activation, return_features)
        return y if features is None else (y, features)
    laid_out = [rows("x", inputs.x), *map(contiguous, Inputs._fields[1:], inputs[1:])]
    if not need_grad(laid_out):
        run = autograd.forward_kernels[backend]
        y, features, _, _ = run(*laid_out, activation, pre_activation, return_features, False)
    else:
        options = backend, activation, pre_activation, return_features
        result = autograd.ResidualChainFunction.apply(*options, *laid_out)
        y, features = result if return_features else (result, None)
    if not return_features or features is None:
        return y
    return y, features.squeeze(2) if features.dim() == 4 else features
