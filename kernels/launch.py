"""What launchers share: tile sizes, and the precision of float32 products."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# 8 warps may have 255 registers a thread. Left to itself, ptxas takes fewer, for a second program, and spills some.
WARPS = {"num_warps": 8} if torch.version.hip else {"num_warps": 8, "maxnreg": 255}


@triton.jit
def wide(i):
    """An index as 64 bits, before it is multiplied by strides."""
    return tl.full([], 0, tl.int64) + i


def tile(size: int, most: int = 2**30) -> int:
    """The power of two that holds `size`, between 16 (the least of a tensor core's sides) and `most`."""
    return min(max(16, triton.next_power_of_2(size)), most)


def precision(dtype: torch.dtype) -> str:
    """How float32 products are taken: as torch's own setting says, in TF32 or else with the error of float32.

    The latter, on NVIDIA, by three TF32 products of a high and a low half: Triton's other way there, one multiply-add
    per product and thread, needs more registers than there are.
    """
    if dtype is not torch.float32 or torch.version.hip:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.bfloat16, torch.float16)


def present(stand_in: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """A pointer for every tensor; that of an absent one is never read."""
    return [stand_in if t is None else t for t in tensors]
