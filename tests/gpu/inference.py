"""Kernels for inference alone, with nothing to do a backward: the cases and checks of their own (checks.py).

dense_block2d in CUDA C++, on compute capability 9.0, is one: in evaluation, of layers with conv1.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle

import torch
from torch import Tensor

import fastnest
from fastnest import _backend
from fastnest.benchmarks.gpu import convolutions
from fastnest.nn import DenseBlock2d
from fastnest.testing import Call, Case, Results, assert_same_bits, prepare, unflat

# float32 is TF32, or not taken.
DTYPES = ("bfloat16", "float16", "tf32")


def is_inference(op: str, backend: str) -> bool:
    """Whether a backend's kernels of an op have no backward."""
    return backend == "cuda" and "cuda" not in _backend.registered(f"{op}_backward")


class Outputs(Call):
    """A case's outputs, without gradients."""

    def step(self) -> Results:
        return {"y": self.forward()[0]}


def outputs(case: Case, name: str, compute: torch.dtype | None = None, nudge: int = 0, **options) -> Outputs:
    """As `fastnest.testing.prepare`, without gradients of the outputs."""
    return Outputs(case, name, prepare(case, name, compute, nudge, **options).leaves, [])


def run(*arguments, **options) -> Results:
    """As `fastnest.testing.run`."""
    return outputs(*arguments, **options).step()


def _case(
    n: int,
    c: int,
    h: int,
    w: int,
    d: tuple[int, ...],
    b: tuple[int, ...],
    dropout: bool = False,
    layout: str = "channels last",
) -> Case:
    """With as many more channels as pixels of 16 bytes need, in every dtype."""
    c += -(c + sum(d)) % 8
    absent = () if dropout else ("dropout",)
    return Case("dense_block2d", {"n": n, "c": c, "h": h, "w": w, "d": d, "b": b}, absent, layout=layout)


def samples() -> list[Case]:
    """Every width up to 60, and what no tile divides of all other sizes."""
    # Cycles whose lengths share no factor with each other meet in every combination of two.
    layers = cycle([
        *[((12,), (48,)), ((16, 16), (64, 64)), ((24,), (96,)), ((32, 32, 32), (128, 128, 128)), ((40,), (160,))],
        *[((48, 48), (192, 192)), ((1, 33, 5), (7, 50, 129))],
    ])  # fmt: skip
    images, heights = cycle([2, 1, 3, 5]), cycle([5, 1, 9, 14, 2, 16, 31, 8, 7])
    channels, dropout = cycle([16, 64, 3, 130, 261]), cycle([False, False, True])
    found = []
    for w in range(1, 61):
        d, b = next(layers)
        found.append(_case(next(images), next(channels), next(heights), w, d, b, next(dropout)))
    for layout in ("contiguous", "channels of a wider image", "every second pixel", "weights channels last"):
        found.append(_case(3, 17, 6, 9, (20, 3), (48, 40), True, layout))
    found.append(_case(17, 600, 9, 9, (32,), (128,)))  # more channels than one multiprocessor holds weights of
    found.append(_case(1, 2040, 7, 7, (32,), (128,)))
    found.append(_case(7, 24, 57, 57, (12, 12), (48, 48)))  # many tiles
    return found


def small() -> list[Case]:
    return [_case(2, 20, 5, 9, (12, 24), (48, 130), True), _case(3, 16, 6, 7, (5, 16), (20, 64))]


def real() -> list[Case]:
    """DenseNet-121's second block, and one layer of each other."""
    layers = (32,), (128,)
    others = [_case(4, c, px, px, *layers) for px, (c, _) in convolutions.BLOCKS.items() if px != 28]
    return [_case(4, 128, 28, 28, (32,) * 12, (128,) * 12), *others]


LARGE = {"dense_block2d": _case(5, 64, 13, 13, (16,), (48,), True)}


# Checks: given one of checks.py's, which `each` case is judged by.


def surrounded(check):
    """Arguments that are parts of tensors full of NaN: nothing beside them is read as a number."""

    def change(leaves: Results, gradients: list[Tensor]) -> None:
        for name, leaf in leaves.items():
            leaves[name] = within_nan(leaf.detach(), image=name == "x" or name.startswith("dropout"))

    return check.each(check.few(6), lambda one: check.compare(one, change))


