"""L concatenating dense growths on rows: what the forward and the backward share.

What moves through memory (n rows, x of width m, L growths d, hidden layers h, e bytes an element; m_i = m + i d): the
forward reads x once and writes y once, n (m + m_L) e, where eager's `cat` reads and writes x_i anew in every block. A
program owns a tile of rows: it copies x into y, and for every block reads its rows of y back in chunks of columns and
writes the growth behind them. That is n (m + ... + m_{L-1}) e of reads, quadratic in L, of lines the program has just
written: the caches serve them as long as the tiles of all programs fit. A hidden layer passes through memory too, n h e
a block, which training keeps for the backward (and z of a growth under an activation that does not tell it, n d e).

Triton takes no list of pointers, so that one launch packs every list into one buffer, W bytes read and written for
weights of W bytes. Where all blocks grow by the same d (and have the same h), where block i lies in it is a formula,
and the forward of all blocks is one launch. Otherwise it is one for each run of equal blocks, in the same y. Launches
of a run: packing, one for each of weight, bias, hidden_weight, hidden_bias, scale and shift that there is, where it has
more than one block, and one kernel.

The backward goes from the last block to the first, a tile of rows per program, and gathers: the gradient of a growth's
columns is dy's plus that of every later block, a sum over all their features. It stays in float32 in registers until it
is whole, so that nothing but dz, n L d e (with hidden layers n L h e more), is written, and read back quadratically in
L as y is in the forward. No gradient of the stream is in memory, but between two runs: [n, m], in float32. Weights'
gradients are products over rows of what is then in memory: each program sums some rows of a tile of them into a slice
of its own, so that no sum depends on the order in which programs run, and torch adds the slices. Launches of a run:
packing of the weights, scale and shift; the rows; with hidden layers 2 and else 1 for the weights, and 1 with scale and
shift. Then one sum for each list of gradients, and once for all runs a copy into tensors of their own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .launch import is_half, precision, tile, wide

# Left to itself, ptxas takes fewer registers, for another program on the multiprocessor, and spills some.
WARPS = {"num_warps": 4, "num_stages": 2} | ({} if torch.version.hip else {"maxnreg": 255})


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


def options(run: Run, dtype: torch.dtype, scaled_gradient: bool = False) -> dict:
    """Tiles, warps and stages, chosen so that no register is spilled.

    scaled_gradient: whether a gradient goes through scale and shift, where u, du and x stand beside it. Sizes that no
    vector divides need as many registers, for an address of every element.
    """
    rows, most = (64, 64) if is_half(dtype) else (32, 32)
    if scaled_gradient or any(size % 16 for size in (run.m, run.d, run.h)):
        rows, most = rows // 2, 32
    return {
        "ROWS": rows,
        "CHUNK": most,
        "FEATURES": tile(max(run.d, run.h), most),
        "PRECISION": precision(dtype),
        **WARPS,
    }


@triton.jit
def columns_before(i, m, d):
    """m_0 + ... + m_{i-1}, for m_i = m + i d: where block i lies among vectors [m_i], or rows of them."""
    i = wide(i)
    return i * m + i * (i - 1) // 2 * d


@triton.jit
def affine(x, scale, shift, column, of_column, AFFINE: tl.constexpr):
    """scale x + shift for a chunk of columns [rows, chunk], and scale."""
    factor = tl.full([1, 1], 1.0, tl.float32)
    u = x
    if AFFINE:
        factor = tl.load(scale + column, of_column, other=0).to(tl.float32)[None, :]
        u = x * factor + tl.load(shift + column, of_column, other=0).to(tl.float32)[None, :]
    return u, factor


@triton.jit
def into_product(x, scale, shift, column, of_column, ACT, AFFINE: tl.constexpr):
    """What a chunk of columns is multiplied with, f(scale x + shift)."""
    u, _ = affine(x, scale, shift, column, of_column, AFFINE)
    return activate(u, ACT)
