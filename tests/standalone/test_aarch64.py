"""The kernels compiled for aarch64 and run by qemu: outputs and every gradient beside float64."""

import shutil

import pytest
import torch
from marks import needs_cpp
from standalone.executable import ROOT, Elsewhere, build, check

from fastnest.testing import OPS, sample_inputs

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [program for program in (COMPILER, EMULATOR) if shutil.which(program) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (Debian: g++-aarch64-linux-gnu qemu-user)"),
    needs_cpp,
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def executable():
    return build(ROOT / "build/aarch64", COMPILER, "-O1", "-static")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_outputs_and_gradients(op, dtype, executable):
    elsewhere = Elsewhere((EMULATOR, executable), "portable", threads=2)
    check(elsewhere, op, dtype, sample_inputs(op)[10 * DTYPES.index(dtype) :: 30])
    elsewhere.close()
    assert elsewhere.calls > 0
