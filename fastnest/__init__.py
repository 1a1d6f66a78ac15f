"""ResNEsts and DenseNEsts for PyTorch (arXiv 2111.05496): fused kernels, modules, models and theory."""

from importlib.metadata import PackageNotFoundError, version

from . import functional, models, nn, theory
from ._backend import backend, backends
from .convert import accelerate, explain, restore

try:
    __version__ = version("fastnest-torch")
except PackageNotFoundError:  # run from the source tree, not installed
    __version__ = "0+unknown"

__all__ = ["accelerate", "backend", "backends", "explain", "functional", "models", "nn", "restore", "theory"]
