"""The pre-activation basic block on images, its parameters named as in timm's resnetv2."""

import torch
from torch.types import Device

from ..reference.basic_block2d import KIND
from .residual_block2d import ResidualBlock2d, channels_of


class BasicBlock2d(ResidualBlock2d):
    """y = conv2(v) + shortcut, v = relu(norm2 conv1 a), a = relu(norm1 x), as one op.

    See `fastnest.functional.basic_block2d`. The shortcut is x, or downsample(a) where the shape changes. Training uses
    the batch's statistics, as torch's BatchNorm2d does, and moves the running ones once a forward.

    Args:
        in_channels: channels c of x.
        channels: channels k between the convolutions (both 3x3), those of the features v.
        out_channels: channels of y, default as many as x has.
        stride: 1 or 2, of the first convolution and the shortcut.
        norm: "batch", or None for a block without batch norms.
        bias: whether the convolutions have one; default where there are no batch norms.

    Children: norm1, conv1, norm2, conv2, and downsample.conv where the shape changes.
    Where they are no longer as they were made (another norm, an adapter, pruned weights, hooks), they are called one
    by one.

    Called with x [n, c, h, w] it returns y [n, out_channels, h', w'], h' = (h - 1) // stride + 1; with
    return_features=True, (y, v [n, k, h', w']).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int | None = None,
        *,
        stride: int = 1,
        norm: str | None = "batch",
        bias: bool | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        sizes = channels_of("BasicBlock2d", in_channels, [channels], out_channels)
        super().__init__(KIND, sizes, stride, norm, bias, {"device": device, "dtype": dtype})
