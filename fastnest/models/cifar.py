"""The residual networks on images of arXiv 2111.05496, with the parameter names of its published checkpoints."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..nn.residual_block2d import PreActivationBlock
from ..nn.sizes import check_size
from .image import CHANNELS_IN, entered, pooled


class _Arch(NamedTuple):
    """Blocks in each stage, and the channels of every stage; a stage after the first begins with stride 2."""

    blocks: int
    channels: tuple[int, ...]


class _Kind(NamedTuple):
    """What comes after the last block."""

    final_norm: bool = False
    final_relu: bool = False
    augmented: bool = False  # a linear map for every feature, and none for the stream


ARCHS = {
    "wrn_16_8": _Arch(2, (128, 256, 512)),
    "wrn_40_4": _Arch(6, (64, 128, 256)),
    "resnet_20": _Arch(3, (16, 32, 64)),
    "resnet_110": _Arch(18, (16, 32, 64)),
}
KINDS = {
    "standard": _Kind(final_norm=True, final_relu=True),
    "resnest": _Kind(),
    "bn_resnest": _Kind(final_norm=True),
    "a_resnest": _Kind(augmented=True),
}


class Block(PreActivationBlock):
    """a = relu(bn1 x), v = relu(bn2 conv1 a), y = conv2 v + (projection a, where the shape changes, else x).

    Without `up` there is no conv2, and the block yields its feature v only (the last one of an A-ResNEst).
    """

    norms, shortcut, convs = "bn", "projection", 2

    def __init__(self, inputs: int, channels: int, stride: int, up: bool):
        super().__init__()
        self.bn1 = torch.nn.BatchNorm2d(inputs)
        self.conv1 = torch.nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(channels)
        self.conv2 = torch.nn.Conv2d(channels, channels, 3, 1, 1, bias=False) if up else None
        changes = stride != 1 or inputs != channels
        # In a Sequential for the sake of the checkpoints' key, projection.0.weight.
        self.projection = (
            torch.nn.Sequential(torch.nn.Conv2d(inputs, channels, 1, stride, bias=False)) if changes else None
        )
        self._look_closely()

    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        if self.conv2 is None:
            return None, F.relu(self.bn2(self.conv1(F.relu(self.bn1(x)))))
        return super().forward(x, return_features)


class CifarNet(torch.nn.Module):
    """What `cifar` makes: a 3x3 expansion, three stages of residual blocks, an average over space, linear heads."""

    def __init__(self, arch: str, kind: str, classes: int):
        super().__init__()
        for name, value, known in (("arch", arch, ARCHS), ("kind", kind, KINDS)):
            if value not in known:
                raise ValueError(f"cifar: {name} must be one of {', '.join(known)}, got {value!r}")
        check_size("cifar", "classes", classes)
        self.arch, self.kind = arch, kind
        (blocks, channels), ending = ARCHS[arch], KINDS[kind]
        self.expansion = torch.nn.Conv2d(CHANNELS_IN, channels[0], 3, padding=1, bias=False)
        self.stage = torch.nn.ModuleList()
        inputs = channels[0]
        for s, width in enumerate(channels):
            blocks_of_stage = torch.nn.ModuleList()
            self.stage.append(blocks_of_stage)
            for b in range(blocks):
                last = s == len(channels) - 1 and b == blocks - 1
                stride = 2 if s > 0 and b == 0 else 1
                blocks_of_stage.append(Block(inputs, width, stride, up=not (ending.augmented and last)))
                inputs = width
        self.final_bn = torch.nn.BatchNorm2d(inputs) if ending.final_norm else None
        if ending.augmented:
            self.H_0 = torch.nn.Linear(CHANNELS_IN, classes)
            self.H_k = torch.nn.ModuleList(
                torch.nn.ModuleList(torch.nn.Linear(width, classes) for _ in range(blocks)) for width in channels
            )
        else:
            self.linear = torch.nn.Linear(inputs, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He's initialisation of the convolutions by their fan out (as usual for wide residual networks); batch norms
        at weight 1 and bias 0; linear maps as torch.nn.Linear."""
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (torch.nn.BatchNorm2d, torch.nn.Linear)):
                module.reset_parameters()

    def _blocks(self) -> Iterable[Any]:
        stages: Iterable[Any] = self.stage
        return chain.from_iterable(stages)

    def _features(self, x: Tensor) -> Iterator[Tensor]:
        x = entered("cifar", x)
        yield pooled(x)
        x = self.expansion(x)
        for block in self._blocks():
            x, v = block(x, return_features=True)
            yield pooled(v)

    def features(self, x: Tensor) -> list[Tensor]:
        """[v_0, v_1, ..., v_L], each averaged over space to [n, channels]; v_0 is the image x itself.

        The output of an A-ResNEst is sum_i H_i v_i. That of a ResNEst is linear in the features as images; not in
        these averages, because conv2 and the strides of later blocks weigh the places of an image differently.
        """
        return list(self._features(x))

    def forward(self, x: Tensor) -> Tensor:
        ending = KINDS[self.kind]
        if ending.augmented:
            stages: Iterable[Any] = self.H_k
            heads = [self.H_0, *chain.from_iterable(stages)]
            terms: list[Tensor] = [H(v) for H, v in zip(heads, self._features(x), strict=True)]
            return sum(terms[1:], start=terms[0])
        x = self.expansion(entered("cifar", x))
        for block in self._blocks():
            x = block(x)
        if self.final_bn is not None:
            x = self.final_bn(x)
        y: Tensor = self.linear(pooled(F.relu(x) if ending.final_relu else x))
        return y

    def extra_repr(self) -> str:
        return f"arch={self.arch!r}, kind={self.kind!r}"


def cifar(arch: str, kind: str, classes: int) -> CifarNet:
    """A residual network for CIFAR's images, as in the experiments of arXiv 2111.05496.

    x_0 = expansion x (3x3); per block a = relu(bn1 x_{i-1}), v_i = relu(bn2 conv1 a), x_i = conv2 v_i + shortcut, whose
    shortcut is x_{i-1}, or projection a (1x1) where the shape changes. P averages over space:

    - standard: y = linear P relu(final_bn x_L), a residual network with pre-activation
    - resnest: y = linear P x_L, without any nonlinearity after the last block
    - bn_resnest: y = linear P final_bn x_L
    - a_resnest: y = sum_{i=0..L} H_i P v_i with v_0 = x; its last block has no conv2

    Args:
        arch: "wrn_16_8", "wrn_40_4", "resnet_20" or "resnet_110".
        kind: "standard", "resnest", "bn_resnest" or "a_resnest".
        classes: outputs of the network.

    Returns a module for images [n, 3, h, w] (32 x 32 in the paper) to [n, classes], whose `features(x)` are the P v_i.
    It works in channels-last memory and copies an image that is not. Its state_dict has the keys of the authors' code:
    expansion, stage.S.B.{bn1,conv1,bn2,conv2,projection.0}, final_bn, linear, H_0, H_k.S.B.

    Raises ValueError for an arch or kind that is not among these.
    """
    return CifarNet(arch, kind, classes)
