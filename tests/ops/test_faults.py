"""The judge sees: faults put into a kernel's results on purpose, into every op, dtype and result, are caught."""

from collections.abc import Callable
from functools import cache, cached_property
from typing import NamedTuple

import pytest
import torch
from marks import needs_cpp
from torch import Tensor

from fastnest.testing import OPS, Case, Expected, Results, check_kernels, expect, run, sample_inputs

pytestmark = [needs_cpp, pytest.mark.usefixtures("one_thread")]
KERNEL = "cpp"
# How much too large a wrong output is, and a wrong gradient.
OUTPUT = {torch.float32: 1.0001, torch.bfloat16: 1.01, torch.float16: 1.003}
GRADIENT = {torch.float32: 1.001, torch.bfloat16: 1.02, torch.float16: 1.01}


APART = 7  # in the list of cases


class Fault(NamedTuple):
    """What is wrong with a result where it applies: change(leaves, gradients) of the arguments, alter(value) of it."""

    alter: Callable[[Tensor], Tensor] = lambda value: value
    applies: Callable[[Case, str, Tensor], bool] = lambda one, name, value: True
    change: Callable[[Results, list[Tensor]], None] | None = None


def scaled(value: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    return value * (GRADIENT if name.startswith("d") else OUTPUT)[dtype]


def channels(value: Tensor) -> Tensor:
    """[c, ...] of [n, c, ...] or of [c]."""
    return value.movedim(min(1, value.dim() - 1), 0)


def one_channel_off(value: Tensor) -> Tensor:
    """The last channel is its neighbour's."""
    wrong = value.clone()
    channels(wrong)[-1] = channels(wrong)[-2]
    return wrong


def one_row_missing(value: Tensor) -> Tensor:
    wrong = value.clone()
    wrong[-1] = 0
    return wrong


def one_tap_wrong(value: Tensor) -> Tensor:
    """Of a 3x3 convolution's gradient, the one in the corner is its neighbour's."""
    wrong = value.clone()
    wrong[..., 0, 0] = wrong[..., 0, 1]
    return wrong


@torch.no_grad()
def last_row_left_out(leaves: Results, gradients: list[Tensor]) -> None:
    """Of the sums over rows that are the gradients of parameters."""
    for gradient in gradients:
        gradient[-1] = 0


@torch.no_grad()
def one_tap_of_a_weight(leaves: Results, gradients: list[Tensor]) -> None:
    for leaf in leaves.values():
        if is_3x3(leaf):
            leaf[..., 0, 0] = leaf[..., 0, 1]


def first_image_twice(leaves: Results, gradients: list[Tensor]) -> None:
    """In the statistics alone: the copy comes last, and its outputs have no gradient."""
    x = leaves["x"].detach()
    for name, leaf in leaves.items():
        if name == "x" or name.startswith("dropout"):
            leaves[name] = torch.cat([leaf, leaf[:1]]).detach().requires_grad_(leaf.requires_grad)
    for i, gradient in enumerate(gradients):
        if gradient.shape[0] == len(x) and gradient.dim() > 1:
            gradients[i] = torch.cat([gradient, torch.zeros_like(gradient[:1])])


def is_3x3(value: Tensor) -> bool:
    return value.dim() == 4 and value.shape[2:] == (3, 3)


def is_by_rows(one: Case, name: str, value: Tensor) -> bool:
    """An output, or the gradient of x."""
    return name in ("y", "features", "dx") and one.op != "batch_stats"


def is_sum_over_rows(one: Case, name: str, value: Tensor) -> bool:
    return name.startswith("d") and name != "dx"


def has_batch_statistics(one: Case) -> bool:
    return one.op == "batch_stats" or {"norm_mean", "norm1_mean"} & set(one.absent) != set()


FAULTS = {
    "zeros": Fault(torch.zeros_like),
    "one channel off": Fault(one_channel_off, lambda one, name, value: len(channels(value)) > 1),
    "one row missing": Fault(one_row_missing, is_by_rows),
    "one row left out of a sum": Fault(applies=is_sum_over_rows, change=last_row_left_out),
    "one tap of a gradient wrong": Fault(one_tap_wrong, lambda one, name, value: is_3x3(value)),
    "one tap of a weight wrong": Fault(
        applies=lambda one, name, value: "2d" in one.op and name in ("y", "dx"), change=one_tap_of_a_weight
    ),
    "one image counted twice": Fault(
        applies=lambda one, name, value: has_batch_statistics(one) and name in ("y", "features"),
        change=first_image_twice,
    ),
}


class Judged:
    """A case in a dtype, run once by every backend and nudge; what of it is wrong changes."""

    def __init__(self, one: Case, dtype: torch.dtype):
        self.one, self.dtype = one, dtype
        self.results = cache(self._results)

    def _results(self, backend, compute, nudge, change=None) -> Results:
        return run(self.one, backend, compute, nudge, dtype=self.dtype, change=change)

    def of_kernel(self) -> Results:
        return self.results(KERNEL, None, 0)

    @cached_property
    def expected(self) -> Expected:
        return expect(self.results, self.dtype)

    def sees(self, name: str, fault: Fault) -> bool:
        """Whether the fault in the result of this name is caught."""

        def wrong(backend, compute, nudge) -> Results:
            results = self.results(backend, compute, nudge)
            if backend == "reference":
                return results
            value = self.results(backend, compute, nudge, fault.change)[name][: len(results[name])]
            return {**results, name: fault.alter(value)}

        try:
            check_kernels(wrong, [KERNEL], self.dtype, self.one, self.expected)
        except AssertionError as error:
            return str(error).startswith(f"{name} ")
        return False


@cache
def judged(op: str, dtype: torch.dtype) -> list[Judged]:
    """The op's cases, neighbours apart: most faults are seen in the first ones, so that the rest is never run."""
    dense = [one for one in sample_inputs(op) if one.sizes["n"] > 1 and one.is_contiguous]
    return [Judged(one, dtype) for i in range(APART) for one in dense[i::APART]]


def kind_of(name: str) -> str:
    """A result's name without the number of its layer."""
    return name.partition("[")[0]


def unseen(op: str, dtype: torch.dtype, fault_of: Callable[[str], Fault]) -> set[str]:
    """The kinds of results in which the fault fault_of(name) is caught in none of the op's cases."""
    found: dict[str, bool] = {}
    for case in judged(op, dtype):
        for name, value in case.of_kernel().items():
            fault = fault_of(name)
            if not found.get(kind_of(name)) and fault.applies(case.one, name, value):
                found[kind_of(name)] = case.sees(name, fault)
    return {kind for kind, seen in found.items() if not seen}


each_op_and_dtype = pytest.mark.parametrize(("op", "dtype"), [(op, dtype) for op in OPS for dtype in OUTPUT], ids=str)


@each_op_and_dtype
def test_without_a_fault_nothing_is_caught(op, dtype):
    for case in judged(op, dtype)[:2]:
        assert not any(case.sees(name, Fault()) for name in case.of_kernel())


@each_op_and_dtype
def test_a_factor_is_caught(op, dtype):
    """A percent of a bfloat16 output, 3 in a thousand of a float16 one, 2 % of a bfloat16 gradient."""
    assert unseen(op, dtype, lambda name: Fault(lambda value: scaled(value, name, dtype))) == set()


@pytest.mark.parametrize("fault", FAULTS)
@each_op_and_dtype
def test_a_fault_is_caught(op, dtype, fault):
    assert unseen(op, dtype, lambda name: FAULTS[fault]) == set()
