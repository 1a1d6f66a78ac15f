"""Marks that tests of several folders share."""

import pytest

import fastnest
from fastnest.testing import kernels

needs_cpp = pytest.mark.skipif(fastnest.backends()["cpp"] != "available", reason="the C++ kernels are not built")
# The definition, and the best instruction set of this CPU: enough for what lies around an op.
best_kernel = pytest.mark.parametrize("name", ["reference", *kernels()[:1]])
