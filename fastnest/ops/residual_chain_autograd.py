"""residual_chain: the compiled forward and backward, joined for autograd."""

import torch

from .. import _backend
from ..reference import residual_chain as reference
from ..reference.residual_chain import Inputs
from .arguments import contiguous, rows

if _backend.CPP_IS_BUILT:
    torch.library.register_fake("fastnest::residual_chain_forward")(reference.residual_chain_forward_fake)
    torch.library.register_fake("fastnest::residual_chain_backward")(reference.residual_chain_backward_fake)
    kernel_forward = torch.ops.fastnest.residual_chain_forward.default
    kernel_backward = torch.ops.fastnest.residual_chain_backward.default


class ResidualChainFunction(torch.autograd.Function):
    """The kernels' forward and backward. Keeps the inputs, the end of the stream, and `hidden` [n, l, 1 or 2, k].

    Returns y, and second the features if asked for: as `hidden` where the kernel keeps the same values there.
    """

    @staticmethod
    def forward(ctx, activation, pre_activation, return_features, *inputs):
        y, features, hidden, stream = kernel_forward(*inputs, activation, pre_activation, return_features, True)
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
            gradients = kernel_backward(dy, dfeatures, x, stream, hidden, *weights, ctx.activation, ctx.pre_activation)
            gradients = [None if t is None else g for t, g in zip(inputs, gradients, strict=True)]
        return None, None, None, *gradients
