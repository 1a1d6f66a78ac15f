"""Image networks in plain torch, as their authors and torchvision write them: what the image benchmarks compare with.

`fastnest.accelerate` knows their blocks by structure, as it knows those of the packages.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# growth, layers per block, channels of the first convolution, whether its kernel is ImageNet's 7x7 with pooling
DENSENETS = {"DenseNet-121": (32, (6, 12, 24, 16), 64, True), "DenseNet-BC-100-12": (12, (16, 16, 16), 24, False)}
# blocks per stage, widths of the stages
RESNETS = {"WRN-16-8": (2, (128, 256, 512)), "ResNet-110": (18, (16, 32, 64))}


class DenseLayer(torch.nn.Module):
    """relu(norm1), conv1 1x1, relu(norm2), conv2 3x3 on the concatenation of all features before."""

    def __init__(self, channels: int, growth: int, memory_efficient: bool):
        super().__init__()
        self.norm1 = torch.nn.BatchNorm2d(channels)
        self.relu1 = torch.nn.ReLU(inplace=True)
        self.conv1 = torch.nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(4 * growth)
        self.relu2 = torch.nn.ReLU(inplace=True)
        self.conv2 = torch.nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.drop_rate, self.memory_efficient = 0.0, memory_efficient

    def bottleneck(self, *features: Tensor) -> Tensor:
        return self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))

    def forward(self, features: list[Tensor]) -> Tensor:
        if self.memory_efficient and torch.is_grad_enabled():
            hidden = checkpoint(self.bottleneck, *features, use_reentrant=False)
        else:
            hidden = self.bottleneck(*features)
        return self.conv2(self.relu2(self.norm2(hidden)))


class DenseBlock(torch.nn.ModuleDict):
    def __init__(self, layers: int, channels: int, growth: int, memory_efficient: bool):
        super().__init__()
        for i in range(layers):
            self[f"denselayer{i + 1}"] = DenseLayer(channels + i * growth, growth, memory_efficient)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet(name: str, classes: int, memory_efficient: bool = False) -> torch.nn.Sequential:
    growth, blocks, channels, imagenet = DENSENETS[name]
    stem = [torch.nn.Conv2d(3, channels, 7 if imagenet else 3, 2 if imagenet else 1, 3 if imagenet else 1, bias=False)]
    if imagenet:
        stem += [torch.nn.BatchNorm2d(channels), torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(3, 2, 1)]
    parts = [*stem]
    for i, layers in enumerate(blocks):
        parts.append(DenseBlock(layers, channels, growth, memory_efficient))
        channels += layers * growth
        parts += [torch.nn.BatchNorm2d(channels), torch.nn.ReLU(inplace=True)]
        if i < len(blocks) - 1:
            parts += [torch.nn.Conv2d(channels, channels // 2, 1, bias=False), torch.nn.AvgPool2d(2)]
            channels //= 2
    return torch.nn.Sequential(
        *parts, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, classes)
    )


class BasicBlock(torch.nn.Module):
    """y = relu(bn1 x), x or projection(y) + conv2 relu(bn2 conv1 y): the block of the ResNEst authors."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.bn1 = torch.nn.BatchNorm2d(channels)
        self.conv1 = torch.nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(width)
        self.conv2 = torch.nn.Conv2d(width, width, 3, padding=1, bias=False)
        if stride != 1 or channels != width:
            self.projection = torch.nn.Sequential(torch.nn.Conv2d(channels, width, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = self.projection(y) if hasattr(self, "projection") else x
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + shortcut


def resnet(name: str, classes: int) -> torch.nn.Sequential:
    blocks, widths = RESNETS[name]
    channels, parts = 16, [torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    for stage, width in enumerate(widths):
        for i in range(blocks):
            parts.append(BasicBlock(channels, width, 2 if stage and not i else 1))
            channels = width
    head = [torch.nn.BatchNorm2d(channels), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    return torch.nn.Sequential(*parts, *head, torch.nn.Linear(channels, classes))


class Bottleneck(torch.nn.Module):
    """conv3 relu(norm3 conv2 relu(norm2 conv1 relu(norm1 x))) + x, timm's names."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.norm1 = torch.nn.BatchNorm2d(channels)
        self.conv1 = torch.nn.Conv2d(channels, width, 1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(width)
        self.conv2 = torch.nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm3 = torch.nn.BatchNorm2d(width)
        self.conv3 = torch.nn.Conv2d(width, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        out = self.conv2(F.relu(self.norm2(out)))
        return self.conv3(F.relu(self.norm3(out))) + x
