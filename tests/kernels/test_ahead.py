"""The Triton kernels compiled for GPUs that are not here: no spills, shared memory that fits, tensor cores used."""

from importlib.util import find_spec

import pytest
from processes import succeeds

from fastnest.testing import OPS

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.mark.parametrize("words", [("ahead.py", op, target) for op in OPS for target in TARGETS], ids=" ".join)
def test_ahead(words, processes):
    succeeds(words, processes)
