"""How near a result has to be: to float64, within what rounding does to plain torch."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from .running import Results

DRAWS = 16  # of plain torch's rounding errors
AGAIN = 4  # more draws of a kernel's errors, where one is not within bounds
ULPS = 4
SINGLE = torch.finfo(torch.float32).eps

# results(kernel or backend, compute dtype, nudge) -> outputs and gradients, by name
Runner = Callable[[str, torch.dtype | None, int], Results]


class Error(NamedTuple):
    """How far a result is from the exact one: three numbers that see different faults.

    A few wrong elements show in the largest error, in units of the largest value; many that are slightly wrong in the
    root mean square, in units of the result's own; a common factor or offset, which hides in both, in the bias: the
    errors' projection on the result, or their mean, whichever is larger, in units of the root mean square.
    """

    largest: float
    rms: float
    bias: float

    def worst(self, other: "Error") -> "Error":
        return Error(*map(max, self, other))


FACTORS = Error(2, 1.5, 2)  # times plain torch's own


class Expected(NamedTuple):
    """What a result is compared with: exact in float64, by plain torch in dtype, and how far off rounding may lead."""

    exact: Results
    plain: Results
    error: dict[str, Error]


def error_of(values: Tensor, exact: Tensor) -> Error:
    """Of those elements that are finite in both, in float64."""
    values = values.double()
    finite = values.isfinite() & exact.isfinite()
    if not finite.any():
        return Error(0, 0, 0)
    exact = exact[finite]
    difference = values[finite] - exact
    largest, rms = exact.abs().max().item() or 1.0, exact.square().mean().sqrt().item() or 1.0
    common = max((difference * exact).mean().abs().item() / rms, difference.mean().abs().item())
    return Error(difference.abs().max().item() / largest, difference.square().mean().sqrt().item() / rms, common / rms)


def expect(results: Runner, dtype: torch.dtype) -> Expected:
    """What results(backend, compute, nudge) should be without a nudge.

    The error is the worst of 16 draws: plain torch's, its arguments in dtype as they are and nudged by half an ulp 15
    times, and what the nudges do to the exact result. One draw would be luck: it is a few roundings where a result has
    few elements, and in half precision the few activations that rounding pushes over relu's kink.

    The nudges count in full for the largest error. For the others they count as if they were 4 ulp of float32: kernels
    sum in float32, where plain torch may sum in float64, and where terms cancel that is as if their values had moved.
    """
    in_float32 = ULPS * min(1.0, SINGLE / torch.finfo(dtype).eps)
    exact, plain = results("reference", torch.float64, 0), results("reference", None, 0)
    errors = {name: error_of(plain[name], values) for name, values in exact.items()}
    for nudge in range(1, DRAWS):
        nudged, rounded = results("reference", torch.float64, nudge), results("reference", None, nudge)
        for name, values in nudged.items():
            largest, rms, bias = error_of(values, exact[name])
            moved = Error(largest, rms * in_float32, bias * in_float32)
            errors[name] = errors[name].worst(error_of(rounded[name], values)).worst(moved)
    return Expected(exact, plain, errors)


def expect_by_one_run(exact: Results, plain: Results, terms: int) -> Expected:
    """The same where there is time for one draw: its chance is 4 standard deviations of a mean of so many numbers.

    Args:
        terms: independent terms behind every result: rows, or pixels of all images. A smaller result has only as many
            as it has elements.
    """

    def error(name: str) -> Error:
        largest, rms, bias = error_of(plain[name], exact[name])
        chance = 4 / math.sqrt(max(1, min(terms, exact[name].numel())))
        return Error(largest * (1 + chance), rms * (1 + chance), bias + chance * rms / FACTORS.bias)

    return Expected(exact, plain, {name: error(name) for name in exact})


def pooled(expected: Expected) -> Expected:
    """Allows every result the worst errors of all results.

    For float32 at real sizes. There rounding flips a few of millions of relus in every run. A flip is larger than all
    other errors, and chance decides which results it reaches: 16 draws see too few flips in one result, enough in all.
    """
    worst = Error(*map(max, zip(*expected.error.values(), strict=True)))
    return expected._replace(error=dict.fromkeys(expected.error, worst))


def bounds(plain: Error, values: Tensor) -> Error:
    """Of the error of values, where plain torch's own is `plain`.

    Besides its factor each has what a result may have that plain torch rounds without error: of the largest 4 ulp, of
    the others an ulp over the square root of 12, which rounding once leaves, and what sums in float32 do before. The
    root mean square of n errors varies by 1 / sqrt(2 n) of itself; two such deviations are left to chance, which is
    much for single elements and nothing for a thousand.
    """
    ulp = torch.finfo(values.dtype).eps
    rounding = ulp / math.sqrt(12) + ULPS * min(ulp, SINGLE)
    chance = 1 + math.sqrt(2 / max(1, values.numel()))
    return Error(
        FACTORS.largest * plain.largest + ULPS * ulp,
        FACTORS.rms * plain.rms * chance + rounding,
        FACTORS.bias * plain.bias * chance + rounding,
    )


def check_kernels(
    results: Runner, names: Sequence[str], dtype: torch.dtype, what: object, expected: Expected | None = None
) -> None:
    """The results by every kernel or backend of these names are near the exact ones, as `assert_close` has it.

    A flipped relu can lead one draw of a kernel's errors beyond the bounds of root mean square and bias. A fault is
    there in every draw, so the median of five decides then. Without any name nothing would be checked: AssertionError.
    """
    assert names, f"no kernel can run {what}"
    expected = expected or expect(results, dtype)
    for name in names:

        def again(name: str = name) -> Iterator[tuple[Results, Results]]:
            return ((results(name, None, i), results("reference", torch.float64, i)) for i in range(1, AGAIN + 1))

        assert_close(results(name, None, 0), expected, dtype, f"{name}: {what}", again)


def assert_close(
    actual: Results,
    expected: Expected,
    dtype: torch.dtype,
    what: object,
    again: Callable[[], Iterable[tuple[Results, Results]]] | None = None,
) -> None:
    """Three errors of every result are within `bounds`: the largest, the root mean square, and the bias.

    Plain torch's error is what the conditioning of the case makes of dtype's rounding, so a bound grows with sums and
    depth by itself. Nothing is forgiven of NaN and infinities, which have to be where they are in float64 or (they
    differ for gelu of -inf) in plain torch. What is finite there is compared even where plain torch has none: its
    bfloat16 products on CPUs with AMX carry NaN over to the row before.

    Args:
        actual: what is judged, in dtype, by name.
        expected: from `expect`.
        what: names the case in the message (a Case can be called again as it is printed).
        again: more draws, as (results, exact ones); with them the median error decides, but of the largest.
    """
    assert actual.keys() == expected.exact.keys()
    found: dict[str, Error] = {}
    for name, values in actual.items():
        where = f"{name} {list(values.shape)} {dtype} of {what}"
        _assert_alike(values, expected.exact[name], expected.plain[name], where)
        found[name] = error_of(values, expected.exact[name])
    limits = {name: bounds(expected.error[name], values) for name, values in actual.items()}
    if again is not None and any(_beyond(found[name], limits[name]) for name in actual):
        draws = list(again())
        for name, first in found.items():
            errors = [first, *(error_of(results[name], exact[name]) for results, exact in draws)]
            found[name] = Error(*map(median, zip(*errors, strict=True)))._replace(largest=first.largest)
    for name, values in actual.items():
        for measure in _beyond(found[name], limits[name]):
            own, bound = (getattr(errors[name], measure) for errors in (found, limits))
            plain = getattr(expected.error[name], measure)
            raise AssertionError(
                f"{name} {list(values.shape)} {dtype} of {what}: {measure} error {own:.3g} > {bound:.3g}, plain torch "
                f"has {plain:.3g}; {_worst_element(values, expected.exact[name])}"
            )


def assert_same_bits(actual: Results, expected: Results, what: object) -> None:
    """All results are equal, and none is NaN; `what` names them in the message."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), f"{name} differs: {what}"


def _assert_alike(values: Tensor, exact: Tensor, plain: Tensor, where: str) -> None:
    """Dtype, shape, and where NaN and infinities are."""
    assert values.dtype == plain.dtype, f"{where}: dtype {values.dtype}, expected {plain.dtype}"
    assert values.shape == exact.shape, f"{where}: expected shape {list(exact.shape)}"
    values = values.double()
    same = (exact.isfinite() & values.isfinite()) | _identical(values, exact) | _identical(values, plain.double())
    assert same.all(), f"{where}: NaN or Inf differ at {(~same).nonzero()[:5].tolist()}"


def _identical(values: Tensor, others: Tensor) -> Tensor:
    return (values == others) | (values.isnan() & others.isnan())


def _beyond(error: Error, bound: Error) -> list[str]:
    return [measure for measure in Error._fields if not getattr(error, measure) <= getattr(bound, measure)]


def _worst_element(values: Tensor, exact: Tensor) -> str:
    values, exact = values.double().flatten(), exact.flatten()
    at = int((values - exact).abs().nan_to_num(0, 0).argmax())
    return f"farthest at {at} of it: {values[at]:.9g} for {exact[at]:.9g}"
