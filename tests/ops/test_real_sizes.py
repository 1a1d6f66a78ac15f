"""Sizes of networks people train, by every backend that is here: too slow for every change (make nightly)."""

from functools import partial

import pytest
import torch
from marks import every_device, needs_cpp

from fastnest.testing import OPS, check_kernels, expect, kernels, pooled, real_inputs, run

pytestmark = pytest.mark.nightly


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
@every_device
def test_real_sizes(op, dtype, device):
    """Outputs and gradients; on a GPU `make gpu` begins with these."""
    for one in real_inputs(op):
        results = partial(run, one, dtype=dtype, device=device)
        expected = pooled(expect(results, dtype)) if dtype is torch.float32 else None
        check_kernels(results, ["cpp"] if device == "cpu" else kernels(device, op), dtype, repr(one), expected)
