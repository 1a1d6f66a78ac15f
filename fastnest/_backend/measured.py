"""For which calls the kernels in CUDA C++ were measured to be faster than those in Triton, where both can run.

`make gpu` times the cases of residual_chain and dense_chain by both, side by side in the same rounds; column "x triton"
of its table is Triton's time over that of CUDA C++. Where that is above 1.05 as a graph (the device alone) in every
case of an op and dtype from one size to another, with a case at either end, forward and in training, it becomes a row
here that names the JSON in benchmarks/results. Where no row fits, Triton runs.
"""

from typing import NamedTuple

import torch


class Row(NamedTuple):
    """Sizes of an op, least and most of each letter that decides, for which CUDA C++ is faster, and where that stands.

    Letters as the op passes them: n rows, m width, k bottleneck features, d growth of the first block, l blocks. With a
    bound on n, torch.compile compiles again where n crosses it.
    """

    op: str
    dtype: torch.dtype
    sizes: dict[str, tuple[int, int]]
    source: str


ROWS: tuple[Row, ...] = ()


def why_cuda(op: str, dtype: torch.dtype, sizes: dict[str, int]) -> str:
    """What says that CUDA C++ is faster for these sizes; "" where nothing does."""
    for row in ROWS:
        if (row.op, row.dtype) == (op, dtype):
            if all(least <= sizes[letter] <= most for letter, (least, most) in row.sizes.items()):
                return f"cuda: measured to be faster, {row.source}"
    return ""
