"""L bottleneck residual blocks on rows, by definition.

For i = 1..L, with x_0 = x [n, m], weights down_i [k, m], mid_i [k, k], up_i [m, k], and f the activation:

    u_i = scale_i * x_{i-1} + shift_i        (or x_{i-1})
    a_i = f(u_i) with pre_activation, else u_i
    z_i = down_i a_i + down_bias_i           h_i = f(z_i)
    with mid:  z'_i = mid_i h_i + mid_bias_i v_i = f(z'_i);    without: v_i = h_i
    x_i = x_{i-1} + up_i v_i                 (arXiv 2111.05496, equation 1, with the activation inside)

With L - 1 blocks in `up`, the last block yields only its features v_L (A-ResNEst) and x_L = x_{L-1}.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .activation import IDEMPOTENT, activate, activate_backward


class Inputs(NamedTuple):
    """The tensors of one call, in the order of every function of this op; None is absent. Also their gradients."""

    x: Tensor
    down: Tensor
    down_bias: Tensor | None
    mid: Tensor | None
    mid_bias: Tensor | None
    up: Tensor
    scale: Tensor | None
    shift: Tensor | None


def _blocks(down: Tensor, *weights: Tensor | None) -> list[tuple[Any, ...]]:
    """The weights block by block: l tuples of tensors, None where absent."""
    # unbind, whose gradient is one stack: the gradient of weight[i] would be as large as all of weight.
    l = down.shape[0]
    return list(zip(*((None,) * l if t is None else t.unbind(0) for t in (down, *weights)), strict=True))


class _Values(NamedTuple):
    """Every value of one block: z_mid is z', None without mid; v are its features."""

    u: Tensor
    a: Tensor
    z: Tensor
    h: Tensor
    z_mid: Tensor | None
    v: Tensor


def _features(x: Tensor, block: tuple[Any, ...], activation: str, pre_activation: bool) -> _Values:
    down, down_bias, mid, mid_bias, scale, shift = block
    u = x if scale is None else torch.addcmul(shift, x, scale)
    a = activate(activation, u) if pre_activation else u
    z = F.linear(a, down, down_bias)
    h = v = activate(activation, z)
    z_mid = None
    if mid is not None:
        z_mid = F.linear(h, mid, mid_bias)
        v = activate(activation, z_mid)
    return _Values(u, a, z, h, z_mid, v)


def residual_chain_forward(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    mid: Tensor | None,
    mid_bias: Tensor | None,
    up: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    pre_activation: bool,
    features: bool,
) -> tuple[Tensor, Tensor | None]:
    """x_L [n, m], and the features v_1..v_L [n, l, k] if asked for."""
    ups = up.unbind(0)
    kept = []
    for i, block in enumerate(_blocks(down, down_bias, mid, mid_bias, scale, shift)):
        v = _features(x, block, activation, pre_activation).v
        if features:
            kept.append(v)
        if i < len(ups):
            x = x + F.linear(v, ups[i])
    if not ups:  # a result of its own, as everywhere
        x = x.clone()
    return x, torch.stack(kept, 1) if features else None


