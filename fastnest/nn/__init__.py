"""Modules: residual and dense chains on rows."""

from .dense_chain import DenseChain, DenseGrowth
from .norm import ChainNorm
from .residual_chain import Bottleneck, Residual, ResidualChain

__all__ = ["Bottleneck", "ChainNorm", "DenseChain", "DenseGrowth", "Residual", "ResidualChain"]
