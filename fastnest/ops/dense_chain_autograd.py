"""dense_chain: the compiled forward and backward, joined for autograd."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .. import _backend
from ..reference import dense_chain as reference
from ..reference.dense_chain import Weights
from .arguments import rows

if _backend.CPP_IS_BUILT:
    torch.library.register_fake("fastnest::dense_chain_forward")(reference.dense_chain_forward_fake)
    torch.library.register_fake("fastnest::dense_chain_backward")(reference.dense_chain_backward_fake)
    kernel_forward = torch.ops.fastnest.dense_chain_forward.default
    kernel_backward = torch.ops.fastnest.dense_chain_backward.default


class DenseChainFunction(torch.autograd.Function):
    """The kernels' forward and backward. Keeps y (x is its first columns), the weights and `hidden`."""

    @staticmethod
    def forward(ctx, activation, pre_activation, lengths, x, *flat):
        y, hidden = kernel_forward(x, *_lists(flat, lengths), activation, pre_activation, True)
        ctx.save_for_backward(y, hidden, *flat)
        ctx.activation, ctx.pre_activation, ctx.lengths, ctx.m = activation, pre_activation, lengths, x.shape[1]
        return y

    @staticmethod
    def backward(ctx, dy):
        y, hidden, *flat = ctx.saved_tensors
        weights = _lists(flat, ctx.lengths)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The graph of this backward is asked for: by the definition, which is made of differentiable operations.
            with torch.autocast(y.device.type, enabled=False):
                options = ctx.activation, ctx.pre_activation
                dx, gradients = reference.dense_chain_backward(dy, y[:, : ctx.m], weights, *options)
        else:
            dx, *gradients = kernel_backward(rows("dy", dy), y, hidden, *weights, ctx.activation, ctx.pre_activation)
        return None, None, None, dx, *(g for per_list in gradients for g in per_list)


def _lists(flat: Sequence[Tensor], lengths: Sequence[int]) -> Weights:
    ends = list(accumulate(lengths))
    return Weights(*(list(flat[end - length : end]) for end, length in zip(ends, lengths, strict=True)))
