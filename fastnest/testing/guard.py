"""Tensors beside pages of memory that may not be touched: reading outside of them ends the process."""

import ctypes
import mmap

import torch
from torch import Tensor


def before_a_guard_page(values: Tensor) -> Tensor:
    """A copy, strided as `values` are, that ends where a page begins that may not be touched."""
    return _beside(values, at_end=True)


def behind_a_guard_page(values: Tensor) -> Tensor:
    """A copy, strided as `values` are, that begins where a page ends that may not be touched."""
    return _beside(values, at_end=False)


def _beside(values: Tensor, at_end: bool) -> Tensor:
    if not values.numel():
        return values.clone()
    count = 1 + sum((size - 1) * stride for size, stride in zip(values.shape, values.stride(), strict=True))
    page, size = mmap.PAGESIZE, count * values.element_size()
    whole = -(-size // page) * page
    memory = mmap.mmap(-1, whole + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    guard = start + (whole if at_end else 0)
    assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    copy = torch.frombuffer(memory, dtype=values.dtype, offset=whole - size if at_end else page, count=count)
    copy.copy_(values.detach().as_strided((count,), (1,)))
    return copy.as_strided(values.shape, values.stride())
