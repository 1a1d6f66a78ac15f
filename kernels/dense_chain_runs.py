"""L concatenating dense growths on rows: what the forward and the backward share."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate, affine
from .launch import is_half, precision, rows_for, tile, warps, wide


class Run(NamedTuple):
    """l consecutive blocks that grow by the same d and hide the same h (0: no hidden layer), from width m on."""

    blocks: slice
    m: int
    l: int
    d: int
    h: int


def runs(m: int, weight: Sequence[Tensor], hidden_weight: Sequence[Tensor]) -> list[Run]:
    """All blocks in order, in as few runs as they make."""
    found: list[Run] = []
    for i, block in enumerate(weight):
        d, h = block.shape[0], hidden_weight[i].shape[0] if hidden_weight else 0
        last = found[-1] if found else None
        if last and (last.d, last.h) == (d, h):
            found[-1] = last._replace(blocks=slice(last.blocks.start, i + 1), l=last.l + 1)
        else:
            found.append(Run(slice(i, i + 1), m, 1, d, h))
        m += d
    return found


def packed(stand_in: Tensor, run: Run, *lists: Sequence[Tensor]) -> list[Tensor]:
    """The run's blocks of every list in one buffer each; that of an empty list is never read."""
    parts = [[block.reshape(-1) for block in tensors[run.blocks]] for tensors in lists]
    return [torch.cat(part) if len(part) > 1 else part[0] if part else stand_in for part in parts]


def options(n: int, run: Run, dtype: torch.dtype, scaled_gradient: bool = False) -> dict:
    """Tiles, warps and stages, chosen so that no register is spilled.

    scaled_gradient: whether a gradient goes through scale and shift, where u, du and x stand beside it. Sizes that no
    vector divides need as many registers, for an address of every element.
    """
    rows, most = (64, 64) if is_half(dtype) else (32, 32)
    if scaled_gradient or any(size % 16 for size in (run.m, run.d, run.h)):
        rows, most = rows // 2, 32
    return {
        "ROWS": rows_for(n, rows),
        "CHUNK": most,
        "FEATURES": tile(max(run.d, run.h), most),
        "PRECISION": precision(dtype),
        **warps(4),
        "num_stages": 2,
    }


@triton.jit
def columns_before(i, m, d):
    """m_0 + ... + m_{i-1}, for m_i = m + i d: where block i lies among vectors [m_i], or rows of them."""
    i = wide(i)
    return i * m + i * (i - 1) // 2 * d


@triton.jit
def into_product(x, scale, shift, column, of_column, ACT, AFFINE: tl.constexpr):
    """What a chunk of columns is multiplied with, f(scale x + shift)."""
    u, _ = affine(x, scale, shift, column, of_column, AFFINE)
    return activate(u, ACT)
