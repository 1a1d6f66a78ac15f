"""What every op does with its arguments before anything runs: check them, cast them under autocast, lay them out in rows."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from .. import _backend
from ..reference.activation import ACTIVATIONS

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_rows(op: str, x: Tensor) -> None:
    """x is a floating point tensor [n, m] with m >= 1."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() != 2 or x.size(1) < 1:
        raise ValueError(f"{op}: x must be [rows, features] with at least one feature, got x {list(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{op}: x must be float64, float32, bfloat16 or float16, got {x.dtype}")


def check_activation(op: str, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def check_tensor(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], match: str, x: Tensor) -> None:
    """tensor has this shape (to match the argument named in `match`) and the dtype and device of x."""
    if (
        isinstance(tensor, Tensor)
        and tensor.shape == shape
        and tensor.dtype is x.dtype
        and (tensor.is_cpu and x.is_cpu or tensor.device == x.device)
    ):
        return
    _raise_mismatch(op, name, tensor, shape, match, x)


def _raise_mismatch(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], match: str, x: Tensor) -> NoReturn:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.shape != shape:
        raise ValueError(f"{op}: {name} must be {list(shape)} to match {match}, got {name} {list(tensor.shape)}")
    if tensor.dtype is not x.dtype:
        raise TypeError(f"{op}: {name} must be {x.dtype} as x is, got {tensor.dtype}")
    raise ValueError(f"{op}: {name} must be on {x.device} as x is, got {tensor.device}")


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast wants for tensors on x's device, or None where it is off."""
    device = "cpu" if x.is_cpu else x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """As autocast casts: floating point tensors, but never float64."""
    if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype is not torch.float64:
        return tensor.to(dtype)
    return tensor


def rows(name: str, x: Tensor | None) -> Tensor | None:
    """x [n, m] for a kernel, which wants consecutive features: x itself, or a copy where its last stride is not 1."""
    if x is None or x.is_contiguous() or x.stride(1) == 1:
        return x
    _backend.note(f"{name} is copied first: the kernel wants stride 1 along features, got strides {list(x.stride())}")
    return x.contiguous()


def contiguous(name: str, weight: Tensor | None) -> Tensor | None:
    """A weight for a kernel, which wants it contiguous: the weight itself, or a copy where it is not."""
    if weight is None or weight.is_contiguous():
        return weight
    _backend.note(f"{name} is copied first: the kernel wants it contiguous, got strides {list(weight.stride())}")
    return weight.contiguous()


def need_grad(tensors: Sequence[Tensor | None]) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False
