"""fastnest.testing's judge: what it refuses."""

from functools import partial

import pytest
import torch

from fastnest.testing import (
    Error,
    Expected,
    assert_close,
    check_kernels,
    error_of,
    expect,
    expect_by_one_run,
    nudged,
    pooled,
)

NAN, INF = float("nan"), float("inf")
PLAIN = Error(1e-6, 1e-6, 1e-6)


def judge(value: float, exact: float, plain: float) -> None:
    """One element in float32 beside 1."""
    actual, plain_y = ({"y": torch.tensor([1.0, one])} for one in (value, plain))
    expected = Expected({"y": torch.tensor([1.0, exact], dtype=torch.float64)}, plain_y, {"y": PLAIN})
    assert_close(actual, expected, torch.float32, "a case")


@pytest.mark.parametrize(
    ("value", "exact", "plain"), [(0.5, 0.5, 0.5), (0.5, 0.5, NAN), (NAN, NAN, NAN), (0.0, NAN, 0.0)]
)
def test_close(value, exact, plain):
    """Near what is exact, even where plain torch has none, or as plain torch has it where nothing is exact."""
    judge(value, exact, plain)


@pytest.mark.parametrize(("value", "exact", "plain"), [(0.5, 0.6, 0.6), (0.5, 0.6, NAN), (0.5, 0.6, 0.5)])
def test_far(value, exact, plain):
    with pytest.raises(
        AssertionError, match=r"largest error 0\.1 > 2\.48e-06, plain torch has 1e-06; .* 1 of it: 0\.5"
    ):
        judge(value, exact, plain)


@pytest.mark.parametrize(("value", "exact", "plain"), [(NAN, 0.5, 0.5), (0.5, NAN, NAN), (INF, NAN, -INF)])
def test_nan_and_infinity(value, exact, plain):
    with pytest.raises(AssertionError, match=r"NaN or Inf differ at \[\[1\]\]"):
        judge(value, exact, plain)


def test_each_error_sees_its_kind():
    """A single element, many of them, a common factor, a common offset: of 10,000 normal numbers."""
    exact = torch.randn(10000, generator=torch.Generator().manual_seed(0)).double()
    largest = exact.abs().max().item()

    def near(*numbers):
        return pytest.approx(numbers, rel=0.05, abs=1e-3)

    one = exact.clone()
    one[17] += 0.5
    assert error_of(one, exact) == near(0.5 / largest, 0.005, 0)
    noise = torch.randn(10000, generator=torch.Generator().manual_seed(1)).double()
    assert error_of(exact + 0.01 * noise, exact)[1:] == near(0.01, 0)
    assert error_of(exact * 1.01, exact) == near(0.01, 0.01, 0.01)
    assert error_of(exact + 0.01, exact) == near(0.01 / largest, 0.01, 0.01)
    assert error_of(torch.full((3,), NAN), torch.zeros(3).double()) == (0, 0, 0)


def rounded(backend, compute, nudge, wrong=lambda nudge: 1.0):
    """x + x in bfloat16, by "ours" times wrong(nudge)."""
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)).bfloat16()
    x = nudged(x, torch.Generator().manual_seed(nudge)) if nudge else x
    y = x.to(compute or x.dtype) * 1.7
    return {"y": y * wrong(nudge) if backend == "ours" else y}


def test_a_fault_in_every_draw_is_refused():
    with pytest.raises(AssertionError, match=r"y \[100\] torch.bfloat16 of ours: a case: rms error 0\.00999"):
        check_kernels(partial(rounded, wrong=lambda nudge: 1.01), ["ours"], torch.bfloat16, "a case")


def test_an_accident_in_one_draw_is_not():
    check_kernels(partial(rounded, wrong=lambda nudge: 1.0 if nudge else 1.01), ["ours"], torch.bfloat16, "a case")


def test_a_large_error_in_one_draw_is():
    def wrong(nudge):
        return 1.0 if nudge else torch.ones(100).bfloat16().index_fill(0, torch.tensor([3]), -1.0)

    with pytest.raises(AssertionError, match="largest error"):
        check_kernels(partial(rounded, wrong=wrong), ["ours"], torch.bfloat16, "a case")


def test_expected_errors_are_those_of_rounding():
    """The product in bfloat16 is rounded once: half an ulp at most, which is 2^-8 just above a power of 2."""
    error = expect(rounded, torch.bfloat16).error["y"]
    assert 2**-9 <= error.largest <= 2 * 2**-8
    assert 0.5 * 2**-7 / 12**0.5 < error.rms < 2**-7 / 12**0.5
    assert error.bias < error.rms / 2


def test_one_run_is_given_its_chance():
    """4 standard deviations of as many numbers as rows, or as the result has elements."""
    exact = {"y": torch.ones(64, 2).double(), "db": torch.ones(4).double()}
    plain = {name: value * torch.linspace(0.99, 1.01, value.numel()).view(value.shape) for name, value in exact.items()}
    error = expect_by_one_run(exact, plain, 64).error
    for name, chance in (("y", 0.5), ("db", 2.0)):
        largest, rms, bias = error_of(plain[name], exact[name])
        assert error[name] == pytest.approx((largest * (1 + chance), rms * (1 + chance), bias + chance * rms / 2))


def test_pooled_errors_are_the_worst_of_all_results():
    exact = {name: torch.zeros(1) for name in ("y", "dx")}
    found = pooled(Expected(exact, exact, {"y": Error(0.1, 0.05, 0.0), "dx": Error(0.2, 0.01, 0.01)}))
    assert found.error == dict.fromkeys(exact, Error(0.2, 0.05, 0.01))


def test_a_nudge_stays_in_its_dtype():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    moved = nudged(x, torch.Generator().manual_seed(1))
    assert moved.dtype is torch.bfloat16
    assert 0.1 < (moved != x).float().mean() < 0.5
    assert ((moved - x).abs() <= torch.finfo(torch.bfloat16).eps * x.abs()).all()
