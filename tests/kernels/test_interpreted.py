"""The Triton kernels without a GPU, by Triton's interpreter: results, repeats, reads behind the end."""

from importlib.util import find_spec

import pytest
from processes import succeeds

from fastnest.testing import OPS

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
CHECKS = [("outputs_and_gradients", dtype) for dtype in ("float32", "bfloat16", "float16")]
CHECKS += [("tuned", "bfloat16")]  # whose tiles have rows to halve
CHECKS += [(check, "float32") for check in ("repeats", "nan_and_infinity", "guard_pages", "compiled")]
RUNS = [("interpret.py", check, op, dtype) for op in OPS for check, dtype in CHECKS]
RUNS.remove(("interpret.py", "tuned", "batch_stats", "bfloat16"))  # has one way
RUNS += [("interpret.py", check, "residual_chain", "float32") for check in ("limits", "derivatives")]


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_interpreted(words, processes):
    succeeds(words, processes)
