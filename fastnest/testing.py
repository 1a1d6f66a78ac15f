"""What tests and benchmarks share: awkward inputs of every op, what an op costs, and how near a result has to be."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from . import _backend, functional
from .reference.activation import ACTIVATIONS

OPS = ("residual_chain", "dense_chain")
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One call of an op, from numbers only, so that its repr is all one needs to repeat it.

    sizes: n m k l for residual_chain; n m d h for dense_chain, d and h tuples with one size per block (h may be ()).
    absent: tensor arguments left out. options: passed on as they are. layout: how x, or the weights, lie in memory.
    """

    op: str
    sizes: dict
    absent: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)
    layout: str = "contiguous"
    last_up: bool = True

    def __str__(self) -> str:
        sizes = " ".join(f"{letter}={size}".replace(" ", "") for letter, size in self.sizes.items())
        options = " ".join(f"{name}={value}" for name, value in self.options.items())
        absent = f"without {','.join(self.absent)}" if self.absent else ""
        layout = "" if self.layout == "contiguous" else self.layout
        return " ".join(filter(None, (sizes, options, absent, layout, "" if self.last_up else "no last up")))

    def shapes(self) -> dict[str, tuple | list[tuple]]:
        """Every tensor argument's shape by name; a list of them where the op takes one tensor per block."""
        of_op = {"residual_chain": self._residual_chain_shapes, "dense_chain": self._dense_chain_shapes}[self.op]()
        return {name: shape for name, shape in of_op.items() if name not in self.absent}

    def _residual_chain_shapes(self) -> dict:
        n, m, k, l = (self.sizes[size] for size in "nmkl")
        vectors = {"down_bias": (l, k), "mid_bias": (l, k), "scale": (l, m), "shift": (l, m)}
        return {"x": (n, m), "down": (l, k, m), "mid": (l, k, k), "up": (l if self.last_up else l - 1, m, k)} | vectors

    def _dense_chain_shapes(self) -> dict:
        n, m, d, h = (self.sizes[size] for size in "nmdh")
        reads = [m + sum(d[:i]) for i in range(len(d))]
        shapes = {"x": (n, m), "weight": list(zip(d, h or reads, strict=True)), "bias": [(size,) for size in d]}
        if h:
            shapes |= {"hidden_weight": list(zip(h, reads, strict=True)), "hidden_bias": [(size,) for size in h]}
        return shapes | {"scale": [(size,) for size in reads], "shift": [(size,) for size in reads]}

    def tensors(self, dtype: torch.dtype, compute: torch.dtype | None = None, nudge: int = 0) -> dict:
        """Random arguments that are exact in dtype, held in `compute` (by default dtype too), all needing gradients.

        Sizes keep the stream near 1. Some of x is exactly 0 (but see below), where relu has its kink. A nudge other
        than 0 moves every number by up to half an ulp of dtype, as rounding does, drawn by that nudge (to be held in a
        wider dtype).
        """
        generator, rounding = (torch.Generator().manual_seed(seed) for seed in (0, nudge))

        def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
            values = torch.randn(shape, generator=generator)
            if name == "x" and self._all_rows_live():
                values[1::3, ::2] = 0
            elif len(shape) > 1 and name != "scale" and not name.endswith(("bias", "shift")):
                values *= 1.4 / math.sqrt(shape[-1] * (self.sizes["l"] if name == "up" else 1))
            else:
                values = values * 0.3 + (name == "scale")
            values = values.to(dtype).to(compute or dtype)
            if nudge:
                values *= 1 + torch.finfo(dtype).eps * (torch.rand(shape, generator=rounding) - 0.5)
            return self._laid_out(name, values).requires_grad_()

        return {
            name: [tensor(name, one) for one in shape] if isinstance(shape, list) else tensor(name, shape)
            for name, shape in self.shapes().items()
        }

    def _all_rows_live(self) -> bool:
        """Whether no block's features are likely to be all 0 in any row.

        Where they are, a 0 in x is a 0 in the stream behind that block too. A backward that steps back from the end of
        the stream finds it only up to rounding, hence some other one of relu's subgradients there than torch's 0.
        """
        return self.op != "residual_chain" or self.sizes["l"] == 1 or self.sizes["k"] >= 16

    def _laid_out(self, name: str, values: Tensor) -> Tensor:
        if name == "x" and self.layout == "wide rows":
            return torch.nn.functional.pad(values, (0, 3))[:, : values.shape[1]]
        if name == "x" and self.layout == "every second row":
            return values.repeat_interleave(2, 0)[::2]
        if name == "x" and self.layout == "transposed":
            return values.t().contiguous().t()
        if name == "x" and self.layout == "one row expanded":
            return values[:1].expand(values.shape)
        if name != "x" and self.layout == "weights transposed":
            return values.transpose(0, -1).contiguous().transpose(0, -1)
        return values

    def call(self, tensors: dict):
        """The public function on these tensors."""
        return getattr(functional, self.op)(**tensors, **self.options)


