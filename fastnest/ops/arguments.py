"""What every op does with its arguments before anything runs: check, cast under autocast, lay out in rows."""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import NoReturn, TypeVar

import torch
from torch import Tensor

from .. import _backend
from ..reference.activation import ACTIVATIONS

Name = TypeVar("Name")
Wanted = tuple[Name, Tensor | None, tuple[int, ...]]  # what an argument is called, itself, the shape it should have
MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)

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
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def check_flags(op: str, **flags: bool) -> None:
    """They are bools: a word for no is true, too."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{op}: {name} must be a bool, got {flag!r}")


def check_number(op: str, name: str, number: float) -> None:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{op}: {name} must be a number, got {number!r}")


def misfit(x: Tensor, expected: Iterable[Wanted[Name]]) -> Wanted[Name] | None:
    """The first (name, tensor, shape) without that shape or x's dtype and device; an absent tensor (None) fits.

    Says no more than that, because it runs before every op: 0.3 us a tensor. `raise_misfit` finds the words.
    """
    dtype, cpu = x.dtype, x.is_cpu
    for wanted in expected:
        _, tensor, shape = wanted
        if tensor is not None and not (
            isinstance(tensor, Tensor)
            and tensor.shape == shape
            and tensor.dtype is dtype
            and ((cpu and tensor.is_cpu) or tensor.device == x.device)
        ):
            return wanted
    return None


def raise_misfit(op: str, x: Tensor, wanted: Wanted[str], match: str) -> NoReturn:
    """What does not fit about a tensor that should have had this shape to match the argument named in `match`."""
    name, tensor, shape = wanted
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
    if device != "cpu" and not torch.amp.is_autocast_available(device):  # meta, say, where asking on is an error
        return None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def cast(tensor: MaybeTensor, dtype: torch.dtype) -> MaybeTensor:
    """As autocast casts: floating point tensors, but never float64."""
    if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype is not torch.float64:
        return tensor.to(dtype)
    return tensor


def rows(name: str, x: MaybeTensor) -> MaybeTensor:
    """x [n, m] for a kernel, which wants consecutive features: x itself, or a copy where its last stride is not 1."""
    if x is None or x.is_contiguous() or x.stride(1) == 1:
        return x
    return _copied(name, x)


def contiguous(name: str, tensor: MaybeTensor) -> MaybeTensor:
    """A tensor for a kernel, which wants it contiguous: itself, or a copy where it is not."""
    return tensor if tensor is None or tensor.is_contiguous() else _copied(name, tensor)


def _copied(name: str, tensor: Tensor) -> Tensor:
    _backend.note(f"{name} is copied first, from strides {list(tensor.stride())} to rows that a kernel reads")
    return tensor.contiguous()


def as_list(op: str, name: str, tensors: Iterable[Tensor] | None, each: str) -> list[Tensor]:
    """A list argument, which has a tensor for `each` of something, or is absent: no tensors."""
    if tensors is None:
        return []
    if isinstance(tensors, Tensor) or not hasattr(tensors, "__iter__"):
        got = "a torch.Tensor" if isinstance(tensors, Tensor) else type(tensors).__name__
        raise TypeError(f"{op}: {name} must be a sequence {each}, got {got}")
    found = list(tensors)
    for i, tensor in enumerate(found):
        if tensor is None:  # which `misfit` takes for an absent argument
            raise TypeError(f"{op}: {name}[{i}] must be a torch.Tensor, got NoneType")
    return found


def present(lists: Iterable[Sequence[Tensor]]) -> tuple[Sequence[Tensor] | None, ...]:
    """Lists for an operator, which takes None where one is absent: what AOTInductor's runtime makes of an empty one."""
    return tuple(tensors if len(tensors) else None for tensors in lists)


def need_grad(tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


Lists = TypeVar("Lists")


def unflat(lists: Callable[..., Lists], flat: Sequence[Tensor], lengths: Sequence[int]) -> Lists:
    """lists(...) of tensors that autograd takes one after the other: the first lengths[0], the next lengths[1], ..."""
    ends = list(accumulate(lengths))
    return lists(*(list(flat[end - length : end]) for end, length in zip(ends, lengths, strict=True)))
