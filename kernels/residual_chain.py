"""L bottleneck residual blocks on rows: forward and backward.

What moves through memory (n rows, width m, bottleneck k, l blocks, e bytes an element): the forward of all blocks in one
launch reads x and writes y once, 2 n m e, where eager reads and writes the stream several times a block. A program owns
a tile of rows. Up to HELD_WIDTH its stream stays on chip through all blocks, in float32, as the accumulator of the
second product; wider streams live in float32 in memory and pass through the multiprocessor in chunks, twice a block, which
its caches serve as long as the tiles of all programs fit. Weights are read by every program and come from L2.
Training also writes `hidden`, n l k e (with mid 2 n l k e), and in half precision the unrounded end of the stream, 4 n m.

The backward takes two launches whatever l is. The first steps the stream back, x_{i-1} = x_i - up_i v_i, beside the
gradient g, tile by tile of rows, and writes dz, n l k e. Given all of v and dz, a column of x and g depends on no other
column: the second launch steps chunks of columns back again and sums the weights' gradients, each program into a slice of
its own, so that no sum depends on the order in which programs run. A last launch adds the slices.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import IDEMPOTENT, activate, activate_backward
from .launch import is_half, precision, tile, wide

# Elements of the stream that a program holds, forward and backward (beside as many of its gradient), by product: 8192 are
# 32 registers of each of 256 threads. Three TF32 products leave none.
HELD = {"half": (8192, 4096), "tf32": (4096, 2048), "tf32x3": (2048, 0), "ieee": (0, 0)}
MOST_FEATURES = 128  # k: wider bottlenecks have no kernel
SLICES_BYTES = 64 * 2**20  # at most, for the weights' gradients


@triton.jit
def _into_down(x, scale, shift, column, M, ACT, PRE, AFFINE: tl.constexpr):
    """What a chunk of columns [rows, chunk] is multiplied with, u = scale x + shift, and what goes into down."""
    factor = tl.full([1, 1], 1.0, tl.float32)
    u = x
    if AFFINE:
        factor = tl.load(scale + column, column < M, other=0).to(tl.float32)[None, :]
        u = x * factor + tl.load(shift + column, column < M, other=0).to(tl.float32)[None, :]
    a = u
    if PRE:
        a = activate(u, ACT)
    return factor, u, a


@triton.jit
def _down(x, z, down, scale, shift, column, feature, M, K, ACT, PRE, AFFINE, PRECISION: tl.constexpr):
    """z + f(scale x + shift) down^T for a chunk of columns: [rows, chunk] to [rows, features]."""
    _, _, a = _into_down(x, scale, shift, column, M, ACT, PRE, AFFINE)
    # Columns behind the last meet weights of 0.
    weight = tl.load(
        down + feature[None, :] * M + column[:, None], (feature < K)[None, :] & (column < M)[:, None], other=0
    )
    return tl.dot(a.to(weight.dtype), weight, z, input_precision=PRECISION)


@triton.jit
def _up(v, x, up, column, feature, M, K, given, PRECISION: tl.constexpr):
    """x + v up^T for a chunk of columns: [rows, features] to [rows, chunk]."""
    weight = tl.load(
        up + column[None, :] * K + feature[:, None], (feature < K)[:, None] & (column < M)[None, :] & given, other=0
    )
    return tl.dot(v.to(weight.dtype), weight, x, input_precision=PRECISION)


@triton.jit
def _square(h, weight, feature, K, PRECISION: tl.constexpr, TRANSPOSED: tl.constexpr):
    """h weight^T for weight [k, k], or h weight where TRANSPOSED."""
    here, other = (feature[:, None], feature[None, :])
    at = here * K + other if TRANSPOSED else other * K + here
    w = tl.load(weight + at, (feature < K)[:, None] & (feature < K)[None, :], other=0)
    return tl.dot(h.to(w.dtype), w, input_precision=PRECISION)


@triton.jit
def _rounded(z, like):
    """z as the tensor `like` would keep it."""
    return z.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _forward_kernel(
    x, down, down_bias, mid, mid_bias, up, scale, shift, y, features, hidden, stream,
    n, l, ups, x_stride,
    M: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, FEATURES: tl.constexpr,
    ACT: tl.constexpr, PRE: tl.constexpr, BIAS: tl.constexpr, MID: tl.constexpr, MID_BIAS: tl.constexpr,
    AFFINE: tl.constexpr, RETURN: tl.constexpr, SAVE: tl.constexpr, SAVE_OUTPUT: tl.constexpr,
    SAVE_STREAM: tl.constexpr, HELD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, CHUNK)
    feature = tl.arange(0, FEATURES)
    inside = (row < n)[:, None]
    kept = inside & (feature < K)[None, :]
    LAYERS: tl.constexpr = 2 if MID else 1
    hidden += row[:, None] * l * LAYERS * K + feature[None, :]
    features += row[:, None] * l * K + feature[None, :]
    held = tl.zeros([ROWS, CHUNK], tl.float32)
    if HELD:
        there = inside & (column < M)[None, :]
        held = tl.load(x + row[:, None] * x_stride + column[None, :], there, other=0).to(tl.float32)
    else:
        for begin in range(0, M, CHUNK):
            c = begin + column
            there = inside & (c < M)[None, :]
            part = tl.load(x + row[:, None] * x_stride + c[None, :], there, other=0).to(tl.float32)
            tl.store(stream + row[:, None] * M + c[None, :], part, there)
        tl.debug_barrier()
    for i in range(l):
        z = tl.zeros([ROWS, FEATURES], tl.float32)
        if HELD:
            z = _down(held, z, down, scale, shift, column, feature, M, K, ACT, PRE, AFFINE, PRECISION)
        else:
            for begin in range(0, M, CHUNK):
                c = begin + column
                there = inside & (c < M)[None, :]
                part = tl.load(stream + row[:, None] * M + c[None, :], there, other=0)
                z = _down(part, z, down, scale, shift, c, feature, M, K, ACT, PRE, AFFINE, PRECISION)
        if BIAS:
            z += tl.load(down_bias + feature, feature < K, other=0).to(tl.float32)[None, :]
        z = _rounded(z, y)  # as the backward will read it, or the stream would not step back
        v = activate(z, ACT)
        if SAVE:
            tl.store(hidden, v if SAVE_OUTPUT else z, kept)
        if MID:
            z = _square(v, mid, feature, K, PRECISION, False)
            if MID_BIAS:
                z += tl.load(mid_bias + feature, feature < K, other=0).to(tl.float32)[None, :]
            z = _rounded(z, y)
            v = activate(z, ACT)
            if SAVE:
                tl.store(hidden + K, v if SAVE_OUTPUT else z, kept)
        if RETURN:
            tl.store(features, v, kept)
        # A last block without `up` adds nothing. (As a branch it would keep the stream in registers a second time.)
        v = tl.where(i < ups, v, 0.0)
        if HELD:
            held = _up(v, held, up, column, feature, M, K, i < ups, PRECISION)
        else:
            for begin in range(0, M, CHUNK):
                c = begin + column
                there = inside & (c < M)[None, :]
                at = stream + row[:, None] * M + c[None, :]
                tl.store(at, _up(v, tl.load(at, there, other=0), up, c, feature, M, K, i < ups, PRECISION), there)
            tl.debug_barrier()
        hidden += LAYERS * K
        features += K
        down += K * M
        up += K * M
        mid += K * K
        down_bias += K
        mid_bias += K
        scale += M
        shift += M
    for begin in range(0, M, CHUNK):
        c = begin + column
        there = inside & (c < M)[None, :]
        at = row[:, None] * M + c[None, :]
        if HELD:
            tl.store(y + at, held, there)
            if SAVE_STREAM:
                tl.store(stream + at, held, there)
        else:
            tl.store(y + at, tl.load(stream + at, there, other=0), there)


def residual_chain_forward(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    mid: Tensor | None,
    mid_bias: Tensor | None,
    up: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    pre_activation: bool,
    features: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, features, hidden, stream): see `fastnest.reference.residual_chain`, whose fake says their shapes."""
    (n, m), (l, k, _) = x.shape, down.shape
    idempotent = activation in IDEMPOTENT
    layers = 1 if mid is None else 2
    y = x.new_empty(n, m)
    hidden = x.new_empty(n, l, layers, k) if save else x.new_empty(0)
    found = x.new_empty(n, l, k) if features and not (save and idempotent and mid is None) else x.new_empty(0)
    half = is_half(x.dtype)
    stream = x.new_empty(n, m, dtype=torch.float32) if save and half else x.new_empty(0, dtype=torch.float32)
    if n == 0:
        return y, found, hidden, stream
    options = _options(m, k, x.dtype, False)
    # Where a wide stream lives: at the end that is y, or what is kept for the backward, or nothing anyone keeps.
    carried = stream
    if not options["HELD"] and not stream.numel():
        carried = x.new_empty(n, m, dtype=torch.float32) if half else y
    _forward_kernel[(triton.cdiv(n, options["ROWS"]),)](
        x, down, *_present(x, down_bias, mid, mid_bias), up, *_present(x, scale, shift), y, found, hidden, carried,
        n, l, up.shape[0], x.stride(0), m, k,
        ACT=activation, PRE=pre_activation, BIAS=down_bias is not None, MID=mid is not None,
        MID_BIAS=mid_bias is not None, AFFINE=scale is not None, RETURN=found.numel() > 0, SAVE=save,
        SAVE_OUTPUT=idempotent, SAVE_STREAM=stream.numel() > 0, PRECISION=precision(x.dtype), **options,
    )  # fmt: skip
    return y, found, hidden, stream


