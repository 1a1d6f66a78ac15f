"""use_deterministic_algorithms: nothing is refused, the bits repeat, and no memory is read before it is written."""

import pytest
import torch
from promises.every_op import every_op, gradients, images

from fastnest.testing import OPS, kernels, run, sample_inputs


@pytest.fixture
def deterministic():
    """torch then fills what `empty` gives with NaN, which any element that a kernel forgets would keep."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def step():
    model = every_op(training=True)
    y = model(images(5))
    return [y, *gradients(model, y), *model.buffers()]


def test_the_same_bits(deterministic):
    for first, second in zip(step(), step(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("op", OPS)
def test_every_element_is_written(op):
    """The bits are those that uninitialised memory gives, whatever is in it."""
    for one in sample_inputs(op)[::4]:
        for name in kernels()[:1]:
            expected = run(one, name, dtype=torch.float32)
            torch.use_deterministic_algorithms(True)
            try:
                found = run(one, name, dtype=torch.float32)
            finally:
                torch.use_deterministic_algorithms(False)
            for key, value in found.items():
                assert torch.equal(value, expected[key]), f"{key} of {one!r} by {name}"
