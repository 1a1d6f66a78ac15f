"""What models on images share: their way in and their average over space, both in channels-last memory."""

import torch
from torch import Tensor

from ..nn.sizes import check_image
from ..ops.image import check_pixels

CHANNELS_IN = 3


def entered(model: str, x: Tensor) -> Tensor:
    """x as channels-last images, copied where it is not."""
    check_image(model, x, CHANNELS_IN)
    check_pixels(model, x)
    return x.contiguous(memory_format=torch.channels_last)


def pooled(x: Tensor) -> Tensor:
    """Averages over space, [n, c, h, w] to [n, c]."""
    # By way of n h w c the gradient is channels-last too; that of x.mean((2, 3)) is not, and costs a copy further on.
    return x.permute(0, 2, 3, 1).mean((1, 2))
