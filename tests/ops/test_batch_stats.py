import pytest
import torch

from fastnest.functional import batch_stats
from fastnest.testing import kernel, kernels

EVERY = ["reference", *kernels()]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("mean", [1e3, 1e6])
def test_mean_far_larger_than_the_deviation(name, mean):
    """E[x^2] - E[x]^2 in float32 would leave nothing of a variance of 1 under a mean of 1e6."""
    torch.manual_seed(0)
    x = (mean + torch.randn(4, 5, 31, 33)).contiguous(memory_format=torch.channels_last)
    exact = x.double()
    with kernel(name):
        found, var = batch_stats(x)
    eps = torch.finfo(torch.float32).eps
    assert (found - exact.mean((0, 2, 3))).abs().max() <= eps * mean
    assert (var / exact.var((0, 2, 3), correction=0) - 1).abs().max() <= 16 * eps


@pytest.mark.parametrize("name", EVERY)
def test_constant_channels_have_variance_zero(name):
    x = torch.full((3, 2, 50, 7), 1234.567).contiguous(memory_format=torch.channels_last)
    with kernel(name):
        mean, var = batch_stats(x)
    assert torch.equal(mean, x[0, :, 0, 0])
    assert torch.equal(var, torch.zeros(2))


@pytest.mark.parametrize("name", EVERY[:2])
def test_half_precision_is_summed_in_float32(name):
    x = torch.full((2000, 3), 1.0, dtype=torch.bfloat16)
    with kernel(name):
        mean, var = batch_stats(x)
    assert mean.dtype is var.dtype is torch.float32
    assert torch.equal(mean, torch.ones(3))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1.0], TypeError, "x must be a torch.Tensor, got list"),
        (torch.zeros(2, 3, 4), ValueError, "x must be [rows, features] with at least one feature, got x [2, 3, 4]"),
        (
            torch.zeros(2, 0, 4, 4),
            ValueError,
            "x must be [n, channels, height, width] with at least one channel, got [",
        ),
        (torch.zeros(2, 3, 4, 4).int(), TypeError, "x must be float64, float32, bfloat16 or float16, got torch.int32"),
    ],
    ids=["list", "three dimensions", "no channels", "int"],
)
def test_bad_input(x, error, message):
    with pytest.raises(error) as raised:
        batch_stats(x)
    assert str(raised.value).startswith(f"batch_stats: {message}")