def residual_chain_backward(
    dy: Tensor | None,
    dfeatures: Tensor | None,
    x: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    mid: Tensor | None,
    mid_bias: Tensor | None,
    up: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    pre_activation: bool,
) -> Inputs:
    """The gradients of every tensor given those of y [n, m] and of the features [n, l, k] (either may be None).

    From block L down to 1, with g = dL/dx_i and w_i the gradient of the features from outside:

        dv = up_i^T g + w_i         dup_i = g^T v_i
        dz' = f'(z') dv             dmid_i = dz'^T h      dmid_bias_i = sum_n dz'     dh = mid_i^T dz'
        dz = f'(z) dh               ddown_i = dz^T a      ddown_bias_i = sum_n dz
        du = f'(u) down_i^T dz      dscale_i = sum_n du x_{i-1}           dshift_i = sum_n du
        g <- g + scale_i du

    The stream x_0..x_L is computed again from x. Made of differentiable operations, so it has derivatives of its own.
    """
    ups = up.unbind(0)
    blocks = []
    for i, block in enumerate(_blocks(down, down_bias, mid, mid_bias, scale, shift)):
        blocks.append((x, block, _features(x, block, activation, pre_activation)))
        if i < len(ups):
            x = x + F.linear(blocks[i][2].v, ups[i])

    g = torch.zeros_like(x) if dy is None else dy
    ddown, ddown_bias, dmid, dmid_bias, dup, dscale, dshift = ([] for _ in range(7))
    for i, (x, (down_i, _, mid_i, _, scale_i, _), at) in reversed(list(enumerate(blocks))):
        dv = torch.zeros_like(at.v) if dfeatures is None else dfeatures[:, i]
        if i < len(ups):
            dup.append(g.t() @ at.v)
            dv = dv + g @ ups[i]
        if at.z_mid is not None:
            dz_mid = activate_backward(activation, dv, at.z_mid)
            dmid.append(dz_mid.t() @ at.h)
            dmid_bias.append(dz_mid.sum(0))
            dv = dz_mid @ mid_i
        dz = activate_backward(activation, dv, at.z)
        ddown.append(dz.t() @ at.a)
        ddown_bias.append(dz.sum(0))
        du = dz @ down_i
        if pre_activation:
            du = activate_backward(activation, du, at.u)
        if scale_i is not None:
            dscale.append((du * x).sum(0))
            dshift.append(du.sum(0))
            du = du * scale_i
        g = g + du

    def stacked(gradients: list[Tensor], argument: Tensor) -> Tensor:
        """From the last block to the first, as the argument lies: from the first to the last."""
        return torch.stack(gradients[::-1]) if gradients else torch.zeros_like(argument)

    def stacked_or_none(gradients: list[Tensor], argument: Tensor | None) -> Tensor | None:
        return None if argument is None else stacked(gradients, argument)

    return Inputs(
        x=g,
        down=stacked(ddown, down),
        down_bias=stacked_or_none(ddown_bias, down_bias),
        mid=stacked_or_none(dmid, mid),
        mid_bias=stacked_or_none(dmid_bias, mid_bias),
        up=stacked(dup, up),
        scale=stacked_or_none(dscale, scale),
        shift=stacked_or_none(dshift, shift),
    )


def features_in_hidden(activation: str, mid: Tensor | None) -> bool:
    """Whether what a kernel keeps for the backward, hidden [n, l, 1, k], is the features themselves."""
    return activation in IDEMPOTENT and mid is None


def residual_chain_forward_fake(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    mid: Tensor | None,
    mid_bias: Tensor | None,
    up: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    pre_activation: bool,
    features: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shapes and dtypes of the kernels' (y, features, hidden, stream), for torch.compile; [0] where not asked for."""
    n, m = x.shape
    l, k, _ = down.shape
    in_hidden = save and features_in_hidden(activation, mid)
    half = x.dtype in (torch.bfloat16, torch.float16)
    return (
        x.new_empty(n, m),
        x.new_empty(n, l, k) if features and not in_hidden else x.new_empty(0),
        x.new_empty(n, l, 1 if mid is None else 2, k) if save else x.new_empty(0),
        x.new_empty(n, m, dtype=torch.float32) if save and half else x.new_empty(0, dtype=torch.float32),
    )


def residual_chain_backward_fake(
    dy: Tensor | None,
    dfeatures: Tensor | None,
    x: Tensor,
    stream: Tensor,
    hidden: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    mid: Tensor | None,
    mid_bias: Tensor | None,
    up: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    pre_activation: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Shapes and dtypes of the kernels' gradients, for torch.compile; [0] for an absent argument."""
    dx, ddown, dup = (t.new_empty(t.shape) for t in (x, down, up))
    ddown_bias, dmid, dmid_bias, dscale, dshift = (
        x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (down_bias, mid, mid_bias, scale, shift)
    )
    return dx, ddown, ddown_bias, dmid, dmid_bias, dup, dscale, dshift
