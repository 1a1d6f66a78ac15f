"""The ops as functions."""

from .ops.batch_stats import batch_stats
from .ops.dense_block2d import dense_block2d
from .ops.dense_chain import dense_chain
from .ops.residual_chain import residual_chain

__all__ = ["batch_stats", "dense_block2d", "dense_chain", "residual_chain"]
