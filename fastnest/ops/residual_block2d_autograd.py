"""bottleneck2d and basic_block2d: the kernels' forwards and backwards, joined for autograd."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import basic_block2d, bottleneck2d
from ..reference.residual_block2d import LEARNED, Weights, residual_block2d_backward
from .arguments import present, unflat
from .image import channels_last
from .library import kernels
from .saved import saved_tensors

REFERENCES = {"bottleneck2d": bottleneck2d, "basic_block2d": basic_block2d}
KINDS = {op: reference.KIND for op, reference in REFERENCES.items()}
KERNELS = {
    name: kernels(name, getattr(reference, f"{name}_fake"))
    for op, reference in REFERENCES.items()
    for name in (f"{op}_forward", f"{op}_backward")
}


def kernel_forward(
    op: str, backend: str, x: Tensor, weights: Weights, stride: int, eps: float, features: bool, save: bool
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """The kernels' (y, features, hidden, mean, var)."""
    y, v, hidden, mean, var = KERNELS[f"{op}_forward"][backend](x, *_for_kernel(weights), stride, eps, features, save)
    return y, v, hidden, mean, var


class ResidualBlock2dFunction(torch.autograd.Function):
    """The kernels' forward and backward. Keeps x, the weights, the images between convolutions and the statistics.

    Returns y, the features if asked for, and the batch's means and variances, which have no gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        op: str,
        backend: str,
        stride: int,
        eps: float,
        return_features: bool,
        lengths: tuple[int, ...],
        x: Tensor,
        *flat: Tensor,
    ) -> tuple[Tensor, ...]:
        weights = unflat(Weights, flat, lengths)
        y, features, hidden, mean, var = kernel_forward(op, backend, x, weights, stride, eps, return_features, True)
        ctx.save_for_backward(x, *flat, *hidden, *mean, *var)
        ctx.mark_non_differentiable(*mean, *var)
        ctx.set_materialize_grads(False)
        ctx.op, ctx.backend, ctx.stride, ctx.eps = op, backend, stride, eps
        ctx.return_features, ctx.lengths = return_features, lengths
        return y, *((features,) if return_features else ()), *mean, *var

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        dfeatures = others[0] if ctx.return_features else None
        (x, *rest), by_definition, _ = saved_tensors(ctx, ctx.op, dy, dfeatures)
        weights, rest = unflat(Weights, rest, ctx.lengths), rest[sum(ctx.lengths) :]
        if by_definition:
            with torch.autocast(x.device.type, enabled=False):
                given = _biases_as(x.dtype, weights)
                dx, by_list = residual_block2d_backward(KINDS[ctx.op], dy, dfeatures, x, given, ctx.stride, ctx.eps)
        else:
            dx, by_list = _kernel_backward(ctx, dy, dfeatures, x, weights, rest)
        nothing = {name: [None] * length for name, length in zip(Weights._fields, ctx.lengths, strict=True)}
        return (None,) * 6 + (dx, *(d for name, none in nothing.items() for d in by_list.get(name, none)))


def _kernel_backward(
    ctx: Any,
    dy: Tensor | None,
    dfeatures: Tensor | None,
    x: Tensor,
    weights: Weights,
    saved: Sequence[Tensor],
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    hidden, statistics = saved[: len(weights.conv) - 1], saved[len(weights.conv) - 1 :]
    training, half = weights.uses_batch_statistics(), len(statistics) // 2
    if training:
        weights = weights._replace(norm_mean=statistics[:half], norm_var=statistics[half:])
    dy = None if dy is None else channels_last("dy", dy)
    dfeatures = None if dfeatures is None else channels_last("dfeatures", dfeatures)
    dx, *lists, projection, projection_bias = KERNELS[f"{ctx.op}_backward"][ctx.backend](
        dy, dfeatures, x, hidden, *_for_kernel(weights), ctx.stride, ctx.eps, training
    )
    found = zip(LEARNED, (*lists, [projection], [projection_bias]), strict=True)
    return dx, {name: gradients[: len(getattr(weights, name))] for name, gradients in found}


def _for_kernel(weights: Weights) -> tuple[Any, ...]:
    *lists, projection, projection_bias = weights
    return *present(lists), *(one[0] if one else None for one in (projection, projection_bias))


def _biases_as(dtype: torch.dtype, weights: Weights) -> Weights:
    """With the biases in the dtype of a convolution's weights; the kernels take them in float32."""
    biases = {name: [t.to(dtype) for t in getattr(weights, name)] for name in ("conv_bias", "projection_bias")}
    return weights._replace(**biases)
