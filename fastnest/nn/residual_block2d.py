"""What Bottleneck2d and BasicBlock2d share: parameters named as in existing checkpoints, and one call."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.arguments import check_flags
from ..ops.image import check_stride
from ..reference.residual_block2d import Kind
from .image import run_residual_block
from .sizes import check_image, check_norm, check_size


class ResidualBlock2d(torch.nn.Module):
    """A pre-activation residual block with the convolutions of `kind`, from channels[0] to channels[-1] channels."""

    def __init__(
        self,
        kind: Kind,
        channels: Sequence[int],
        stride: int,
        norm: str | None,
        bias: bool | None,
        factory: dict[str, Any],
    ):
        super().__init__()
        name = type(self).__name__
        check_stride(name, stride)
        check_norm(name, norm)
        bias = norm is None if bias is None else bias
        check_flags(name, bias=bias)
        self.in_channels, self.out_channels, self.stride = channels[0], channels[-1], stride
        steps = kind.strides(stride)
        for i, (c, o, kernel) in enumerate(zip(channels[:-1], channels[1:], kind.kernels, strict=True)):
            if norm is not None:
                self.add_module(f"norm{i + 1}", torch.nn.BatchNorm2d(c, **factory))
            conv = torch.nn.Conv2d(c, o, kernel, steps[i], kernel // 2, bias=bias, **factory)
            self.add_module(f"conv{i + 1}", conv)
        self.downsample = None
        if stride != 1 or channels[0] != channels[-1]:
            conv = torch.nn.Conv2d(channels[0], channels[-1], 1, stride, bias=bias, **factory)
            self.downsample = torch.nn.Sequential(OrderedDict(conv=conv))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He's initialisation of the convolutions (fan in) without biases, batch norms at weight 1 and bias 0."""
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    torch.nn.init.zeros_(module.bias)
            elif isinstance(module, torch.nn.BatchNorm2d):
                module.reset_parameters()

    def _children(self, name: str) -> list[Any]:
        """norm1, norm2, ... or conv1, conv2, ..."""
        return [child for key, child in self._modules.items() if key.startswith(name)]

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        check_image(type(self).__name__, x, self.in_channels)
        projection: Any = None if self.downsample is None else self.downsample.conv
        return run_residual_block(x, self._children("norm"), self._children("conv"), projection, return_features)

    def extra_repr(self) -> str:
        return f"in_channels={self.in_channels}, out_channels={self.out_channels}, stride={self.stride}"


def channels_of(module: str, in_channels: int, hidden: Sequence[int], out_channels: int | None) -> list[int]:
    """Channels of x and behind every convolution, checked; as many come out as went in unless said otherwise."""
    out = in_channels if out_channels is None else out_channels
    for name, size in (("in_channels", in_channels), ("channels", hidden[0]), ("out_channels", out)):
        check_size(module, name, size)
    return [in_channels, *hidden, out]
