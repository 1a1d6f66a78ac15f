"""dense_block2d: the kernels' forward and backward, joined for autograd."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import dense_block2d as reference
from ..reference.dense_block2d import LEARNED, Statistics, Weights
from .arguments import present, unflat
from .image import channels_last
from .library import kernels
from .saved import saved_tensors, to_save

forward_kernels = kernels("dense_block2d_forward", reference.dense_block2d_forward_fake)
backward_kernels = kernels("dense_block2d_backward", reference.dense_block2d_backward_fake)


def kernel_forward(
    backend: str, x: Tensor, weights: Weights, eps: float, save: bool
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, list[Tensor], list[Tensor]]:
    """The kernels' (y, z, mean, var, z_mean, z_var)."""
    y, z, mean, var, z_mean, z_var = forward_kernels[backend](x, *present(weights), eps, save)
    return y, z, mean, var, z_mean, z_var


def statistics_of(mean: Tensor, var: Tensor, hidden: Sequence[Tensor]) -> Statistics:
    half = len(hidden) // 2
    return Statistics(mean, var, list(hidden[:half]), list(hidden[half:]))


class DenseBlock2dFunction(torch.autograd.Function):
    """The kernels' forward and backward. Keeps y (x is its first channels), the weights and the hidden images.

    Returns y, mean, var, then the hidden images' means and variances; of these only y has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, backend: str, eps: float, lengths: tuple[int, ...], x: Tensor, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        y, z, mean, var, z_mean, z_var = kernel_forward(backend, x, unflat(Weights, flat, lengths), eps, True)
        statistics = (mean, var, *z_mean, *z_var)
        ctx.mark_non_differentiable(*statistics)
        ctx.save_for_backward(to_save(y), *flat, *z, *statistics)
        ctx.backend, ctx.eps, ctx.lengths, ctx.hidden, ctx.c = backend, eps, lengths, len(z), x.shape[1]
        return y, *statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_of_statistics: None) -> tuple[Tensor | None, ...]:
        (y, *rest), by_definition, _ = saved_tensors(ctx, "dense_block2d", dy)
        count = sum(ctx.lengths)
        weights, z, statistics = (
            unflat(Weights, rest[:count], ctx.lengths),
            rest[count:][: ctx.hidden],
            rest[count + ctx.hidden :],
        )
        if by_definition:
            with torch.autocast(y.device.type, enabled=False):
                dx, lists = reference.dense_block2d_backward(dy, y[:, : ctx.c], weights, ctx.eps)
            gradients = [lists[name] for name in LEARNED]
        else:
            training = not weights.norm1_mean
            used = _with_statistics(weights, statistics) if training else weights
            run, dy = backward_kernels[ctx.backend], channels_last("dy", dy)
            dx, *gradients = run(dy, y, z, *present(used), ctx.eps, training)
        by_list = dict(zip(LEARNED, gradients, strict=True))
        nothing = {name: [None] * length for name, length in zip(Weights._fields, ctx.lengths, strict=True)}
        return None, None, None, dx, *(g for name, none in nothing.items() for g in by_list.get(name, none))


def _with_statistics(weights: Weights, flat: Sequence[Tensor]) -> Weights:
    """The weights with the batch statistics that the forward normalised with: layer i read a prefix of the channels."""
    statistics = statistics_of(flat[0], flat[1], flat[2:])
    widths = [weight.shape[0] for weight in weights.norm1_weight]
    return weights._replace(
        norm1_mean=[statistics.mean[:c] for c in widths],
        norm1_var=[statistics.var[:c] for c in widths],
        norm2_mean=statistics.hidden_mean,
        norm2_var=statistics.hidden_var,
    )
