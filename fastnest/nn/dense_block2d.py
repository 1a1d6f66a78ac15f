"""A block of densely connected layers on images, its parameters named as in existing checkpoints."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.types import Device

from ..ops.arguments import check_flags, check_number
from .children import run_child
from .image import run_dense_layers
from .look import look_own_dense
from .own_block import OwnBlock
from .plan import DensePlan
from .sizes import check_image, check_size

MOST_WEIGHTS = 2**40


class _DenseLayer(torch.nn.Module):
    """One layer: from x_{i-1} what it adds, q_i. `DenseBlock2d` computes all layers at once where they are as made."""

    def __init__(self, channels: int, growth: int, hidden: int | None, factory: dict[str, Any]):
        super().__init__()
        self.norm1 = torch.nn.BatchNorm2d(channels, **factory)
        self.relu1 = torch.nn.ReLU()  # not in place: another norm may return x itself
        if hidden is not None:
            self.conv1 = torch.nn.Conv2d(channels, hidden, 1, bias=False, **factory)
            self.norm2 = torch.nn.BatchNorm2d(hidden, **factory)
            self.relu2 = torch.nn.ReLU()
            self.conv2 = torch.nn.Conv2d(hidden, growth, 3, padding=1, bias=False, **factory)
        else:
            self.conv1 = torch.nn.Conv2d(channels, growth, 3, padding=1, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        bottleneck = "conv2" in self._modules
        for name in ("norm1", "relu1", "conv1", *(("norm2", "relu2", "conv2") if bottleneck else ())):
            x = run_child(name, self._modules.get(name), x)
        return x


class DenseBlock2d(OwnBlock, torch.nn.ModuleDict):
    """L densely connected layers on images, x_i = [x_{i-1}, q_i], as one op in one buffer.

    See `fastnest.functional.dense_block2d`: q_i = conv2 relu(norm2 conv1 relu(norm1 x_{i-1})) (DenseNet-BC), or with
    bottleneck=False q_i = conv1 relu(norm1 x_{i-1}), conv1 then being the 3x3 convolution (DenseNet).

    Args:
        in_channels: channels c_0 of x.
        growth: channels d that a layer adds.
        layers: their number L.
        bn_size: b / d, hidden channels per channel added.
        bottleneck: whether a 1x1 convolution comes first.
        drop_rate: share of the q_i that dropout zeroes in training.
        process_group: processes of `torch.distributed` that share batch statistics in training, as SyncBatchNorm does
            (`torch.distributed.group.WORLD` for all); default none. Layers then run by the definition.

    Children: denselayer1 ... denselayerL, each with norm1, relu1, conv1, norm2, relu2, conv2. Where they are no longer
    as they were made (another norm or activation, an adapter, pruned weights, hooks), they are called one by one.

    Called with x [n, c_0, h, w] it returns [n, c_0 + L d, h, w]; out_channels is that number.
    """

    def __init__(
        self,
        in_channels: int,
        growth: int,
        layers: int,
        *,
        bn_size: int = 4,
        bottleneck: bool = True,
        drop_rate: float = 0.0,
        process_group: Any = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, size in (("in_channels", in_channels), ("growth", growth), ("layers", layers), ("bn_size", bn_size)):
            check_size("DenseBlock2d", name, size)
        check_flags("DenseBlock2d", bottleneck=bottleneck)
        check_number("DenseBlock2d", "drop_rate", drop_rate)
        if not 0 <= drop_rate < 1:
            raise ValueError(f"DenseBlock2d: drop_rate must be at least 0 and less than 1, got {drop_rate}")
        read = layers * in_channels + growth * layers * (layers - 1) // 2
        if growth * read > MOST_WEIGHTS:  # rather than layer after layer until the system ends the process
            raise ValueError(
                f"DenseBlock2d: layers must be fewer: {layers} would have more than {MOST_WEIGHTS} weights"
            )
        self.in_channels, self.growth, self.drop_rate = in_channels, growth, drop_rate
        self.out_channels = in_channels + layers * growth
        self.process_group = process_group
        hidden, factory = bn_size * growth if bottleneck else None, {"device": device, "dtype": dtype}
        for i in range(layers):
            self[f"denselayer{i + 1}"] = _DenseLayer(in_channels + i * growth, growth, hidden, factory)
        self.reset_parameters()
        self._look_closely()

    def reset_parameters(self) -> None:
        """He's initialisation of the convolutions (fan in), batch norms at weight 1 and bias 0."""
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, torch.nn.BatchNorm2d):
                module.reset_parameters()

    def _look(self) -> DensePlan | str:
        return look_own_dense(self, _DenseLayer)

    def forward(self, x: Tensor) -> Tensor:
        check_image("DenseBlock2d", x, self.in_channels)
        plan = self.plan_now()
        if not isinstance(plan, DensePlan):
            return self._by_modules(x, str(plan))
        drop_rates = [self.drop_rate] * len(plan.layers) if self.training and self.drop_rate else ()
        return run_dense_layers(x, plan.layers, drop_rates, self.process_group)

    def _by_modules(self, x: Tensor, reason: str) -> Tensor:
        """reason: why not by the op, which alone shares batch statistics."""
        if self.training and self.process_group is not None:
            raise ValueError(f"DenseBlock2d: process_group shares the statistics of layers as they were made: {reason}")
        for name, layer in self._modules.items():
            q = run_child(f"DenseBlock2d: {name}", layer, x)
            x = torch.cat([x, F.dropout(q, self.drop_rate, self.training)], 1)
        return x

    def extra_repr(self) -> str:
        return f"in_channels={self.in_channels}, growth={self.growth}, drop_rate={self.drop_rate}"
