"""residual_chain: the kernels' forward and backward, joined for autograd."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import residual_chain as reference
from ..reference.residual_chain import Inputs
from .arguments import contiguous, rows
from .library import kernels
from .saved import saved_tensors

forward_kernels = kernels("residual_chain_forward", reference.residual_chain_forward_fake)
backward_kernels = kernels("residual_chain_backward", reference.residual_chain_backward_fake)


# Where the backward finds stream and hidden, which may be results too: behind the inputs.
RESULTS = (len(Inputs._fields), len(Inputs._fields) + 1)


def end_of_stream(y: Tensor, stream: Tensor) -> Tensor:
    """The kernel's float32 stream ends in y itself; a rounded y would not give the stream back."""
    return y if y.dtype is torch.float32 else stream


class ResidualChainFunction(torch.autograd.Function):
    """The kernels' forward and backward. Keeps the inputs, the end of the stream, and `hidden` [n, l, 1 or 2, k].

    Returns y, and second the features if asked for: as `hidden` where the kernel keeps the same values there.
    """

    @staticmethod
    def forward(
        ctx: Any, backend: str, activation: str, pre_activation: bool, return_features: bool, *inputs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        y: Tensor
        run = forward_kernels[backend]
        y, features, hidden, stream = run(*inputs, activation, pre_activation, return_features, True)
        ctx.save_for_backward(*inputs, end_of_stream(y, stream), hidden)
        ctx.backend, ctx.activation, ctx.pre_activation = backend, activation, pre_activation
        ctx.set_materialize_grads(False)
        if not return_features:
            return y
        return y, hidden if reference.features_in_hidden(activation, Inputs(*inputs).mid) else features

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dfeatures: Tensor | None = None) -> tuple[Tensor | None, ...]:
        saved, by_definition, changed = saved_tensors(ctx, "residual_chain", dy, dfeatures, RESULTS)
        *inputs, stream, hidden = saved
        gradients: Sequence[Tensor | None]
        if dfeatures is not None and dfeatures.dim() == 4:
            dfeatures = dfeatures.squeeze(2)
        options = ctx.activation, ctx.pre_activation
        if by_definition:
            with torch.autocast(inputs[0].device.type, enabled=False):
                gradients = reference.residual_chain_backward(dy, dfeatures, *Inputs(*inputs), *options)
        else:
            if changed:
                y, _, hidden, stream = forward_kernels[ctx.backend](*inputs, *options, False, True)
                stream = end_of_stream(y, stream)
            dy, dfeatures = rows("dy", dy), contiguous("dfeatures", dfeatures)
            x, *weights = inputs
            gradients = backward_kernels[ctx.backend](dy, dfeatures, x, stream, hidden, *weights, *options)
            gradients = [None if t is None else g for t, g in zip(inputs, gradients, strict=True)]
        return None, None, None, None, *gradients
