"""The ops as functions."""

from .ops.basic_block2d import basic_block2d
from .ops.batch_stats import batch_stats
from .ops.bottleneck2d import bottleneck2d
from .ops.dense_block2d import dense_block2d
from .ops.dense_chain import dense_chain
from .ops.residual_chain import residual_chain

__all__ = ["basic_block2d", "batch_stats", "bottleneck2d", "dense_block2d", "dense_chain", "residual_chain"]
