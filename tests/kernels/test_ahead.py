"""The Triton kernels compiled for GPUs without one: nothing spills, everything fits, tensor cores multiply."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastnest._backend.choice import TRITON_OPS

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
SCRIPT = Path(__file__).with_name("ahead.py")


@pytest.mark.parametrize("op", TRITON_OPS)
def test_ahead(op):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(SCRIPT), op], env=environment, capture_output=True, text=True)
    wrong = [line for line in done.stdout.splitlines() if "WRONG" in line]
    assert not wrong, "\n".join(wrong)
    assert done.returncode == 0, done.stderr
    assert all(f" {target} " in done.stdout for target in ("sm_80", "sm_90", "sm_100", "gfx942"))
