"""The ops as functions."""

from .ops.dense_chain import dense_chain
from .ops.residual_chain import residual_chain

__all__ = ["dense_chain", "residual_chain"]
