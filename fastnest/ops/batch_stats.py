"""batch_stats: mean and variance of every channel in one pass over memory."""

from typing import Any

import torch
from torch import Tensor

from .. import _backend
from ..reference import batch_stats as reference
from .arguments import check_rows, need_grad, rows
from .image import channels_last, check_image
from .library import kernels
from .saved import saved_tensors

OP = "batch_stats"

forward_kernels = kernels("batch_stats", reference.batch_stats_fake)


class BatchStatsFunction(torch.autograd.Function):
    """The kernel, and the definition's gradient: one elementwise pass that no kernel would shorten."""

    @staticmethod
    def forward(ctx: Any, backend: str, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = forward_kernels[backend](x)
        ctx.save_for_backward(x, mean)
        ctx.backend = backend
        return mean, var

    @staticmethod
    def backward(ctx: Any, dmean: Tensor, dvar: Tensor) -> tuple[None, Tensor]:
        (x, mean), by_definition, changed = saved_tensors(ctx, OP, dmean, dvar, results=(1,))
        if changed:
            forward = reference.batch_stats_forward if by_definition else forward_kernels[ctx.backend]
            mean, _ = forward(x)
        return None, reference.batch_stats_backward(dmean, dvar, x, mean)


def batch_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, E[x_c] and E[(x_c - E[x_c])^2], as batch norm normalises with.

    Bands of x are read once, each summed about a value of its own and combined in float64 (Chan, Golub, LeVeque 1983):
    right also where the mean is far larger than the deviation.

    Args:
        x: images [n, c, h, w] or rows [n, c]; float32, bfloat16 or float16 for the kernel (float64 runs the reference).
            Channels-last images are read as they lie, others are copied first.

    Returns:
        (mean, var), [c] each, float32 (float64 for float64); zeros for an empty x.

    Raises:
        ValueError, TypeError: naming what was expected of x and what came.
        RuntimeError: where a forced backend (`fastnest.backend`) cannot take the call.
    """
    is_image = isinstance(x, Tensor) and x.dim() == 4
    (check_image if is_image else check_rows)(OP, x)
    backend = _backend.choose(OP, x)
    if backend == "reference":
        return reference.batch_stats_forward(x)
    x = channels_last("x", x) if is_image else rows("x", x)
    mean, var = BatchStatsFunction.apply(backend, x) if need_grad((x,)) else forward_kernels[backend](x)
    return mean, var
