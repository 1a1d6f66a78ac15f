"""Sums that programs took side by side, each into a slice of its own, added in the slices' order: same bits always."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import MULTIPROCESSORS, cdiv, wide

MOST_BYTES = 64 * 2**20  # of all slices


@triton.jit
def _add_kernel(parts, total, slices, size, BLOCK: tl.constexpr):
    at = wide(tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    value = tl.zeros([BLOCK], tl.float32)
    for i in range(slices):
        value += tl.load(parts + wide(i) * size + at, there, other=0)
    tl.store(total + at, value, there)


def slices_for(programs: int, steps: int, elements: int) -> int:
    """How many programs should share the steps of each of `programs` sums: until two run on every multiprocessor."""
    return max(1, min(cdiv(2 * MULTIPROCESSORS, programs), steps, MOST_BYTES // (4 * elements)))


def empty_slices(slices: int, like: Tensor) -> Tensor:
    """Where programs write their sums: float32 [slices, ...], or what `added` returns where one writes all of it."""
    if slices == 1:
        return like.new_empty(1, *like.shape)
    return like.new_empty(slices, *like.shape, dtype=torch.float32)


def added(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of parts [slices, ...] over the slices, in one launch, or none where there is one slice."""
    slices, *shape = parts.shape
    if slices == 1:
        return parts[0].to(dtype)
    total = parts.new_empty(shape, dtype=dtype)
    if not total.numel():
        return total
    block = 256
    _add_kernel[(cdiv(total.numel(), block),)](parts, total, slices, total.numel(), BLOCK=block, num_warps=4)
    return total
