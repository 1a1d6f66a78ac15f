"""The Triton kernels without a GPU, by Triton's interpreter: results, repeats, reads behind the end."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
SCRIPT = Path(__file__).with_name("interpret.py")
OPS = ("residual_chain",)
CHECKS = [("outputs_and_gradients", dtype) for dtype in ("float32", "bfloat16", "float16")]
CHECKS += [("tuned", "bfloat16")]  # whose tiles have rows to halve
CHECKS += [(check, "float32") for check in ("repeats", "nan_and_infinity", "guard_pages", "compiled", "limits")]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("check", "dtype"), CHECKS)
def test_interpreted(op, check, dtype):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    words = [sys.executable, str(SCRIPT), check, op, dtype]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words[1:])} ended with {done.returncode}\n{done.stdout}{done.stderr}"
