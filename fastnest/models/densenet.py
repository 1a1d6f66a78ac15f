"""DenseNets and DenseNEsts on images, with the parameter names of torchvision's."""

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..nn import DenseBlock2d
from ..nn.sizes import check_size
from ..ops.arguments import check_flags
from .image import CHANNELS_IN, entered, pooled


class _Arch(NamedTuple):
    growth: int
    layers: tuple[int, ...]  # of each block
    channels: int  # of the first convolution
    stem: bool = True  # 7x7 with stride 2, batch norm, relu and pooling; else 3x3 alone


# Huang et al. 2017 (arXiv 1608.06993), table 1; for CIFAR section 3, (depth - 4) / 6 layers in each of three blocks.
ARCHS = {
    "densenet121": _Arch(32, (6, 12, 24, 16), 64),
    "densenet169": _Arch(32, (6, 12, 32, 32), 64),
    "densenet201": _Arch(32, (6, 12, 48, 32), 64),
    "densenet161": _Arch(48, (6, 12, 36, 24), 96),
    "bc_100_12": _Arch(12, (16, 16, 16), 24, stem=False),
    "bc_190_40": _Arch(40, (31, 31, 31), 80, stem=False),
}
# Files from before torchvision 0.3 write norm.1 for norm1.
OLD_KEY = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.")


class Transition(torch.nn.Module):
    """Between two blocks: conv relu(norm x), half the channels, averaged over 2x2 pixels.

    The average is taken before the 1x1 convolution, with which it commutes: a quarter of the multiplications.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(inputs)
        self.relu = torch.nn.ReLU(inplace=True)
        self.conv = torch.nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pool = torch.nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.pool(self.relu(self.norm(x))))
        return y


class DenseNet(torch.nn.Module):
    """What `densenest` makes: `features`, a Sequential under torchvision's names, and `classifier`."""

    def __init__(self, arch: str, classes: int, head_norm_act: bool, drop_rate: float):
        super().__init__()
        if arch not in ARCHS:
            raise ValueError(f"densenest: arch must be one of {', '.join(ARCHS)}, got {arch!r}")
        check_size("densenest", "classes", classes)
        self.arch, self.head_norm_act = arch, head_norm_act
        growth, layers, channels, stem = ARCHS[arch]
        parts: dict[str, torch.nn.Module] = {}
        if stem:
            parts["conv0"] = torch.nn.Conv2d(CHANNELS_IN, channels, 7, 2, 3, bias=False)
            parts["norm0"] = torch.nn.BatchNorm2d(channels)
            parts["relu0"] = torch.nn.ReLU(inplace=True)
            parts["pool0"] = torch.nn.MaxPool2d(3, 2, 1)
        else:
            parts["conv0"] = torch.nn.Conv2d(CHANNELS_IN, channels, 3, padding=1, bias=False)
        for i, number in enumerate(layers, 1):
            if i > 1:
                parts[f"transition{i - 1}"] = Transition(channels, channels // 2)
                channels //= 2
            parts[f"denseblock{i}"] = DenseBlock2d(channels, growth, number, drop_rate=drop_rate)
            channels += number * growth
        if head_norm_act:
            parts["norm5"] = torch.nn.BatchNorm2d(channels)
        self.features = torch.nn.Sequential()
        for name, part in parts.items():
            self.features.add_module(name, part)
        self.classifier = torch.nn.Linear(channels, classes)
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(_rename_old_keys)  # type: ignore[no-untyped-call]  # torch's own

    def reset_parameters(self) -> None:
        """He's initialisation of the convolutions (fan in), batch norms at weight 1 and bias 0; the classifier as
        torch.nn.Linear."""
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, (torch.nn.BatchNorm2d, torch.nn.Linear)):
                module.reset_parameters()

    def block_features(self, x: Tensor) -> list[Tensor]:
        """[v_0, v_1, ..., v_L] of the last dense block, each averaged over space: v_0 [n, channels] is what enters it,
        v_i [n, growth] what layer i adds.

        With head_norm_act=False the output is classifier [v_0, ..., v_L], linear in these; what earlier blocks compute
        reaches it through the nonlinear transition only, as a part of v_0 and of the functions Q_i. (`features` is the
        Sequential that torchvision's keys ask for.)
        """
        last = f"denseblock{len(ARCHS[self.arch].layers)}"
        x = entered("densenest", x)
        for name, part in self.features.named_children():
            x = part(x)
            if name == last:
                break
        block: Any = self.features.get_submodule(last)
        return list(pooled(x).split([block.in_channels, *[block.growth] * len(block)], 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(entered("densenest", x))
        y: Tensor = self.classifier(pooled(F.relu(x) if self.head_norm_act else x))
        return y

    def extra_repr(self) -> str:
        return f"arch={self.arch!r}, head_norm_act={self.head_norm_act}"


def _rename_old_keys(module: DenseNet, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in list(state_dict):
        if key.startswith(prefix) and OLD_KEY.search(key):
            state_dict[OLD_KEY.sub(r"\1\2.", key)] = state_dict.pop(key)


def densenest(arch: str, classes: int, *, head_norm_act: bool = True, drop_rate: float = 0.0) -> DenseNet:
    """A densely connected network on images (Huang et al. 2017), or the DenseNEst of arXiv 2111.05496.

    Blocks of layers x_i = [x_{i-1}, Q_i(x_{i-1})] (`nn.DenseBlock2d`) with transitions between them, and
    y = classifier P relu(norm5 x_L), P the average over space. With head_norm_act=False, y = classifier P x_L is linear
    in the features v_i = Q_i(x_{i-1}) of the last block: a DenseNEst.

    Args:
        arch: "densenet121", "densenet169", "densenet201", "densenet161"; for 32 x 32 images "bc_100_12", "bc_190_40".
        classes: outputs of the network.
        head_norm_act: False drops the last batch norm and relu.
        drop_rate: share of what a layer adds that dropout zeroes in training.

    Returns a module for images [n, 3, h, w] to [n, classes], whose `block_features(x)` are the P v_i of the last block.
    It works in channels-last memory and copies an image that is not. Its state_dict has torchvision's keys, and loads
    torchvision's files, those with the older norm.1 for norm1 too.

    Raises ValueError or TypeError for an arch that is not among these, and for other arguments that do not fit.
    """
    check_flags("densenest", head_norm_act=head_norm_act)
    return DenseNet(arch, classes, head_norm_act, drop_rate)
