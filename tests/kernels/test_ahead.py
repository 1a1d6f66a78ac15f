"""The Triton kernels compiled for GPUs that are not here: no spills, shared memory that fits, tensor cores used."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
SCRIPT = Path(__file__).with_name("ahead.py")
OPS = ("residual_chain",)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_ahead(op, target):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, str(SCRIPT), op, target]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words[1:])} ended with {done.returncode}\n{done.stdout}{done.stderr}"
