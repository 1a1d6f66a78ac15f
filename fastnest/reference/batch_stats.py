"""Mean and variance of every channel, by definition.

    mean_c = E[x_c],   var_c = E[(x_c - mean_c)^2]

over all rows of x [n, c], or all pixels of x [n, c, h, w]: the biased variance, as batch norm normalises with.
"""

import torch
from torch import Tensor


def dims_of(x: Tensor) -> list[int]:
    """Every dimension but the channels'."""
    return [i for i in range(x.dim()) if i != 1]


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics: never narrower than float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def batch_stats_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, var) [c] in float32, or float64 for float64; zeros where there is nothing to average."""
    wide = x.to(wide_dtype(x.dtype))
    if x.numel() == 0:
        zero = wide.sum(dims_of(x))  # of nothing: 0, still a function of x
        return zero, zero.clone()
    return wide.mean(dims_of(x)), wide.var(dims_of(x), correction=0)


def batch_stats_backward(dmean: Tensor, dvar: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    """dx = (dmean + 2 (x - mean) dvar) / count, in x's dtype."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    count = max(x.numel() // x.shape[1], 1)
    deviation = x.to(mean.dtype) - mean.view(shape)
    return ((dmean.view(shape) + 2 * deviation * dvar.view(shape)) / count).to(x.dtype)


def batch_stats_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of the kernel's (mean, var), for torch.compile."""
    return x.new_empty(x.shape[1], dtype=torch.float32), x.new_empty(x.shape[1], dtype=torch.float32)
