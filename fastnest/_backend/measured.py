"""For which calls the kernels in CUDA C++ were measured to be faster than those in Triton, where both can run.

`make gpu` times the cases of residual_chain and dense_chain by both, side by side in the same rounds; column "x triton"
of its table is Triton's time over that of CUDA C++. Where that is above 1.05 as a graph (the device alone) in every
case of an op and dtype from one size to another, with a case at either end, forward and in training, it becomes a row
here that names the JSON in benchmarks/results. An op whose kernels in CUDA C++ are for inference alone needs no case in
training. A row may also come from measurements of the same kernels alone, before they were an op, beside the time of
Triton's on the same card: its JSON says so, and `make gpu` replaces it. Where no row fits, Triton runs.
"""

from typing import NamedTuple

import torch


class Row(NamedTuple):
    """Sizes of an op, least and most of each letter that decides, for which CUDA C++ is faster, and where that stands.

    Letters as the op passes them: n rows, m width, k bottleneck features, d growth of the first block, l blocks. Of
    dense_block2d: b hidden channels and d growth, 0 where layers differ, w the width of an image. With a bound on n or
    w, torch.compile compiles again where it is crossed.
    """

    op: str
    dtype: torch.dtype
    sizes: dict[str, tuple[int, int]]
    source: str


ROWS: tuple[Row, ...] = (
    Row(
        "dense_block2d",
        torch.bfloat16,
        {"b": (128, 128), "d": (32, 32), "w": (7, 56)},
        "benchmarks/results/prototypes/dense_block2d-nvidia-h200.json",
    ),
)


def why_cuda(op: str, dtype: torch.dtype, sizes: dict[str, int]) -> str:
    """What says that CUDA C++ is faster for these sizes; "" where nothing does."""
    for row in ROWS:
        if (row.op, row.dtype) == (op, dtype):
            if all(least <= sizes[letter] <= most for letter, (least, most) in row.sizes.items()):
                return f"cuda: measured to be faster, {row.source}"
    return ""
