"""Images as kernels see them: rows of channels, one a pixel, all the same distance apart."""

import torch
from torch import Tensor


def pixels_of(x: Tensor) -> int:
    """Rows of channels in an image [n, c, h, w], or of a matrix [n, c]."""
    return x.numel() // x.shape[1]


def pixel_stride(x: Tensor) -> int:
    """Elements from a pixel's first channel to the next pixel's; channels are consecutive."""
    for dim in range(x.dim() - 1, 1, -1):
        if x.shape[dim] > 1:
            return x.stride(dim)
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]


def empty_image(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """[n, channels, height, width] as x, in channels-last memory."""
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
