"""L concatenating dense growths on rows: backward (what moves, in how many launches: dense_chain.py)."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import IDEMPOTENT, activate_backward, affine
from .dense_chain_runs import Run, columns_before, into_product, options, packed, runs
from .launch import cdiv, precision, tile, warps, wide
from .slices import added, slices_for


@triton.jit
def _through(dz, weight, du, of_row, feature, features, column, of_column, width, PRECISION: tl.constexpr):
    """du + dz weight for a chunk of features and one of columns, weight [features, width]."""
    of_feature = feature < features
    d = tl.load(dz + feature[None, :], of_row & of_feature[None, :], other=0)
    at = feature[:, None] * width + column[None, :]
    w = tl.load(weight + at, of_feature[:, None] & of_column[None, :], other=0)
    return tl.dot(d, w, du, input_precision=PRECISION)


@triton.jit
def _gathered(
    dy, y, dz, weight, scale, shift, inside, column, of_column, first, l, m, d, r,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr, ACT: tl.constexpr, PRE: tl.constexpr,
    AFFINE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The whole gradient of a chunk of columns, dy's and what blocks first, ..., l - 1 make of them by r features each.

    dy, y, dz: at the rows.
    """
    there = inside & of_column[None, :]
    x = tl.zeros([ROWS, COLUMNS], tl.float32)
    if PRE or AFFINE:
        x = tl.load(y + column[None, :], there, other=0).to(tl.float32)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    chunks = tl.cdiv(r, FEATURES)
    for chunk in range(first * chunks, l * chunks):
        i = chunk // chunks
        feature = chunk % chunks * FEATURES + tl.arange(0, FEATURES)
        before = columns_before(i, m, d)
        of_block = weight + before * r
        if AFFINE:
            du = tl.zeros([ROWS, COLUMNS], tl.float32)
            du = _through(dz + wide(i) * r, of_block, du, inside, feature, r, column, of_column, m + i * d, PRECISION)
            u, factor = affine(x, scale + before, shift + before, column, of_column, AFFINE)
            if PRE:
                du = activate_backward(du, u, ACT)
            total += du * factor
        else:
            total = _through(
                dz + wide(i) * r, of_block, total, inside, feature, r, column, of_column, m + i * d, PRECISION
            )
    if PRE and not AFFINE:
        total = activate_backward(total, x, ACT)  # of every block alike
    return total + tl.load(dy + column[None, :], there, other=0).to(tl.float32)


