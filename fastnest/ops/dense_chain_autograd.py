"""dense_chain: the kernels' forward and backward, joined for autograd."""

from typing import Any

import torch
from torch import Tensor

from ..reference import dense_chain as reference
from ..reference.dense_chain import Weights
from .arguments import present, rows, unflat
from .library import kernels
from .saved import saved_tensors, to_save

forward_kernels = kernels("dense_chain_forward", reference.dense_chain_forward_fake)
backward_kernels = kernels("dense_chain_backward", reference.dense_chain_backward_fake)


def kernel_forward(
    backend: str, x: Tensor, weights: Weights, activation: str, pre_activation: bool, save: bool
) -> tuple[Tensor, Tensor]:
    """The kernels' (y, hidden)."""
    y, hidden = forward_kernels[backend](x, *present(weights), activation, pre_activation, save)
    return y, hidden


class DenseChainFunction(torch.autograd.Function):
    """The kernels' forward and backward. Keeps y (x is its first columns), the weights and `hidden`."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        activation: str,
        pre_activation: bool,
        lengths: tuple[int, ...],
        x: Tensor,
        *flat: Tensor,
    ) -> Tensor:
        weights = unflat(Weights, flat, lengths)
        y, hidden = kernel_forward(backend, x, weights, activation, pre_activation, True)
        ctx.save_for_backward(to_save(y), hidden, *flat)
        ctx.backend, ctx.activation, ctx.pre_activation = backend, activation, pre_activation
        ctx.lengths, ctx.m = lengths, x.shape[1]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (y, hidden, *flat), by_definition, _ = saved_tensors(ctx, "dense_chain", dy)
        weights = unflat(Weights, flat, ctx.lengths)
        if by_definition:
            with torch.autocast(y.device.type, enabled=False):
                options = ctx.activation, ctx.pre_activation
                dx, gradients = reference.dense_chain_backward(dy, y[:, : ctx.m], weights, *options)
        else:
            run, dy = backward_kernels[ctx.backend], rows("dy", dy)
            dx, *gradients = run(dy, y, hidden, *present(weights), ctx.activation, ctx.pre_activation)
        return None, None, None, None, dx, *(g for per_list in gradients for g in per_list)
