"""What checks of kernels share that are run on the CPU, step by step: the cases they can take, and what is asked."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from fastnest.testing import Case, Expected, check_kernels, expect, flops, run, sample_inputs, with_value

# A second's work for about so many elements of x in rows, and multiply-adds of maps between images.
MOST_ELEMENTS, MOST_FLOPS = 4_200, 8_000_000


def cases(op: str) -> list[Case]:
    """What can be taken of an op's cases."""
    return [
        one for one in sample_inputs(op) if math.prod(one.shapes()["x"]) <= MOST_ELEMENTS and flops(one) <= MOST_FLOPS
    ]


def light_cases(op: str) -> list[Case]:
    """Those of them that can be run again and again."""
    return [one for one in cases(op) if flops(one) <= MOST_FLOPS // 8 and one.sizes["n"]]


def check(
    backend: str,
    one: Case,
    dtype: torch.dtype,
    change: Callable | None = None,
    expected: Callable[[Callable, torch.dtype], Expected] = expect,
) -> None:
    """A case's outputs and gradients are near those in float64."""

    results = partial(run, one, dtype=dtype, change=change)
    check_kernels(results, [backend], dtype, repr(one), expected(results, dtype))


def nan_and_infinity(op: str, check: Callable, more: Sequence[Case] = ()) -> None:
    """They come out where the definition has them, in the outputs and in every gradient; check(case, change)."""
    dense = [one for one in light_cases(op) if one.sizes["n"] in (3, 49, 50) and one.is_contiguous]
    for value in (float("nan"), float("inf"), -float("inf")):
        for one in [*dense[::11], *more]:
            check(one, with_value(value))
