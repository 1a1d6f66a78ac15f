"""What launchers share: tile sizes, the choice among a few by measurement, and the precision of float32 products."""

from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

MULTIPROCESSORS = 132  # of an H100; a part with more or fewer only waits longer for its last programs

_tuning = False
_fastest: dict[tuple, dict] = {}
measure = triton.testing.do_bench  # milliseconds of a launch


def tuning(on: bool) -> None:
    """Whether the process measures a few tiles for each new size and keeps to the fastest; off until it is asked for.

    Results then differ in rounding: other tiles sum in another order, and which are fastest may change from run to run.
    Measuring waits for the GPU, so a CUDA graph should be captured only of sizes that have been run before.
    """
    global _tuning
    _tuning = on


def launch(run: Callable[[dict], None], candidates: list[dict], *key) -> None:
    """run(tiles) with the first candidate or, when tuning, the fastest one for `key`; with several, run is repeated."""
    if not _tuning or len(candidates) == 1:
        run(candidates[0])
        return
    if key not in _fastest:
        _fastest[key] = min(candidates, key=lambda tiles: measure(partial(run, tiles)))
    run(_fastest[key])


def warps(count: int) -> dict:
    """Up to 8 warps with all the registers they may have. Left to itself, ptxas takes fewer and spills some."""
    return {"num_warps": count} if torch.version.hip else {"num_warps": count, "maxnreg": 255}


def narrower(tiles: dict) -> list[dict]:
    """Tiles worth measuring besides: half the rows, by as many warps or half of them, which need no more registers."""
    rows = tiles["ROWS"] // 2
    return [tiles | {"ROWS": rows, "num_warps": count} for count in (8, 4)] if rows >= 16 else []


@triton.jit
def wide(i):
    """An index as 64 bits, before it is multiplied by strides."""
    return tl.full([], 0, tl.int64) + i


def cdiv(size: int, by: int) -> int:
    """How many parts of `by` hold `size`; triton.cdiv, which kernels can call too, takes 2 us from Python."""
    return -(-size // by)


def tile(size: int, most: int = 2**30) -> int:
    """The power of two that holds `size`, between 16 (the least of a tensor core's sides) and `most`."""
    return min(max(16, 1 << (size - 1).bit_length()), most)


def rows_for(n: int, most: int) -> int:
    """Rows of a program: as many as it may have, or fewer, down to 16, where multiprocessors would have none."""
    return max(16, min(most, 1 << (cdiv(n, MULTIPROCESSORS) - 1).bit_length()))


def precision(dtype: torch.dtype) -> str:
    """How float32 products are taken: as torch's own setting says, in TF32 or else nearly as float32.

    The latter, on NVIDIA, by three TF32 products of a high and a low half, 22 bits of 24: Triton's other way there, one
    multiply-add per product and thread, needs more registers than there are.
    """
    if dtype is not torch.float32 or torch.version.hip:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.bfloat16, torch.float16)


def present(stand_in: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """A pointer for every tensor; that of an absent one is never read."""
    return [stand_in if t is None else t for t in tensors]