def sample_inputs(op: str) -> list[Case]:
    """The cases that every backend of an op has to get right: awkward sizes, every option, every layout."""
    return list({"residual_chain": _residual_chain_cases, "dense_chain": _dense_chain_cases}[op]())


def small_inputs(op: str) -> list[Case]:
    """A few numbers for every activation and kind of an op: for derivatives by finite differences, and compilers."""
    return list({"residual_chain": _small_residual_chain_cases, "dense_chain": _small_dense_chain_cases}[op]())


ROWS = (0, 1, 7, 16, 47, 48, 49, 193)
LAYOUTS = ("wide rows", "every second row", "transposed", "one row expanded", "weights transposed")


def _residual_chain_cases() -> Iterator[Case]:
    def case(n, m, k, l, absent=("mid", "mid_bias", "scale", "shift"), layout="contiguous", last_up=True, **options):
        return Case("residual_chain", {"n": n, "m": m, "k": k, "l": l}, absent, options, layout, last_up)

    # Cycles whose lengths share no factor with each other, nor with the 8 of n, meet in every combination of two.
    no_mid, no_affine = ("mid", "mid_bias"), ("scale", "shift")
    absent = cycle([no_mid + no_affine, no_mid, no_affine, (), ("down_bias", *no_mid, *no_affine)])
    k, l, features = cycle([1, 5, 16, 33, 64, 100, 48]), cycle([1, 2, 5]), cycle([True] * 4 + [False] * 7)
    for m in (1, 3, 16, 130, 257):
        for n in ROWS:
            yield case(n, m, next(k), next(l), next(absent), return_features=next(features))
    for activation in ACTIVATIONS:
        for pre_activation in (True, False):
            options = {"activation": activation, "pre_activation": pre_activation, "return_features": True}
            yield case(49, 34, 20, 3, ("mid", "mid_bias"), **options)
            yield case(35, 20, 17, 2, (), **options)
    yield case(49, 34, 20, 3, ("down_bias", "mid", "mid_bias", "scale", "shift"))
    yield case(49, 34, 20, 3, ("down_bias", "mid_bias", "scale", "shift"), activation="silu")
    for l in (1, 2, 5):
        yield case(50, 40, 17, l, last_up=False, return_features=True)
        yield case(50, 40, 17, l, (), last_up=False, return_features=True, activation="gelu")
    for layout in LAYOUTS:
        yield case(50, 40, 17, 2, (), layout)
    yield case(5, 1030, 48, 3)  # few wide rows: threads share a row
    yield case(700, 257, 33, 3)  # many rows: more than one tile a thread
    yield case(20000, 24, 8, 2)  # long sums in the weights' gradients


def _dense_chain_cases() -> Iterator[Case]:
    def case(n, m, d, h=(), absent=("scale", "shift"), layout="contiguous", **options):
        return Case("dense_chain", {"n": n, "m": m, "d": d, "h": h}, absent, options, layout)

    absent = cycle([("scale", "shift"), (), ("bias", "hidden_bias", "scale", "shift")])
    growth = cycle(
        [
            ((1,), (3,)),
            ((5, 3), (7, 18)),
            ((16, 16, 16), (64, 64, 64)),
            ((32, 1, 33, 7, 2), (5, 100, 16, 1, 31)),
            ((48, 20), (130, 33)),
        ]
    )
    hidden = cycle([False, True, False, True, True, False, False])
    for m in (1, 3, 16, 130, 257):
        for n in ROWS:
            d, h = next(growth)
            yield case(n, m, d, h if next(hidden) else (), next(absent))
    for activation in ACTIVATIONS:
        for pre_activation in (True, False):
            for h in ((), (9, 40)):
                yield case(49, 34, (20, 3), h, (), activation=activation, pre_activation=pre_activation)
    for layout in LAYOUTS:
        yield case(50, 40, (17, 5), (20, 3), (), layout)
    yield case(5, 1030, (48, 32))
    yield case(700, 100, (32, 33), (128, 65))
    yield case(20000, 20, (8, 8))


