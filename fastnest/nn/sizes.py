"""Checks of what modules are made from, called with, and get from modules inside them."""

from collections.abc import Sequence
from typing import Any

import torch

from ..ops.arguments import check_activation, check_flags


def check_size(module: str, name: str, size: Any) -> int:
    """size as an int >= 1, which torch can count to."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{module}: {name} must be an int, got {type(size).__name__}")
    if size < 1:
        raise ValueError(f"{module}: {name} must be at least 1, got {size}")
    if size >= 2**63:
        raise ValueError(f"{module}: {name} must be less than 2^63, got {size}")
    return size


def check_sizes(module: str, name: str, sizes: int | Sequence[int], blocks: int) -> list[int]:
    """One size per block, from one int for all blocks or from one per block."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        return [check_size(module, name, sizes)] * blocks
    if len(sizes) != blocks:
        raise ValueError(f"{module}: {name} must be an int or {blocks} of them, one per block, got {len(sizes)}")
    return [check_size(module, f"{name}[{i}]", size) for i, size in enumerate(sizes)]


def check_options(module: str, activation: Any, norm: Any, **flags: Any) -> None:
    """What every chain is made with."""
    check_activation(module, activation)
    check_norm(module, norm)
    check_flags(module, **flags)


def check_norm(module: str, norm: Any) -> None:
    if norm not in (None, "batch"):
        raise ValueError(f"{module}: norm must be None or 'batch', got {norm!r}")


def check_rows(module: str, x: Any, features: int) -> None:
    """x, what a module is called with, is a tensor [n, features]."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{module}: x must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() != 2 or x.shape[1] != features:
        raise ValueError(f"{module}: x must be [n, {features}], got x {list(x.shape)}")


def check_kind(module: str, x: torch.Tensor, weight: torch.Tensor) -> None:
    """Before any running statistics move, x has the device and dtype that a linear map would ask for.

    Autocast converts another dtype.
    """
    if x.device != weight.device:
        raise ValueError(f"{module}: x must be on {weight.device} as the weights are, got {x.device}")
    if x.dtype is not weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{module}: x must be {weight.dtype} as the weights are, got {x.dtype}")


def check_features(module: str, name: str, values: Any, rows: int, features: int) -> None:
    """values, which an arbitrary inner module returned, is a tensor [rows, features]."""
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"{module}: {name} must return a torch.Tensor, got {type(values).__name__}")
    if values.shape != (rows, features):
        raise ValueError(f"{module}: {name} must return {[rows, features]}, got {list(values.shape)}")


def check_image(module: str, x: Any, channels: int) -> None:
    """x, what a module is called with, is a tensor [n, channels, height, width]."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{module}: x must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"{module}: x must be [n, {channels}, height, width], got x {list(x.shape)}")
