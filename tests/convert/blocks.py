"""Small models of the real packages' own code, and what is asked of the blocks in them."""

import copy
from functools import cache, partial

import real_models
import torch
from torch import nn

import fastnest
from fastnest import _backend

FUSED = _backend.CPP_IS_BUILT
SMALL = {"growth_rate": 8, "block_config": (2, 3), "bn_size": 2}


class AuthorsBlock(nn.Module):
    """The residual block of the ResNEst authors by its description: it returns the features beside the stream."""

    def __init__(self, channels: int, hidden: int, out: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(hidden, out, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(hidden)
        if stride > 1 or channels != out:
            self.projection = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False))

    def forward(self, x):
        a = self.bn1(x).relu()
        v = self.bn2(self.conv1(a)).relu()
        return self.conv2(v) + (self.projection(a) if hasattr(self, "projection") else x), v


class AuthorsNet(nn.Module):
    """An A-ResNEst of two stages: reads the features of every block."""

    def __init__(self):
        super().__init__()
        self.expansion = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stage = nn.ModuleList([AuthorsBlock(8, 8, 8), AuthorsBlock(8, 12, 16, stride=2), AuthorsBlock(16, 12, 16)])
        self.head = nn.ModuleList(nn.Linear(width, 5) for width in (8, 12, 12, 16))

    def forward(self, x):
        x, y = self.expansion(x), 0
        for block, head in zip(self.stage, self.head, strict=False):
            x, v = block(x)
            y = y + head(v.mean((2, 3)))
        return y + self.head[-1](x.mean((2, 3)))


def torchvision_densenet(**options):
    return real_models.load("torchvision.models.densenet").DenseNet(
        num_init_features=16, num_classes=5, **SMALL, **options
    )


def timm_densenet(**options):
    return real_models.load("timm.models.densenet").DenseNet(num_classes=5, **SMALL, **options)


def monai_densenet(**options):
    module = real_models.load("monai.networks.nets.densenet")
    return module.DenseNet(2, in_channels=3, out_channels=5, init_features=16, **SMALL, **options)


def xrv_densenet(**options):
    module = real_models.load("torchxrayvision.models")
    return module.DenseNet(num_init_features=16, num_classes=5, in_channels=3, weights=None, **SMALL, **options)


def timm_resnetv2(**options):
    module, layers = real_models.load("timm.models.resnetv2"), real_models.load("timm.layers")
    kind = {"conv_layer": layers.create_conv2d, "norm_layer": layers.BatchNormAct2d}
    sizes = {"layers": (2, 2), "channels": (16, 32), "stem_chs": 8, "num_classes": 5}
    return module.ResNetV2(**sizes | kind | options)


# Each with the number of its blocks.
MODELS = {
    "torchvision": (torchvision_densenet, 2),
    "timm": (timm_densenet, 2),
    "monai": (monai_densenet, 2),
    "torchxrayvision": (xrv_densenet, 2),
    "resnetv2": (timm_resnetv2, 4),
    "resnetv2 basic": (partial(timm_resnetv2, basic=True), 4),
    "authors": (AuthorsNet, 3),
}


@cache
def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    make, _ = MODELS[name]
    model = make()
    for module in model.modules():  # statistics and weights as after some training
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_var, 0.5)):
                nn.init.uniform_(tensor, low, low + 1)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return model


def small_model(name: str, training: bool = False) -> nn.Module:
    return copy.deepcopy(_model(name)).train(training)


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def dense_block(layers: int = 2, drop_rate: float = 0.0) -> nn.Module:
    """A block of torchvision's on its own, 6 channels in, 4 growth."""
    torch.manual_seed(0)
    return real_models.load("torchvision.models.densenet")._DenseBlock(layers, 6, 2, 4, drop_rate).eval()


def features() -> torch.Tensor:
    return torch.randn(2, 6, 7, 5, generator=torch.Generator().manual_seed(0))


def rows(model: nn.Module, *inputs) -> list[tuple[str, str, str]]:
    return [(row.module, row.runs, row.reason) for row in fastnest.explain(model, *inputs).rows]


def why(block: nn.Module, *inputs) -> str:
    (row,) = fastnest.explain(block, *inputs).rows
    assert row.runs == "its own forward"
    return row.reason


def runs_the_op(block: nn.Module, *inputs) -> bool:
    """Whether every block in it does, of which there are some, where kernels are built."""
    ops = {runs.split()[0] for _, runs, _ in rows(block, *inputs)}
    return not FUSED or (bool(ops) and ops <= {"dense_block2d", "bottleneck2d", "basic_block2d"})