def _small_residual_chain_cases() -> Iterator[Case]:
    for activation in ACTIVATIONS:
        for absent, pre_activation, features, last_up in (
            ((), True, True, True),
            (("mid", "mid_bias"), False, True, False),
            (("mid", "mid_bias", "scale", "shift", "down_bias"), True, False, True),
        ):
            options = {"activation": activation, "pre_activation": pre_activation, "return_features": features}
            yield Case("residual_chain", {"n": 6, "m": 5, "k": 4, "l": 3}, absent, options, last_up=last_up)


def _small_dense_chain_cases() -> Iterator[Case]:
    for activation in ACTIVATIONS:
        for h, absent, pre_activation in (
            ((4, 3), (), True),
            ((), ("bias",), True),
            ((4, 3), ("scale", "shift"), False),
            ((), (), False),
        ):
            options = {"activation": activation, "pre_activation": pre_activation}
            yield Case("dense_chain", {"n": 6, "m": 5, "d": (2, 3), "h": h}, absent, options)


def kernels() -> list[str]:
    """What `kernel` can force here, other than the reference: every backend that runs, on every instruction set."""
    if not _backend.CPP_IS_BUILT:
        return []
    return [f"cpp {name}" for name in _backend._C.instruction_sets()]


@contextmanager
def instruction_set(name: str):
    """The C++ kernels run on this instruction set (one of `fastnest._C.instruction_sets()`) inside the block."""
    _backend._C.force_instruction_set(name)
    try:
        yield
    finally:
        _backend._C.force_instruction_set("")


@contextmanager
def kernel(name: str):
    """Forces one of `kernels()`, or a backend, inside the block."""
    backend, _, on = name.partition(" ")
    with _backend.backend(backend), instruction_set(on) if on else nullcontext():
        yield


def flat(tensors: dict) -> Results:
    """A case's tensors by name, those in lists as name[i]."""
    leaves = {}
    for name, value in tensors.items():
        leaves |= {f"{name}[{i}]": one for i, one in enumerate(value)} if isinstance(value, list) else {name: value}
    return leaves


def unflat(leaves: Results) -> dict:
    """The inverse of `flat`: arguments for `Case.call`."""
    tensors = {}
    for name, value in leaves.items():
        if name.endswith("]"):
            tensors.setdefault(name[: name.index("[")], []).append(value)
        else:
            tensors[name] = value
    return tensors


def run(
    case: Case, name: str, compute: torch.dtype | None = None, nudge: int = 0, *, dtype: torch.dtype, change=None
) -> Results:
    """Every output of a case and every gradient (for random gradients of the outputs), by a kernel or backend.

    The arguments are as in `Case.tensors`. change(leaves, gradients) may alter the arguments by name, and the gradients
    of the outputs, in place.
    """
    leaves = flat(case.tensors(dtype, compute, nudge))
    generator = torch.Generator().manual_seed(1)
    with kernel(name):
        with torch.no_grad():
            shapes = [out.shape for out in as_tuple(case.call(unflat(leaves)))]
            gradients = [torch.randn(s, generator=generator).to(dtype).to(compute or dtype) for s in shapes]
            if change is not None:
                change(leaves, gradients)
        outputs = as_tuple(case.call(unflat(leaves)))
        gradients = torch.autograd.grad(outputs, list(leaves.values()), gradients, materialize_grads=True)
    results = {output: value.detach() for output, value in zip(("y", "features"), outputs, strict=False)}
    return results | {f"d{leaf}": gradient for leaf, gradient in zip(leaves, gradients, strict=True)}