def _present(stand_in: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """A pointer for every tensor; that of an absent one is never read."""
    return [stand_in if t is None else t for t in tensors]


def _options(m: int, k: int, dtype: torch.dtype, backward: bool) -> dict:
    """Tiles, warps and stages for a size: what compiles without spilling a register from sm_80 on."""
    width, features, half = tile(m, 2**20), tile(k, MOST_FEATURES), is_half(dtype)
    rows = HELD["half" if half else precision(dtype)][backward] // max(width, 2 * features, 128)
    if rows >= 16 and width * features <= 512 * 64:
        return {"ROWS": rows, "CHUNK": width, "FEATURES": features, "HELD": True, "num_warps": 8, "num_stages": 1}
    return {"ROWS": 32 if half else 16, "CHUNK": 64 if half or features <= 64 else 32, "FEATURES": features,
            "HELD": False, "num_warps": 8, "num_stages": 1 if backward else 2}  # fmt: skip


@triton.jit
def _load_features(hidden, layer, kept, K, ACT, SAVE_OUTPUT: tl.constexpr):
    """What is kept of a layer (z, or f(z) where that says f'(z) too), and f(z)."""
    s = tl.load(hidden + layer * K, kept, other=0).to(tl.float32)
    if SAVE_OUTPUT:
        return s, s
    else:
        return s, activate(s, ACT)


@triton.jit
def _through_down(dz, du, down, column, feature, M, K, PRECISION: tl.constexpr):
    """du + dz down for a chunk of columns: [rows, features] to [rows, chunk]."""
    weight = tl.load(
        down + feature[:, None] * M + column[None, :], (feature < K)[:, None] & (column < M)[None, :], other=0
    )
    return tl.dot(dz.to(weight.dtype), weight, du, input_precision=PRECISION)


@triton.jit
def _first(part, x, there, i):
    """The stream before block i: before the first, x as it came, so that its zeros are zeros."""
    came = tl.load(x, there & (i == 0), other=0).to(tl.float32)
    return tl.where(i == 0, came, part)


@triton.jit
def _rows_kernel(
    dy, dfeatures, x, stream, hidden, down, mid, up, scale, shift, dx, dz, xs, gs,
    n, l, ups, x_stride, dy_stride,
    M: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, FEATURES: tl.constexpr,
    ACT: tl.constexpr, PRE: tl.constexpr, MID: tl.constexpr, AFFINE: tl.constexpr,
    DY: tl.constexpr, DFEATURES: tl.constexpr, SAVE_OUTPUT: tl.constexpr, HELD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx and dz [n, l, layers, k], from the last block to the first. xs, gs: where a wide stream and gradient live."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, CHUNK)
    feature = tl.arange(0, FEATURES)
    inside = (row < n)[:, None]
    kept = inside & (feature < K)[None, :]
    LAYERS: tl.constexpr = 2 if MID else 1
    at_hidden = row[:, None] * l * LAYERS * K + feature[None, :]
    at_features = row[:, None] * l * K + feature[None, :]
    held_x = tl.zeros([ROWS, CHUNK], tl.float32)
    held_g = tl.zeros([ROWS, CHUNK], tl.float32)
    for begin in range(0, M, CHUNK):
        c = begin + column
        there = inside & (c < M)[None, :]
        at = row[:, None] * M + c[None, :]
        part = tl.load(stream + at, there, other=0)
        g = tl.zeros([ROWS, CHUNK], tl.float32)
        if DY:
            g = tl.load(dy + row[:, None] * dy_stride + c[None, :], there, other=0).to(tl.float32)
        if HELD:
            held_x = part
            held_g = g
        else:
            tl.store(xs + at, part, there)
            tl.store(gs + at, g, there)
    if not HELD:
        tl.debug_barrier()
    for back in range(l):
        i = wide(l - 1 - back)
        given = i < ups
        block = i * K * M
        saved, v = _load_features(hidden + at_hidden + i * LAYERS * K, LAYERS - 1, kept, K, ACT, SAVE_OUTPUT)
        d = tl.zeros([ROWS, FEATURES], tl.float32)
        if DFEATURES:
            d = tl.load(dfeatures + at_features + i * K, kept, other=0).to(tl.float32)
        back_v = tl.where(given, -v, 0.0)
        through = d
        if HELD:
            held_x = _up(back_v, held_x, up + block, column, feature, M, K, given, PRECISION)
            through = _through_up(held_g, d, up + block, column, feature, M, K, given, PRECISION)
        else:
            for begin in range(0, M, CHUNK):
                c = begin + column
                there = inside & (c < M)[None, :]
                at = row[:, None] * M + c[None, :]
                part = tl.load(xs + at, there, other=0)
                tl.store(xs + at, _up(back_v, part, up + block, c, feature, M, K, given, PRECISION), there)
                g = tl.load(gs + at, there, other=0)
                through = _through_up(g, through, up + block, c, feature, M, K, given, PRECISION)
            tl.debug_barrier()
        d = tl.where(given, through, d)
        d = activate_backward(d, saved, ACT)
        tl.store(dz + at_hidden + i * LAYERS * K + (LAYERS - 1) * K, d, kept)
        if MID:
            d = _square(d, mid + i * K * K, feature, K, PRECISION, True)
            saved, _ = _load_features(hidden + at_hidden + i * LAYERS * K, 0, kept, K, ACT, SAVE_OUTPUT)
            d = activate_backward(d, saved, ACT)
            tl.store(dz + at_hidden + i * LAYERS * K, d, kept)
        for begin in range(0, M, CHUNK):
            c = begin + column
            there = inside & (c < M)[None, :]
            at = row[:, None] * M + c[None, :]
            if HELD:
                part = held_x
                g = held_g
            else:
                part = tl.load(xs + at, there, other=0)
                g = tl.load(gs + at, there, other=0)
            part = _first(part, x + row[:, None] * x_stride + c[None, :], there, i)
            factor, u, a = _into_down(part, scale + i * M, shift + i * M, c, M, ACT, PRE, AFFINE)
            du = _through_down(d, tl.zeros_like(part), down + block, c, feature, M, K, PRECISION)
            if PRE:
                du = activate_backward(du, u, ACT)
            g += du * factor
            if HELD:
                held_g = g
            else:
                tl.store(gs + at, g, there)
        if not HELD:
            tl.debug_barrier()
    for begin in range(0, M, CHUNK):
        c = begin + column
        there = inside & (c < M)[None, :]
        at = row[:, None] * M + c[None, :]
        if HELD:
            tl.store(dx + at, held_g, there)
        else:
            tl.store(dx + at, tl.load(gs + at, there, other=0), there)


@triton.jit
def _through_up(g, d, up, column, feature, M, K, given, PRECISION: tl.constexpr):
    """d + g up for a chunk of columns: [rows, chunk] to [rows, features]."""
    weight = tl.load(
        up + column[:, None] * K + feature[None, :], (feature < K)[None, :] & (column < M)[:, None] & given, other=0
    )
    return tl.dot(g.to(weight.dtype), weight, d, input_precision=PRECISION)


@triton.jit
def _add(slices, value, there):
    """Adds to a slice that this program alone writes, hence in one order, and without waiting for what it holds."""
    tl.atomic_add(slices, value, there, sem="relaxed")


@triton.jit
def _weights_kernel(
    dy, x, stream, hidden, dz, down, up, scale, shift, ddown, dup, dscale, dshift,
    n, l, ups, x_stride, dy_stride, splits,
    M: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, FEATURES: tl.constexpr,
    ACT: tl.constexpr, PRE: tl.constexpr, LAYERS: tl.constexpr, AFFINE: tl.constexpr, DY: tl.constexpr,
    SAVE_OUTPUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Slices of the gradients of down, up, scale and shift for a chunk of columns."""
    split = tl.program_id(1)
    column = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    of_column = column < M
    ddown += split.to(tl.int64) * l * K * M
    dup += split.to(tl.int64) * ups * K * M
    dscale += split.to(tl.int64) * l * M
    dshift += split.to(tl.int64) * l * M
    w = down.dtype.element_ty
    for tile_of_rows in range(split, tl.cdiv(n, ROWS), splits):
        row = wide(tile_of_rows) * ROWS + tl.arange(0, ROWS)
        inside = (row < n)[:, None]
        there = inside & of_column[None, :]
        of_row = row[:, None] * l * LAYERS * K
        part = tl.load(stream + row[:, None] * M + column[None, :], there, other=0)
        g = tl.zeros([ROWS, CHUNK], tl.float32)
        if DY:
            g = tl.load(dy + row[:, None] * dy_stride + column[None, :], there, other=0).to(tl.float32)
        for back in range(l):
            i = wide(l - 1 - back)
            given = i < ups
            block = i * K * M
            g_half = g.to(w)
            for begin in range(0, K, FEATURES):
                feature = begin + tl.arange(0, FEATURES)
                kept = inside & (feature < K)[None, :] & given
                of_block = of_row + i * LAYERS * K + feature[None, :]
                _, v = _load_features(hidden + of_block, LAYERS - 1, kept, K, ACT, SAVE_OUTPUT)
                part = _up(-v, part, up + block, column, feature, M, K, given, PRECISION)
                value = tl.dot(tl.trans(g_half), v.to(w), input_precision=PRECISION)
                at = block + column[:, None] * K + feature[None, :]
                _add(dup + at, value, of_column[:, None] & (feature < K)[None, :] & given)
            part = _first(part, x + row[:, None] * x_stride + column[None, :], there, i)
            factor, u, a = _into_down(part, scale + i * M, shift + i * M, column, M, ACT, PRE, AFFINE)
            # Rows behind the last have a shift too, which may be infinite.
            a_half = tl.where(there, a, 0.0).to(w)
            du = tl.zeros([ROWS, CHUNK], tl.float32)
            for begin in range(0, K, FEATURES):
                feature = begin + tl.arange(0, FEATURES)
                of_block = of_row + i * LAYERS * K + feature[None, :]
                d = tl.load(dz + of_block, inside & (feature < K)[None, :], other=0)
                du = _through_down(d, du, down + block, column, feature, M, K, PRECISION)
                value = tl.dot(tl.trans(d), a_half, input_precision=PRECISION)
                at = block + feature[:, None] * M + column[None, :]
                _add(ddown + at, value, (feature < K)[:, None] & of_column[None, :])
            if PRE:
                du = activate_backward(du, u, ACT)
            if AFFINE:
                _add(dscale + i * M + column, tl.sum(du * part, 0), of_column)
                _add(dshift + i * M + column, tl.sum(du, 0), of_column)
            g += du * factor


@triton.jit
def _mid_kernel(
    hidden, dz, dmid, n, l, splits,
    K: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr, ACT: tl.constexpr, SAVE_OUTPUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Slices of mid's gradient, [features, features] of one block: the program's rows summed in registers."""
    split = tl.program_id(2)
    i = wide(tl.program_id(1))
    tiles = tl.cdiv(K, FEATURES)
    to = tl.program_id(0) // tiles * FEATURES + tl.arange(0, FEATURES)
    of = tl.program_id(0) % tiles * FEATURES + tl.arange(0, FEATURES)
    total = tl.zeros([FEATURES, FEATURES], tl.float32)
    for tile_of_rows in range(split, tl.cdiv(n, ROWS), splits):
        row = wide(tile_of_rows) * ROWS + tl.arange(0, ROWS)
        inside = (row < n)[:, None]
        at = (row[:, None] * l + i) * 2 * K
        _, h = _load_features(hidden + at + of[None, :], 0, inside & (of < K)[None, :], K, ACT, SAVE_OUTPUT)
        d = tl.load(dz + at + K + to[None, :], inside & (to < K)[None, :], other=0)
        total = tl.dot(tl.trans(d), h.to(d.dtype), total, input_precision=PRECISION)
    at = (split.to(tl.int64) * l + i) * K * K + to[:, None] * K + of[None, :]
    tl.store(dmid + at, total, (to < K)[:, None] & (of < K)[None, :])


def residual_chain_backward(
    dy: Tensor | None,
    dfeatures: Tensor | None,
    x: Tensor,
    stream: Tensor,
    hidden: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    mid: Tensor | None,
    mid_bias: Tensor | None,
    up: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    pre_activation: bool,
) -> tuple[Tensor, ...]:
    """Gradients of (x, down, down_bias, mid, mid_bias, up, scale, shift); [0] for an absent argument."""
    (n, m), (l, k, _) = x.shape, down.shape
    arguments = (x, down, down_bias, mid, mid_bias, up, scale, shift)
    if n == 0:
        return tuple(x.new_empty(0) if t is None else torch.zeros_like(t) for t in arguments)
    options = _options(m, k, x.dtype, True)
    dx, dz = x.new_empty(n, m), torch.empty_like(hidden)
    shared = {"ACT": activation, "PRE": pre_activation, "AFFINE": scale is not None, "DY": dy is not None,
              "SAVE_OUTPUT": activation in IDEMPOTENT, "PRECISION": precision(x.dtype)}  # fmt: skip
    sizes = (n, l, up.shape[0], x.stride(0), 0 if dy is None else dy.stride(0))
    wide = [dx, dx] if options["HELD"] else [x.new_empty(n, m, dtype=torch.float32) for _ in range(2)]
    affine = _present(x, scale, shift)
    (given,) = _present(x, dy)
    _rows_kernel[(triton.cdiv(n, options["ROWS"]),)](
        given, *_present(x, dfeatures), x, stream, hidden, down, *_present(x, mid), up, *affine, dx, dz, *wide, *sizes,
        m, k, MID=mid is not None, DFEATURES=dfeatures is not None, **shared, **options,
    )  # fmt: skip
    del wide
    # Short sums in registers, or they spill: of the features one tensor core's side at a time.
    rows, chunk = (32 if shared["PRECISION"] == "tf32x3" else 64), 32
    chunks = triton.cdiv(m, chunk)
    # Two programs for each of about 128 multiprocessors, as far as their slices stay small.
    splits = min(triton.cdiv(256, chunks), triton.cdiv(n, rows), max(1, SLICES_BYTES // (8 * l * m * k)))

    def slices(like: Tensor | None) -> Tensor:
        return x.new_empty(0) if like is None else x.new_zeros(splits, *like.shape, dtype=torch.float32)

    ddown, dmid, dup, dscale, dshift = map(slices, (down, mid, up, scale, shift))
    _weights_kernel[(chunks, splits)](
        given, x, stream, hidden, dz, down, up, *affine, ddown, dup, dscale, dshift, *sizes, splits,
        m, k, ROWS=rows, CHUNK=chunk, FEATURES=16, LAYERS=hidden.shape[2], num_warps=8, num_stages=2, **shared,
    )  # fmt: skip
    if mid is not None:
        side = tile(k, 32)
        _mid_kernel[(triton.cdiv(k, side) ** 2, l, splits)](
            hidden, dz, dmid, n, l, splits, k, ROWS=rows, FEATURES=side, ACT=activation,
            SAVE_OUTPUT=shared["SAVE_OUTPUT"], PRECISION=shared["PRECISION"], num_warps=4, num_stages=2,
        )  # fmt: skip

    def added(parts: Tensor) -> Tensor:
        return parts.sum(0).to(x.dtype) if parts.dim() > 1 else parts

    def rows_summed(values: Tensor, like: Tensor | None) -> Tensor:
        return x.new_empty(0) if like is None else values.sum(0, dtype=torch.float32).to(x.dtype)

    return (
        dx,
        added(ddown),
        rows_summed(dz[:, :, 0], down_bias),
        added(dmid),
        rows_summed(dz[:, :, -1], mid_bias),
        added(dup),
        added(dscale),
        added(dshift),
    )
