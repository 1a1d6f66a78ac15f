"""The kernels under AddressSanitizer and UBSan, and with threads under ThreadSanitizer.

Every tensor is a buffer of its own that ends with its last element, and so is all scratch memory: what is read or
written a byte outside of an argument, a result or a kernel's own memory stops the executable with a report.
"""

import platform
import shutil

import pytest
import torch
from marks import needs_cpp
from standalone.executable import ROOT, Elsewhere, build

from fastnest import _backend
from fastnest.testing import OPS, run, sample_inputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COMPILER = shutil.which("g++")
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="needs g++"),
    needs_cpp,
]
# The two ends of the list compile in half of the time; the widest vectors reach farthest beyond an end.
ENDS = ("avx512_bf16", "portable") if platform.machine() == "x86_64" else ("portable",)
ADDRESSES = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1".split()


def check(executable, op, cases, threads, names) -> None:
    """Nothing is wrong with any of the cases, by any dtype, forward and backward."""
    for name in names:
        if name not in _backend._C.instruction_sets():
            pytest.skip(f"this CPU does not run {name}")
        elsewhere = Elsewhere((executable,), name, threads)
        for dtype in DTYPES:
            for one in cases:
                try:
                    with elsewhere:
                        run(one, "cpp", dtype=dtype)
                except RuntimeError as error:
                    raise AssertionError(f"{name} {dtype}: {one!r}: {error}") from error
        elsewhere.close()


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("op", OPS)
def test_addresses_and_undefined_behaviour(op, name):
    executable = build(ROOT / "build/sanitized", COMPILER, "-O1", *ADDRESSES, "-DFASTNEST_ENDS_ONLY")
    check(executable, op, sample_inputs(op)[::2], 2, [name])


def test_an_overrun_is_seen():
    """Weights that end before the kernel is done with them, which no public function would hand to it."""
    executable = build(ROOT / "build/sanitized", COMPILER, "-O1", *ADDRESSES, "-DFASTNEST_ENDS_ONLY")
    x, down, up = torch.ones(6, 64), torch.ones(2, 16, 64), torch.ones(2, 64, 15)
    elsewhere = Elsewhere((executable,), "portable")
    with elsewhere, pytest.raises(RuntimeError, match="AddressSanitizer: heap-buffer-overflow"):
        torch.ops.fastnest.residual_chain_forward(x, down, None, None, None, up, None, None, "relu", True, False, False)


@pytest.mark.nightly
@pytest.mark.parametrize("op", OPS)
def test_every_case_and_instruction_set(op):
    executable = build(ROOT / "build/sanitized-all", COMPILER, "-O1", *ADDRESSES)
    check(executable, op, sample_inputs(op), 2, _backend._C.instruction_sets())


@pytest.mark.nightly
@pytest.mark.parametrize("op", OPS)
def test_threads(op):
    executable = build(ROOT / "build/threads", COMPILER, "-O1", "-g1", "-fsanitize=thread", "-DFASTNEST_ENDS_ONLY")
    check(executable, op, sample_inputs(op)[::2], 3, _backend._C.instruction_sets()[:1])