def as_tuple(outputs) -> tuple[Tensor, ...]:
    """What an op returned: y, or y and the features."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


class Expected(NamedTuple):
    """What a result is compared with: exact in float64, by plain torch in dtype, and how far off rounding may lead."""

    exact: Results
    plain: Results
    error: dict[str, float]


NUDGES, ULPS = 15, 4


def expect(results: Callable[[str, torch.dtype | None, int], Results]) -> Expected:
    """What results(backend, compute, nudge) should be without a nudge.

    The error is plain torch's, or what rounding the arguments alone does to the exact result, in the worst of 15 draws.
    Without the draws it would be luck: one error of plain torch is one draw, of a few roundings where a result has few
    elements, and in half precision of the few activations that rounding pushes over relu's kink.
    """
    exact, plain = results("reference", torch.float64, 0), results("reference", None, 0)
    errors = dict.fromkeys(exact, 0.0)
    for nudge in range(NUDGES + 1):
        rounded = results("reference", torch.float64, nudge) if nudge else plain
        for name, values in rounded.items():
            difference = (values.double() - exact[name]).abs()
            finite = difference[difference.isfinite()]
            errors[name] = max(errors[name], finite.max().item() if finite.numel() else 0.0)
    return Expected(exact, plain, errors)


def assert_close(actual: Results, expected: Expected, dtype: torch.dtype, what: object) -> None:
    """actual is at most twice as far from exact as rounding leads plain torch, plus 4 ulp of the largest value.

    That error is what the conditioning of the case makes of dtype's rounding, so the bound grows with sums and depth by
    itself. The ulp are for results that plain torch rounds without error. Nothing is forgiven of NaN and infinities,
    which have to be where they are in float64 or (they differ for gelu of -inf) in plain torch.

    Args:
        actual: what is judged, in dtype, by name.
        expected: from `expect`.
        what: names the case in the message (a Case can be called again as it is printed).
    """
    assert actual.keys() == expected.exact.keys()
    for name, values in actual.items():
        exact, plain = expected.exact[name], expected.plain[name].double()
        where = f"{name} {list(values.shape)} {dtype} of {what}"
        assert values.dtype == dtype, f"{where}: dtype {values.dtype}"
        assert values.shape == exact.shape, f"{where}: expected shape {list(exact.shape)}"
        values = values.double()
        finite = exact.isfinite() & values.isfinite() & plain.isfinite()
        same = finite | _identical(values, exact) | _identical(values, plain)
        assert same.all(), f"{where}: NaN or Inf differ at {(~same).nonzero()[:5].tolist()}"
        if not finite.any():
            continue
        error = torch.where(finite, (values - exact).abs(), 0).flatten()
        largest = exact[finite].abs().max().item()
        bound = 2 * expected.error[name] + ULPS * torch.finfo(dtype).eps * largest
        at = error.argmax().item()
        assert error[at] <= bound, (
            f"{where}: error {error[at]:.3g} > {bound:.3g} = 2 * {expected.error[name]:.3g} (rounding) "
            f"+ {ULPS} ulp of {largest:.3g}; at {at} of it: {values.flatten()[at]:.9g} for {exact.flatten()[at]:.9g}"
        )


def _identical(values: Tensor, others: Tensor) -> Tensor:
    return (values == others) | (values.isnan() & others.isnan())


def flops(case: Case, training: bool = False) -> int:
    """Multiplications and additions of the linear maps: residual_chain trains in 12 n m k l (mid: + 6 n k k l).

    Not counted: activations, sums, and what a backward computes again.
    """
    maps = ("down", "mid", "up", "weight", "hidden_weight")
    return flops_of_maps(case.sizes["n"], (shape for name, shape in _flat_shapes(case) if name in maps), training)


def flops_of_maps(n: int, shapes: Iterable[tuple[int, ...]], training: bool) -> int:
    """Of n rows through linear maps: 2 a weight and row forward, 6 in a training step (dx and dw cost as much each)."""
    return (6 if training else 2) * n * sum(map(math.prod, shapes))


def bytes_moved(case: Case, dtype: torch.dtype) -> int:
    """Bytes of the arguments read once and the result written once, all that a fused forward has to move."""
    result = case.sizes["n"] * (case.sizes["m"] + sum(case.sizes.get("d", ())))
    return dtype.itemsize * (result + sum(math.prod(shape) for _, shape in _flat_shapes(case)))


def _flat_shapes(case: Case) -> Iterator[tuple[str, tuple]]:
    for name, shape in case.shapes().items():
        for one in shape if isinstance(shape, list) else [shape]:
            yield name, one
