"""Marks that tests of several folders share."""

import pytest

import fastnest
from fastnest.testing import devices, kernels

needs_cpp = pytest.mark.skipif(fastnest.backends()["cpp"] != "available", reason="the C++ kernels are not built")
# The definition, and the best instruction set of this CPU: enough for what lies around an op.
best_kernel = pytest.mark.parametrize("name", ["reference", *kernels()[:1]])
# Where the kernels run that a test takes: of a GPU where one is at hand.
every_device = pytest.mark.parametrize(
    "device", [pytest.param(device, marks=[] if device == "cpu" else [pytest.mark.gpu]) for device in devices()]
)
