"""The Triton kernels compiled for GPUs without one: nothing spills, everything fits, tensor cores multiply."""

from importlib.util import find_spec

import pytest

from fastnest._backend.choice import TRITON_OPS

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.parametrize("words", [("ahead.py", op) for op in TRITON_OPS], ids=" ".join)
def test_ahead(words, processes):
    done = processes[words].result()
    wrong = [line for line in done.stdout.splitlines() if "WRONG" in line]
    assert not wrong, "\n".join(wrong)
    assert done.returncode == 0, done.stderr
    assert all(f" {target} " in done.stdout for target in ("sm_80", "sm_90", "sm_100", "gfx942"))
