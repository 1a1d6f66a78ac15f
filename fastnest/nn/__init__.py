"""Modules: residual and dense chains on rows, dense and residual blocks on images."""

from .dense_block2d import DenseBlock2d
from .dense_chain import DenseChain, DenseGrowth
from .norm import ChainNorm
from .residual_chain import Bottleneck, Residual, ResidualChain

__all__ = ["Bottleneck", "ChainNorm", "DenseBlock2d", "DenseChain", "DenseGrowth", "Residual", "ResidualChain"]
