"""Checks of dense_block2d's CUDA kernels by blocks on the CPU: check_dense_block2d.py CHECK DTYPE LIBRARY.

As check.py, of the forward alone. What is allocated and not written is NaN, and so are the channels behind those that a
layer reads.
"""

import sys
from collections.abc import Callable
from functools import partial
from itertools import cycle, product

import torch
from check import H100, SMALL_H100, Device, Kernels, Rounding
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

from fastnest.reference.dense_block2d import Weights
from fastnest.testing import Case, assert_same_bits, check_kernels, with_value
from fastnest.testing.running import Results, prepare

OP = "dense_block2d"
NORMS = Weights._fields[2:10]
TURNS = tuple(product((H100, SMALL_H100, Device(3, H100.shared_bytes, True)), (False, True)))


def case(n: int, c: int, h: int, w: int, d: tuple[int, ...], b: tuple[int, ...], dropout: bool = False) -> Case:
    absent = () if dropout else ("dropout",)
    return Case(OP, {"n": n, "c": c, "h": h, "w": w, "d": d, "b": b}, absent, layout="channels last")


# All growths and bottlenecks of DenseNets; images on either side of a tile's lines and columns; channels that fill no
# 128 bytes, or more than stay in shared memory; outputs that no vector divides.
CASES = (
    case(1, 64, 7, 7, (32,), (128,)),
    case(2, 24, 9, 17, (12, 12), (48, 48), dropout=True),
    case(1, 40, 6, 5, (16, 24, 40, 48), (64, 96, 160, 192)),
    case(0, 8, 5, 5, (8,), (16,)),
    case(3, 8, 1, 1, (8,), (8,)),
    case(1, 8, 1, 60, (8,), (16,), dropout=True),
    case(2, 16, 33, 3, (16,), (24,)),
    case(5, 32, 8, 8, (32,), (128,)),
    case(1, 136, 16, 16, (24,), (96,)),
    case(1, 40, 9, 30, (48,), (192,)),
    case(1, 1000, 3, 9, (32,), (128,)),
    case(2, 3, 4, 10, (5, 1, 7), (7, 50, 3), dropout=True),
    case(1, 8, 40, 40, (8,), (16,)),  # more tiles of a multiprocessor than stages
)
SHAPES = {"1x1": ("resident", "streamed", "split"), "3x3": ("4_lines", "8_lines", "8_columns")}
# Of one layer, for every shape: channels, bottleneck, growth.
LAYERS = ((72, 128, 32), (200, 48, 12), (136, 192, 48))


def by_op(one: Case, dtype: torch.dtype, change: Callable | None = None) -> Callable[..., Results]:
    """What check_kernels compares: the op's result."""
    return lambda *how: {"y": prepare(one, *how, dtype=dtype, change=change).forward()[0]}


def check(kernels: Kernels, one: Case, results: Callable[..., Results], expected=None) -> None:
    check_kernels(results, ["cpp"], kernels.dtype, repr(one), expected or kernels.expect(results, kernels.dtype))


def outputs(kernels: Kernels) -> None:
    """Every case, by turns on one, three and many multiprocessors and in both orders of threads."""
    for one, turn in zip(CASES, cycle(TURNS), strict=False):
        kernels.on(*turn)
        check(kernels, one, by_op(one, kernels.dtype))


def few(kernels: Kernels) -> None:
    """A few cases on few multiprocessors, for kernels with a mistake."""
    torch.full((1 << 20,), float("nan"))  # what is allocated next holds NaN, where no sanitizer sees to it
    for one, last_thread_first in product((*CASES[1:3], CASES[-1]), (False, True)):
        kernels.on(SMALL_H100, last_thread_first)
        check(kernels, one, by_op(one, kernels.dtype))


def layouts(kernels: Kernels) -> None:
    """x and weights that lie otherwise."""
    kernels.on(H100, True)
    for layout in ("contiguous", "channels of a wider image", "every second pixel", "weights channels last"):
        one = Case(OP, {"n": 2, "c": 16, "h": 3, "w": 9, "d": (12, 4), "b": (16, 40)}, (), layout=layout)
        check(kernels, one, by_op(one, kernels.dtype))


def nan_and_infinity(kernels: Kernels) -> None:
    """They come out where the definition has them."""
    one = case(3, 8, 5, 9, (8,), (1,))  # of more hidden channels, an infinity makes NaN at once
    for value, turn in zip((float("nan"), float("inf"), -float("inf")), TURNS, strict=False):
        kernels.on(*turn)
        check(kernels, one, by_op(one, kernels.dtype, with_value(value)))


