"""residual_chain: the kernels' forward and backward, joined for autograd."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import residual_chain as reference
from ..reference.residual_chain import Inputs
from .arguments import contiguous, rows
from .library import kernels

forward_kernels = kernels("residual_chain_forward", reference.residual_chain_forward_fake)
backward_kernels = kernels("residual_chain_backward", reference.residual_chain_backward_fake)


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
        # The kernel's float32 stream ends in y itself; a rounded y would not give the stream back.
        stream = y if y.dtype is torch.float32 else stream
        ctx.save_for_backward(*inputs, stream, hidden)
        ctx.backend, ctx.activation, ctx.pre_activation = backend, activation, pre_activation
        ctx.set_materialize_grads(False)
        if not return_features:
            return y
        return y, hidden if reference.features_in_hidden(activation, Inputs(*inputs).mid) else features

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dfeatures: Tensor | None = None) -> tuple[Tensor | None, ...]:
        *saved, stream, hidden = ctx.saved_tensors
        inputs = Inputs(*saved)
        gradients: Sequence[Tensor | None]
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
            run = backward_kernels[ctx.backend]
            gradients = run(dy, dfeatures, x, stream, hidden, *weights, ctx.activation, ctx.pre_activation)
            gradients = [None if t is None else g for t, g in zip(inputs, gradients, strict=True)]
        return None, None, None, None, *gradients
