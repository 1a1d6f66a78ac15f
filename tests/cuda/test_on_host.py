"""The CUDA kernels without a GPU, their blocks on the CPU: results, repeats, races, reads where there is nothing."""

import on_host
import pytest
from processes import succeeds

CHECKS = [
    (check, dtype)
    for check in ("outputs_and_gradients", "more_outputs_and_gradients")
    for dtype in ("float32", "tf32", "bfloat16", "float16")
]
CHECKS += [(check, dtype) for check in ("launches", "nan_and_infinity", "repeats") for dtype in ("float32", "bfloat16")]
CHECKS += [("precision", "tf32")]
RUNS = [("check.py", check, op, dtype) for op in on_host.ops() for check, dtype in CHECKS]


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_on_host(words, processes):
    print(succeeds(words, processes))