def repeats(kernels: Kernels) -> None:
    """The same bits whichever thread is first, whenever a copy or a product is done."""
    for one in CASES[:3]:
        found = []
        for turn in TURNS:
            kernels.on(*turn)
            found.append(by_op(one, kernels.dtype)("cpp", None, 0))
        for other in found[1:]:
            assert_same_bits(found[0], other, repr(one))


def shapes(kernels: Kernels) -> None:
    """Each convolution alone, by every shape it can be cut into."""
    ops = torch.ops.fastnest

    def layer(one: Case, shape: str, kernel: str, backend: str, compute: torch.dtype | None, nudge: int) -> Results:
        tensors = one.tensors(kernels.dtype, compute, nudge)
        x, conv1, conv2 = tensors["x"].detach(), tensors["conv1"][0].detach(), tensors["conv2"][0].detach()
        norms = {name: tensors[name][0].detach() for name in NORMS}

        def norm_relu(values: Tensor, i: int) -> Tensor:
            mean, var, weight, bias = (norms[f"norm{i}_{name}"] for name in ("mean", "var", "weight", "bias"))
            return F.relu(F.batch_norm(values, mean, var, weight, bias))

        if backend == "reference" and kernel == "1x1":
            h = norm_relu(F.conv2d(norm_relu(x, 1), conv1), 2)
            # It is stored as products read it.
            return {"h": Rounding.rounded(h) if kernels.name == "tf32" and compute is None else h}
        if backend == "reference":
            return {"q": F.conv2d(x[:, : conv2.shape[1]], conv2, padding=1)}
        d, b, c = *conv2.shape[:2], x.shape[1]
        packed = ops.dense_block2d_pack(x, [conv1], [conv2], *([norms[name].float()] for name in NORMS), 1e-5)
        if kernel == "1x1":
            return {"h": ops.norm_conv_1x1(x, c, packed, b, d, shape)[:, :b]}
        if kernels.name == "tf32":
            x = Rounding.rounded(x)
        y = x.new_full((x.shape[0], 8 + d + 8, *x.shape[2:]), float("nan")).contiguous(
            memory_format=torch.channels_last
        )
        ops.conv_3x3(x[:, :b].contiguous(memory_format=torch.channels_last), packed, c, d, y, 8, shape)
        assert torch.cat([y[:, :8], y[:, 8 + d :]], 1).isnan().all()
        return {"q": y[:, 8 : 8 + d]}

    turns = cycle(TURNS)
    for (c, b, d), kernel in product(LAYERS, SHAPES):
        width = max(c, b)
        for shape, (h, w) in product(SHAPES[kernel], ((9, 8), (5, 37))):
            if shape == "8_columns" and w > 8:
                continue
            if shape == "8_lines" and d > 32:  # more sums than registers
                continue
            one = case(2, width, h, w, (d,), (b,))
            kernels.on(*next(turns))
            check(kernels, one, partial(layer, one, shape, kernel))


def operators(kernels: Kernels) -> None:
    """torch.library.opcheck of all that GPUs alone have kernels for."""
    ops, c, b, d = torch.ops.fastnest, 16, 24, 24
    kernels.on(H100)
    one = case(2, c, 3, 9, (d,), (b,), dropout=True)
    tensors = {name: values for name, values in one.tensors(kernels.dtype).items() if name != "x"}
    tensors = {name: [value.detach() for value in values] for name, values in tensors.items()}
    x = one.tensors(kernels.dtype)["x"].detach()
    lists = (tensors["conv1"], tensors["conv2"], *([tensors[name][0].float()] for name in NORMS), 1e-5)
    packed = ops.dense_block2d_pack(x, *lists)
    opcheck(ops.dense_block2d_pack.default, (x, *lists))
    for dropout in (None, tensors["dropout"]):
        opcheck(ops.dense_block2d_packed_forward.default, (x, packed, [b], [d], dropout))
    # Those for measurements are never compiled.
    h, y = ops.norm_conv_1x1(x, c, packed, b, d, ""), torch.zeros_like(ops.dense_block2d_packed_forward(
        x, packed, [b], [d], None))  # fmt: skip
    opcheck(ops.norm_conv_1x1.default, (x, c, packed, b, d, ""), test_utils="test_schema")
    opcheck(ops.conv_3x3.default, (h, packed, c, d, y, c, ""), test_utils="test_schema")


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, *words = sys.argv[1:]
    globals()[name](Kernels(OP, *words))
