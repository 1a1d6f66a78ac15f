"""fastnest.testing.assert_close: what it refuses."""

import pytest
import torch

from fastnest.testing import assert_close, pooled
from fastnest.testing.comparison import Expected

NAN, INF = float("nan"), float("inf")


def judge(value: float, exact: float, plain: float) -> None:
    """One element in float32 beside 1."""
    actual, plain_y = ({"y": torch.tensor([1.0, one])} for one in (value, plain))
    expected = Expected({"y": torch.tensor([1.0, exact], dtype=torch.float64)}, plain_y, {"y": 1e-6})
    assert_close(actual, expected, torch.float32, "a case")


@pytest.mark.parametrize(
    ("value", "exact", "plain"), [(0.5, 0.5, 0.5), (0.5, 0.5, NAN), (NAN, NAN, NAN), (0.0, NAN, 0.0)]
)
def test_close(value, exact, plain):
    """Near what is exact, even where plain torch has none, or as plain torch has it where nothing is exact."""
    judge(value, exact, plain)


@pytest.mark.parametrize(("value", "exact", "plain"), [(0.5, 0.6, 0.6), (0.5, 0.6, NAN), (0.5, 0.6, 0.5)])
def test_far(value, exact, plain):
    with pytest.raises(AssertionError, match=r"error 0\.1 > 2\.48e-06"):
        judge(value, exact, plain)


@pytest.mark.parametrize(("value", "exact", "plain"), [(NAN, 0.5, 0.5), (0.5, NAN, NAN), (INF, NAN, -INF)])
def test_nan_and_infinity(value, exact, plain):
    with pytest.raises(AssertionError, match=r"NaN or Inf differ at \[\[1\]\]"):
        judge(value, exact, plain)


def test_pooled_errors_are_the_worst_of_all_results_by_their_size():
    exact = {"y": torch.tensor([4.0, NAN]).double(), "dx": torch.tensor([0.5, -2.0]).double(), "db": torch.zeros(2)}
    found = pooled(Expected(exact, exact, {"y": 0.4, "dx": 0.02, "db": 0.0}))
    assert found.error == pytest.approx({"y": 0.4, "dx": 0.2, "db": 0.0})
