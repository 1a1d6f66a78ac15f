"""What launchers share: tile sizes, and the precision of float32 products."""

import torch
import triton
import triton.language as tl


@triton.jit
def wide(i):
    """An index as 64 bits, before it is multiplied by strides."""
    return tl.full([], 0, tl.int64) + i


def tile(size: int, most: int) -> int:
    """The power of two that holds `size`, between 16 (the least of a tensor core's sides) and `most`."""
    return min(max(16, triton.next_power_of_2(size)), most)


def precision(dtype: torch.dtype) -> str:
    """How products of this dtype are taken: float32 as torch's own setting says, others exactly."""
    return "tf32" if dtype is torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.bfloat16, torch.float16)
