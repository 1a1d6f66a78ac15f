"""The CUDA kernels without a GPU, their blocks on the CPU: results, repeats, races, reads where there is nothing."""

import pytest
from processes import succeeds

CHAINS = ("dense_chain", "residual_chain")
CHECKS = [
    (check, dtype)
    for check in ("outputs_and_gradients", "more_outputs_and_gradients")
    for dtype in ("float32", "tf32", "bfloat16", "float16")
]
CHECKS += [(check, dtype) for check in ("launches", "nan_and_infinity", "repeats") for dtype in ("float32", "bfloat16")]
CHECKS += [("precision", "tf32")]
RUNS = [("check.py", check, op, dtype) for op in CHAINS for check, dtype in CHECKS]
# For evaluation alone.
DENSE_BLOCK2D = [(check, dtype) for check in ("outputs", "shapes") for dtype in ("tf32", "bfloat16", "float16")]
DENSE_BLOCK2D += [
    (check, dtype) for check in ("layouts", "nan_and_infinity", "repeats") for dtype in ("tf32", "bfloat16")
]
DENSE_BLOCK2D += [("operators", "bfloat16")]
RUNS += [("check_dense_block2d.py", *one) for one in DENSE_BLOCK2D]


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_on_host(words, processes):
    print(succeeds(words, processes))
