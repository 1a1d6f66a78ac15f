"""How near a result has to be: to float64, within what rounding does to plain torch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .running import Results


class Expected(NamedTuple):
    """What a result is compared with: exact in float64, by plain torch in dtype, and how far off rounding may lead."""

    exact: Results
    plain: Results
    error: dict[str, float]


NUDGES, ULPS = 15, 4


def expect(results: Callable[[str, torch.dtype | None, int], Results]) -> Expected:
    """What results(backend, compute, nudge) should be without a nudge.

    The error is the worst of 16 draws: plain torch's, its arguments as they are and nudged by half an ulp 15 times,
    and what the nudges do to the exact result. One draw would be luck: it is a few roundings where a result has few
    elements, and in half precision the few activations that rounding pushes over relu's kink.
    """
    exact, plain = results("reference", torch.float64, 0), results("reference", None, 0)
    errors = dict.fromkeys(exact, 0.0)
    for nudge in range(NUDGES + 1):
        nudged = results("reference", torch.float64, nudge) if nudge else exact
        rounded = results("reference", None, nudge) if nudge else plain
        for name, values in nudged.items():
            for difference in (values - exact[name], rounded[name].double() - values):
                finite = difference[difference.isfinite()].abs()
                errors[name] = max(errors[name], finite.max().item() if finite.numel() else 0.0)
    return Expected(exact, plain, errors)


def pooled(expected: Expected) -> Expected:
    """Allows every result the worst relative error of all results, in units of their largest values.

    For float32 at real sizes. There rounding flips a few of millions of relus in every run. A flip is larger than all
    other errors, and chance decides which results it reaches: 16 draws see too few flips in one result, enough in all.
    """
    largest = {name: values[values.isfinite()].abs().max().item() for name, values in expected.exact.items()}
    worst = max(error / largest[name] for name, error in expected.error.items() if largest[name])
    return expected._replace(error={name: worst * size for name, size in largest.items()})


def assert_close(actual: Results, expected: Expected, dtype: torch.dtype, what: object) -> None:
    """actual is at most twice as far from exact as rounding leads plain torch, plus 4 ulp of the largest value.

    That error is what the conditioning of the case makes of dtype's rounding, so the bound grows with sums and depth by
    itself. The ulp are for results that plain torch rounds without error. Nothing is forgiven of NaN and infinities,
    which have to be where they are in float64 or (they differ for gelu of -inf) in plain torch. What is finite there is
    compared even where plain torch has none: its bfloat16 products on CPUs with AMX carry NaN over to the row before.

    Args:
        actual: what is judged, in dtype, by name.
        expected: from `expect`.
        what: names the case in the message (a Case can be called again as it is printed).
    """
    assert actual.keys() == expected.exact.keys()
    for name, values in actual.items():
        exact, plain, ulp = expected.exact[name], expected.plain[name].double(), torch.finfo(values.dtype).eps
        where = f"{name} {list(values.shape)} {dtype} of {what}"
        assert values.dtype == expected.plain[name].dtype, f"{where}: dtype {values.dtype}"
        assert values.shape == exact.shape, f"{where}: expected shape {list(exact.shape)}"
        values = values.double()
        finite = exact.isfinite() & values.isfinite()
        same = finite | _identical(values, exact) | _identical(values, plain)
        assert same.all(), f"{where}: NaN or Inf differ at {(~same).nonzero()[:5].tolist()}"
        if not finite.any():
            continue
        error = torch.where(finite, (values - exact).abs(), 0).flatten()
        largest = exact[finite].abs().max().item()
        bound = 2 * expected.error[name] + ULPS * ulp * largest
        at = int(error.argmax())
        assert error[at] <= bound, (
            f"{where}: error {error[at]:.3g} > {bound:.3g} = 2 * {expected.error[name]:.3g} (rounding) "
            f"+ {ULPS} ulp of {largest:.3g}; at {at} of it: {values.flatten()[at]:.9g} for {exact.flatten()[at]:.9g}"
        )


def assert_same_bits(actual: Results, expected: Results, what: object) -> None:
    """All results are equal, and none is NaN; `what` names them in the message."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), f"{name} differs: {what}"


def _identical(values: Tensor, others: Tensor) -> Tensor:
    return (values == others) | (values.isnan() & others.isnan())
