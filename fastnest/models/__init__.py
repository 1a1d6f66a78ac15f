"""The networks of arXiv 2111.05496."""

from .cifar import cifar
from .densenet import densenest
from .vector import AResNEst, DenseNEst, ResNEst

__all__ = ["AResNEst", "DenseNEst", "ResNEst", "cifar", "densenest"]
