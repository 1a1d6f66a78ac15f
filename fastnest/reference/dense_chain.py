"""L concatenating dense growths on rows, by definition.

For i = 1..L, with x_0 = x [n, m_0], f the activation and u_i = scale_i * x_{i-1} + shift_i (or x_{i-1}):

    pre_activation (before every linear map):     q_i = W_i f(u_i) + b_i           or  W_i f(V_i f(u_i) + c_i) + b_i
    otherwise (after every linear map):           q_i = f(W_i u_i + b_i)           or  f(W_i f(V_i u_i + c_i) + b_i)
    x_i = [x_{i-1}, q_i]  [n, m_i],  m_i = m_{i-1} + d_i       (arXiv 2111.05496, equation 9)

W_i is weight[i] [d_i, m_{i-1}], or [d_i, h_i] with hidden_weight[i] = V_i [h_i, m_{i-1}]; b_i and c_i are the biases.
Every list has one tensor per block, or none at all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .activation import IDEMPOTENT, activate, activate_backward


class Weights(NamedTuple):
    """The lists of one call, one tensor per block; an empty list is absent. Also the shape of their gradients."""

    weight: Sequence[Tensor]
    bias: Sequence[Tensor]
    hidden_weight: Sequence[Tensor]
    hidden_bias: Sequence[Tensor]
    scale: Sequence[Tensor]
    shift: Sequence[Tensor]

    def block(self, i: int) -> "_Block":
        optional = (blocks[i] if blocks else None for blocks in self[1:])
        return _Block(self.weight[i], *optional)


class _Block(NamedTuple):
    """The weights of one block; None is absent."""

    weight: Tensor
    bias: Tensor | None
    hidden_weight: Tensor | None
    hidden_bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None


class _Values(NamedTuple):
    """Every value of one block: a is what the first linear map reads, z_h None without a hidden layer."""

    u: Tensor
    a: Tensor
    z_h: Tensor | None
    h: Tensor
    z: Tensor
    q: Tensor


def _growth(x: Tensor, block: _Block, activation: str, pre_activation: bool) -> _Values:
    weight, bias, hidden_weight, hidden_bias, scale, shift = block
    u = x if scale is None or shift is None else torch.addcmul(shift, x, scale)
    a = h = activate(activation, u) if pre_activation else u
    z_h = None
    if hidden_weight is not None:
        z_h = F.linear(a, hidden_weight, hidden_bias)
        h = activate(activation, z_h)
    z = F.linear(h, weight, bias)
    q = z if pre_activation else activate(activation, z)
    return _Values(u, a, z_h, h, z, q)


def dense_chain_forward(x: Tensor, weights: Weights, activation: str, pre_activation: bool) -> Tensor:
    """x_L [n, m_L]."""
    for i in range(len(weights.weight)):
        x = torch.cat([x, _growth(x, weights.block(i), activation, pre_activation).q], 1)
    return x


def dense_chain_backward(
    dy: Tensor, x: Tensor, weights: Weights, activation: str, pre_activation: bool
) -> tuple[Tensor, Weights]:
    """The gradients of x [n, m_0] and of every weight, given dy [n, m_L].

    From block L down to 1, with [g, dq] = dL/dx_i split at m_{i-1}:

        dz = dq with pre_activation, else f'(z) dq       dW_i = dz^T h       db_i = sum_n dz       dh = W_i^T dz
        with V_i: dz_h = f'(z_h) dh                      dV_i = dz_h^T a     dc_i = sum_n dz_h     dh <- V_i^T dz_h
        du = f'(u) dh with pre_activation, else dh       dscale_i = sum_n du x_{i-1}               dshift_i = sum_n du
        g <- g + scale_i du

    The blocks are computed again from x. Made of differentiable operations, so it has derivatives of its own.
    """
    blocks = []
    for i in range(len(weights.weight)):
        blocks.append((x, _growth(x, weights.block(i), activation, pre_activation)))
        x = torch.cat([x, blocks[-1][1].q], 1)

    dweight: list[Tensor] = []
    dbias: list[Tensor] = []
    dhidden_weight: list[Tensor] = []
    dhidden_bias: list[Tensor] = []
    dscale: list[Tensor] = []
    dshift: list[Tensor] = []
    g = dy
    for i, (x, at) in reversed(list(enumerate(blocks))):
        weight, bias, hidden_weight, hidden_bias, scale, _ = weights.block(i)
        g, dz = g[:, : x.shape[1]], g[:, x.shape[1] :]
        if not pre_activation:
            dz = activate_backward(activation, dz, at.z)
        dweight.append(dz.t() @ at.h)
        if bias is not None:
            dbias.append(dz.sum(0))
        du = dz @ weight
        if hidden_weight is not None and at.z_h is not None:
            dz_h = activate_backward(activation, du, at.z_h)
            dhidden_weight.append(dz_h.t() @ at.a)
            if hidden_bias is not None:
                dhidden_bias.append(dz_h.sum(0))
            du = dz_h @ hidden_weight
        if pre_activation:
            du = activate_backward(activation, du, at.u)
        if scale is not None:
            dscale.append((du * x).sum(0))
            dshift.append(du.sum(0))
            du = du * scale
        g = g + du
    gradients = (dweight, dbias, dhidden_weight, dhidden_bias, dscale, dshift)
    return g, Weights(*(per_block[::-1] for per_block in gradients))


def dense_chain_forward_fake(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor] | None,
    hidden_weight: Sequence[Tensor] | None,
    hidden_bias: Sequence[Tensor] | None,
    scale: Sequence[Tensor] | None,
    shift: Sequence[Tensor] | None,
    activation: str,
    pre_activation: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of the kernels' (y, hidden), for torch.compile."""
    n, m = x.shape
    grown = sum(w.shape[0] for w in weight)
    kept = sum(w.shape[0] for w in hidden_weight or ())
    if not pre_activation and activation not in IDEMPOTENT:
        kept += grown
    return x.new_empty(n, m + grown), x.new_empty(n, kept) if save else x.new_empty(0)


def dense_chain_backward_fake(
    dy: Tensor,
    y: Tensor,
    hidden: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor] | None,
    hidden_weight: Sequence[Tensor] | None,
    hidden_bias: Sequence[Tensor] | None,
    scale: Sequence[Tensor] | None,
    shift: Sequence[Tensor] | None,
    activation: str,
    pre_activation: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Shapes and dtypes of the kernels' gradients, for torch.compile."""
    m = y.shape[1] - sum(w.shape[0] for w in weight)

    def like(tensors: Sequence[Tensor] | None) -> list[Tensor]:
        return [t.new_empty(t.shape) for t in tensors or ()]

    lists = like(weight), like(bias), like(hidden_weight), like(hidden_bias), like(scale), like(shift)
    return y.new_empty(y.shape[0], m), *lists
