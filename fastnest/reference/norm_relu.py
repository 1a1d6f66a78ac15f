"""relu(batch norm(x)) on images, as every image op applies it before a convolution.

    relu(weight (x - mean) / sqrt(var + eps) + bias)                                   (Ioffe and Szegedy 2015)

With mean and var given this is evaluation; without them they are those of the batch, and carry gradients. Statistics
that several processes share (`all_reduce`) are those of all their batches together.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .batch_stats import batch_stats_forward, wide_dtype

AllReduce = Callable[[Tensor], Tensor]  # the sum over processes, differentiable


class Norm(NamedTuple):
    """One batch norm [c]; mean and var are None where the batch's are to be used."""

    weight: Tensor
    bias: Tensor
    mean: Tensor | None = None
    var: Tensor | None = None


def norm_relu(
    x: Tensor, norm: Norm, eps: float, all_reduce: AllReduce | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """relu(norm(x)) and, where they are the batch's, the (mean, var) used."""
    if norm.mean is not None:
        return F.relu(F.batch_norm(x, norm.mean, norm.var, norm.weight, norm.bias, eps=eps)), None
    if all_reduce is not None:
        mean, var = shared_stats(x, all_reduce)
        scale = torch.rsqrt(var + eps) * norm.weight
        u = (x.to(mean.dtype) - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        return F.relu(u).to(x.dtype), (mean.detach(), var.detach())
    y = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=eps) if x.numel() else x + 0
    return F.relu(y), batch_stats_forward(x.detach())


def shared_stats(x: Tensor, all_reduce: AllReduce) -> tuple[Tensor, Tensor]:
    """(mean, var) of the batches of all processes, which need not be of one size."""
    mean, var = batch_stats_forward(x)
    count = x.numel() // x.shape[1]
    total = all_reduce(torch.full((1,), count, dtype=wide_dtype(x.dtype), device=x.device))
    shared = all_reduce(mean * count) / total
    return shared, all_reduce((var + (mean - shared).square()) * count) / total