@triton.jit
def _rows_kernel(
    dy, y, hidden, weight, hidden_weight, scale, shift, dx, dz, dz_hidden,
    n, l, m, d, h, dy_stride, y_stride, hidden_stride, hidden_step,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, FEATURES: tl.constexpr, ACT: tl.constexpr, PRE: tl.constexpr,
    HIDDEN: tl.constexpr, AFFINE: tl.constexpr, SAVED_GROWTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx [n, m], dz [n, l, d] and dz_hidden [n, l, h], from the last block to the first."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = (row < n)[:, None]
    of_dy = dy + row[:, None] * dy_stride
    of_y = y + row[:, None] * y_stride
    of_hidden = hidden + row[:, None] * hidden_stride
    of_dz = dz + row[:, None] * l * d
    of_dz_hidden = dz_hidden + row[:, None] * l * h
    # Of every block's first linear map.
    r = h if HIDDEN else d
    of_first = of_dz_hidden if HIDDEN else of_dz
    first_weight = hidden_weight if HIDDEN else weight
    for back in range(l):
        i = l - 1 - back
        of_saved = of_hidden + wide(i) * hidden_step
        for begin in range(0, d, FEATURES):
            feature = begin + tl.arange(0, FEATURES)
            of_feature = feature < d
            kept = inside & of_feature[None, :]
            g = _gathered(
                of_dy, of_y, of_first, first_weight, scale, shift, inside, m + i * d + feature, of_feature,
                i + 1, l, m, d, r, ROWS, FEATURES, FEATURES, ACT, PRE, AFFINE, PRECISION,
            )  # fmt: skip
            if not PRE:
                if SAVED_GROWTH:
                    z = tl.load(of_saved + h + feature[None, :], kept, other=0).to(tl.float32)
                else:
                    z = tl.load(of_y + m + i * d + feature[None, :], kept, other=0).to(tl.float32)
                g = activate_backward(g, z, ACT)
            tl.store(of_dz + wide(i) * d + feature[None, :], g, kept)
        tl.debug_barrier()
        if HIDDEN:
            for begin in range(0, h, FEATURES):
                column = begin + tl.arange(0, FEATURES)
                of_column = column < h
                dh = tl.zeros([ROWS, FEATURES], tl.float32)
                for at in range(0, d, FEATURES):
                    feature = at + tl.arange(0, FEATURES)
                    of_block = weight + wide(i) * d * h
                    dh = _through(
                        of_dz + wide(i) * d, of_block, dh, inside, feature, d, column, of_column, h, PRECISION
                    )
                kept = inside & of_column[None, :]
                z = tl.load(of_saved + column[None, :], kept, other=0).to(tl.float32)
                tl.store(of_dz_hidden + wide(i) * h + column[None, :], activate_backward(dh, z, ACT), kept)
            tl.debug_barrier()
    for begin in range(0, m, CHUNK):
        column = begin + tl.arange(0, CHUNK)
        of_column = column < m
        g = _gathered(
            of_dy, of_y, of_first, first_weight, scale, shift, inside, column, of_column,
            0, l, m, d, r, ROWS, CHUNK, FEATURES, ACT, PRE, AFFINE, PRECISION,
        )  # fmt: skip
        tl.store(dx + row[:, None] * m + column[None, :], g, inside & of_column[None, :])


@triton.jit
def _weights_kernel(
    source, dz, scale, shift, slices, n, l, m, d, r, source_stride, source_step, total, splits,
    ROWS: tl.constexpr, TO: tl.constexpr, CHUNK: tl.constexpr, ACT: tl.constexpr, AFFINE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Slices [splits, total] of the gradients of l weights [r, m + i d], given what they multiply before f and dz."""
    i = tl.program_id(1)
    split = tl.program_id(2)
    tiles = tl.cdiv(r, TO)
    width = m + i * d
    before = columns_before(i, m, d)
    to = tl.program_id(0) % tiles * TO + tl.arange(0, TO)
    column = tl.program_id(0) // tiles * CHUNK + tl.arange(0, CHUNK)
    of_column = column < width
    value = tl.zeros([TO, CHUNK], tl.float32)
    # Of a narrow block there are tiles with no column: they have no rows either.
    behind = tl.where(tl.program_id(0) // tiles * CHUNK < width, tl.cdiv(n, ROWS), 0)
    for tile_of_rows in range(split, behind, splits):
        row = wide(tile_of_rows) * ROWS + tl.arange(0, ROWS)
        inside = (row < n)[:, None]
        there = inside & of_column[None, :]
        at = row[:, None] * source_stride + wide(i) * source_step + column[None, :]
        part = tl.load(source + at, there, other=0).to(tl.float32)
        # Rows behind the last have a shift too, which may be infinite.
        a = tl.where(there, into_product(part, scale + before, shift + before, column, of_column, ACT, AFFINE), 0.0)
        at = row[:, None] * l * r + wide(i) * r + to[None, :]
        g = tl.load(dz + at, inside & (to < r)[None, :], other=0)
        value = tl.dot(tl.trans(g), a.to(g.dtype), value, input_precision=PRECISION)
    at = split.to(tl.int64) * total + before * r + to[:, None] * width + column[None, :]
    tl.store(slices + at, value, (to < r)[:, None] & of_column[None, :])


@triton.jit
def _affine_kernel(
    y, dz, weight, scale, shift, slices, n, l, m, d, r, y_stride, total, splits,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, FEATURES: tl.constexpr, ACT: tl.constexpr, PRE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Slices [splits, 2, total] of the gradients of scale and shift."""
    i = tl.program_id(1)
    split = tl.program_id(2)
    width = m + i * d
    before = columns_before(i, m, d)
    column = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    of_column = column < width
    dscale = tl.zeros([CHUNK], tl.float32)
    dshift = tl.zeros([CHUNK], tl.float32)
    behind = tl.where(tl.program_id(0) * CHUNK < width, tl.cdiv(n, ROWS), 0)
    for tile_of_rows in range(split, behind, splits):
        row = wide(tile_of_rows) * ROWS + tl.arange(0, ROWS)
        inside = (row < n)[:, None]
        du = tl.zeros([ROWS, CHUNK], tl.float32)
        for begin in range(0, r, FEATURES):
            feature = begin + tl.arange(0, FEATURES)
            of_block = dz + row[:, None] * l * r + wide(i) * r
            du = _through(of_block, weight + before * r, du, inside, feature, r, column, of_column, width, PRECISION)
        there = inside & of_column[None, :]
        x = tl.load(y + row[:, None] * y_stride + column[None, :], there, other=0).to(tl.float32)
        if PRE:
            u, _ = affine(x, scale + before, shift + before, column, of_column, True)
            du = activate_backward(du, u, ACT)
        du = tl.where(there, du, 0.0)
        dscale += tl.sum(du * x, 0)
        dshift += tl.sum(du, 0)
    at = split.to(tl.int64) * 2 * total + before + column
    tl.store(slices + at, dscale, of_column)
    tl.store(slices + at + total, dshift, of_column)


def _weight_gradients(
    source: Tensor, step: int, dz: Tensor, scale: Tensor, shift: Tensor, l: int, m: int, d: int, r: int,
    activation: str, is_affine: bool,
) -> Tensor:  # fmt: skip
    """The gradients of l weights [r, m + i d], packed, in float32."""
    n, half = dz.shape[0], dz.dtype is not torch.float32
    rows, to, chunk = (64 if half else 32), tile(r, 64 if half else 32), (64 if half else 32)
    total = r * (l * m + l * (l - 1) // 2 * d)
    tiles = cdiv(r, to) * cdiv(m + (l - 1) * d, chunk)
    splits = slices_for(tiles * l, cdiv(n, rows), total)
    slices = dz.new_empty(splits, total, dtype=torch.float32)
    _weights_kernel[(tiles, l, splits)](
        source, dz, scale, shift, slices, n, l, m, d, r, source.stride(0), step, total, splits,
        ROWS=rows, TO=to, CHUNK=chunk, ACT=activation, AFFINE=is_affine, PRECISION=precision(dz.dtype),
        num_stages=2, **warps(4),
    )  # fmt: skip
    return added(slices, torch.float32)


def _affine_gradients(y: Tensor, dz: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, run: Run, **options):
    """The gradients of the run's scale and shift, each packed, in float32."""
    n, r = y.shape[0], run.h or run.d
    total = run.l * run.m + run.l * (run.l - 1) // 2 * run.d
    tiles = cdiv(run.m + (run.l - 1) * run.d, options["CHUNK"])
    splits = slices_for(tiles * run.l, cdiv(n, options["ROWS"]), 2 * total)
    slices = y.new_empty(splits, 2, total, dtype=torch.float32)
    _affine_kernel[(tiles, run.l, splits)](
        y, dz, weight, scale, shift, slices, n, run.l, run.m, run.d, r, y.stride(0), total, splits, **options
    )
    return added(slices, torch.float32).unbind()


def dense_chain_backward(
    dy: Tensor,
    y: Tensor,
    hidden: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    hidden_weight: Sequence[Tensor],
    hidden_bias: Sequence[Tensor],
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    activation: str,
    pre_activation: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """The gradients of x and of every list's tensors, given dy and what the forward returned."""
    n, m = y.shape[0], y.shape[1] - sum(block.shape[0] for block in weight)
    lists = (weight, bias, hidden_weight, hidden_bias, scale, shift)
    if n == 0:
        return y.new_empty(0, m), *([torch.zeros_like(t) for t in tensors] for tensors in lists)
    gradients = [[torch.empty_like(t) for t in tensors] for tensors in lists]
    saved_growth = not pre_activation and activation not in IDEMPOTENT
    first = activation if pre_activation else "identity"
    to, of = [], []  # tensors of their own, and where in packed gradients their values are
    g, at = dy, hidden.shape[1]
    for run in reversed(runs(m, weight, hidden_weight)):
        l, d, h = run.l, run.d, run.h
        step = h + saved_growth * d
        at -= l * step
        w, hidden_w, factor, offset = packed(y, run, weight, hidden_weight, scale, shift)
        dx = y.new_empty(n, run.m, dtype=torch.float32 if run.blocks.start else y.dtype)
        dz, dz_hidden = y.new_empty(n, l * d), y.new_empty(n, l * h)
        saved = hidden[:, at:]
        tiles = options(n, run, y.dtype, bool(scale))
        _rows_kernel[(cdiv(n, tiles["ROWS"]),)](
            g, y, saved, w, hidden_w, factor, offset, dx, dz, dz_hidden,
            n, l, run.m, d, h, g.stride(0), y.stride(0), hidden.stride(0), step,
            ACT=activation, PRE=pre_activation, HIDDEN=h > 0, AFFINE=bool(scale), SAVED_GROWTH=saved_growth, **tiles,
        )  # fmt: skip
        g = dx
        dz_first, first_w = (dz_hidden, hidden_w) if h else (dz, w)
        found = [None] * 6
        found[2 if h else 0] = _weight_gradients(
            y, 0, dz_first, factor, offset, l, run.m, d, h or d, first, bool(scale)
        )
        if h:
            found[0] = _weight_gradients(saved, step, dz, y, y, l, h, 0, d, activation, False)
        if bias:
            found[1] = dz.sum(0, dtype=torch.float32)
        if hidden_bias:
            found[3] = dz_hidden.sum(0, dtype=torch.float32)
        if scale:
            tiles |= {"ACT": activation, "PRE": pre_activation}
            found[4:] = _affine_gradients(y, dz_first, first_w, factor, offset, run, **tiles)
        for values, tensors in zip(found, gradients, strict=True):
            if tensors:
                tensors = tensors[run.blocks]
                parts = values.split([t.numel() for t in tensors])
                to += tensors
                of += [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(to, of)
    return g, *gradients
