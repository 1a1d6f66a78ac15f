"""Modules: residual and dense chains on rows, dense and residual blocks on images."""

from .basic_block2d import BasicBlock2d
from .bottleneck2d import Bottleneck2d
from .dense_block2d import DenseBlock2d
from .dense_chain import DenseChain, DenseGrowth
from .norm import ChainNorm
from .residual_chain import Bottleneck, Residual, ResidualChain

__all__ = [
    "BasicBlock2d",
    "Bottleneck",
    "Bottleneck2d",
    "ChainNorm",
    "DenseBlock2d",
    "DenseChain",
    "DenseGrowth",
    "Residual",
    "ResidualChain",
]
