"""What residual blocks on images share: parameters named as in existing checkpoints, and one call."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.arguments import check_flags
from ..ops.image import check_stride
from ..reference.residual_block2d import Kind
from .children import run_child
from .look import look_own_residual
from .own_block import OwnBlock
from .plan import ResidualPlan
from .sizes import check_image, check_norm, check_size


class PreActivationBlock(OwnBlock):
    """y = conv_L(v) + shortcut with v = relu(norm_L ... conv_1 a) and a = relu(norm_1 x), by one op where it does.

    The shortcut is x, or the module of that name on a. norms, shortcut: what the children are called, norms "" for a
    block without.
    """

    norms, shortcut = "norm", "downsample"
    convs: int

    def _look(self) -> ResidualPlan | str:
        return look_own_residual(self, self.norms, self.convs)

    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        plan = self.plan_now()
        if isinstance(plan, ResidualPlan):
            return plan.run_and_return(x, return_features)
        return self._by_modules(x, return_features)

    def _by_modules(self, x: Tensor, return_features: bool) -> Tensor | tuple[Tensor, Tensor]:
        def run(name: str, values: Tensor) -> Tensor:
            return run_child(f"{type(self).__name__}: {name}", self._modules.get(name), values)

        y = added = x
        for i in range(1, self.convs + 1):
            v = F.relu(run(f"{self.norms}{i}", y) if self.norms else y)
            if i == 1 and self._modules.get(self.shortcut) is not None:
                added = run(self.shortcut, v)
            y = run(f"conv{i}", v)
        if y.shape != added.shape:
            last = f"{type(self).__name__}: conv{self.convs}"
            raise ValueError(f"{last} must return {list(added.shape)} as the shortcut does, got {list(y.shape)}")
        return (y + added, v) if return_features else y + added


class ResidualBlock2d(PreActivationBlock):
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
        self.norms, self.convs = "" if norm is None else "norm", len(kind.kernels)
        self.downsample = None
        if stride != 1 or channels[0] != channels[-1]:
            conv = torch.nn.Conv2d(channels[0], channels[-1], 1, stride, bias=bias, **factory)
            self.downsample = torch.nn.Sequential(OrderedDict(conv=conv))
        self.reset_parameters()
        self._look_closely()

    def reset_parameters(self) -> None:
        """He's initialisation of the convolutions (fan in) without biases, batch norms at weight 1 and bias 0."""
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    torch.nn.init.zeros_(module.bias)
            elif isinstance(module, torch.nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        check_image(type(self).__name__, x, self.in_channels)
        result: Tensor | tuple[Tensor, Tensor] = super().forward(x, return_features)
        return result

    def extra_repr(self) -> str:
        return f"in_channels={self.in_channels}, out_channels={self.out_channels}, stride={self.stride}"


def channels_of(module: str, in_channels: int, hidden: Sequence[int], out_channels: int | None) -> list[int]:
    """Channels of x and behind every convolution, checked; as many come out as went in unless said otherwise."""
    out = in_channels if out_channels is None else out_channels
    for name, size in (("in_channels", in_channels), ("channels", hidden[0]), ("out_channels", out)):
        check_size(module, name, size)
    return [in_channels, *hidden, out]
