"""The networks of arXiv 2111.05496."""

from .vector import AResNEst, DenseNEst, ResNEst

__all__ = ["AResNEst", "DenseNEst", "ResNEst"]
