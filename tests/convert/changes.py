"""What may be done to a block, so that it no longer fits the op."""

import copy

import torch
from torch import nn
from torch.nn.utils import prune


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def with_conv(**options):
    """A change: another convolution in the second layer."""
    conv = nn.Conv2d(8, 4, **{"kernel_size": 3, "padding": 1, "bias": False} | options)
    return with_module("denselayer2.conv2", conv)


def with_module(name: str, module: nn.Module):
    return lambda block: block.set_submodule(name, copy.deepcopy(module))


def with_value(name: str, value):
    module, _, attribute = name.rpartition(".")
    return lambda block: setattr(block.get_submodule(module), attribute, value)


def weight_norm(block: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(block.denselayer1.conv1)


def pruned(block: nn.Module) -> None:
    prune.l1_unstructured(block.denselayer1.conv1, "weight", 0.5)


def dilated(block: nn.Module) -> None:
    block.denselayer1.conv2.dilation = block.denselayer1.conv2.padding = (2, 2)


def with_a_gain(block: nn.Module) -> None:
    block.denselayer1.gain = nn.Parameter(torch.ones(1))


def patched(block: nn.Module) -> None:
    block.forward = lambda x: type(block).forward(block, x)