def within_nan(values: Tensor, image: bool) -> Tensor:
    """The same numbers with NaN before and behind: of an image, between others, as channels of a wider one."""
    if image:
        n, c, h, w = values.shape
        part = values.new_full((n + 2, h, w, c + 16), float("nan"))[1:-1, ..., 8 : 8 + c].movedim(-1, 1)
    else:
        wide = values.new_full([size + 3 for size in values.shape], float("nan"))
        part = wide[tuple(slice(1, 1 + size) for size in values.shape)]
    return part.copy_(values)


def kept(check):
    """Packed weights are kept until one changes in place, on every stream: the bits of fresh copies."""

    def changed(one: Case) -> None:
        call = check.prepare(one)

        def forced(leaves: Results) -> Results:
            return replace(call, leaves=leaves).step()

        def unforced(leaves: Results) -> Results:
            with torch.no_grad():
                return {"y": one.call(unflat(leaves))}

        for step in (forced, unforced):
            for name, leaf in call.leaves.items():
                before = step(call.leaves)
                assert_same_bits(step(call.leaves), before, f"called again: {one!r}")
                with torch.no_grad():
                    leaf.mul_(1.5)
                fresh = {name: value.detach().clone() for name, value in call.leaves.items()}
                assert_same_bits(step(call.leaves), step(fresh), f"{name} was changed in place: {one!r}")
            expected = step(call.leaves)
            for stream in check.device.streams(2):
                with torch.cuda.stream(stream):
                    found = step(call.leaves)
                check.device.synchronize()
                assert_same_bits(found, expected, f"on another stream: {one!r}")

    return check.each([_case(2, 64, 14, 14, (32, 32), (128, 128)), *small()], changed)


def expected_backend(device, dtype: torch.dtype) -> str:
    """What runs DenseNet-121's blocks in evaluation: measured in bfloat16 on compute capability 9.0."""
    measured = dtype is torch.bfloat16 and device.facts()["capability"] == [9, 0]
    return "cuda" if measured else "triton"


def evaluation(check):
    """Which kernels run DenseNet-121's blocks unasked: in evaluation, as `explain` has it, and not in training."""
    blocks = dict(zip(convolutions.BLOCKS, convolutions.LAYERS, strict=True))
    device, growth = check.device.type, convolutions.GROWTH

    def logged(px: int) -> None:
        c = convolutions.BLOCKS[px][0]
        block = DenseBlock2d(c, growth, blocks[px], device=device, dtype=check.dtype).eval()
        x = torch.randn(2, px, px, c, device=device).to(check.dtype).movedim(-1, 1)
        expected = expected_backend(check.device, check.dtype)
        rows = fastnest.explain(block, x).rows
        assert [row.backend for row in rows] == [expected], f"evaluation at {px} x {px}: {rows}"
        for when, call in (("a gradient", block), ("training", block.train())):
            with _backend.logging_choices() as log:
                call(x)
            assert "cuda" not in {choice.backend for choice in log}, f"{when} at {px} x {px}: {log}"

    return check.each(list(blocks), logged)


def forced_shapes() -> list[convolutions.Convolution]:
    """Every way to cut a convolution, also where the kernels would choose another."""
    sizes = [(3, 7, 72, 128, 32), (2, 19, 130, 48, 12), (1, 30, 24, 192, 48)]
    return [
        convolutions.Convolution(kind, n, px, c, c + d + 8 + -(c + d) % 8, shape, b, d)
        for kind, shapes in convolutions.SHAPES.items()
        for shape in ("", *shapes)
        for n, px, c, b, d in sizes
        if shape != "8_columns" or px <= 8
    ]


def shapes(check):
    """Each convolution alone, with NaN in all channels that it must leave alone."""

    def compared(one: convolutions.Convolution) -> None:
        convolutions.prepare(one, check.device, check.operators, check.dtype).compare()
        check.device.synchronize()

    return check.each(forced_shapes(), compared)


CHECKS: dict[str, Callable] = {function.__name__: function for function in (shapes, surrounded, kept, evaluation)}
IN_EVERY_DTYPE = ("shapes", "surrounded")
