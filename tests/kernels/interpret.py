"""Checks of an op's Triton kernels by the interpreter, each in a process of its own: interpret.py CHECK OP DTYPE.

test_interpreted.py starts it, with TRITON_INTERPRET=1.
"""

import ctypes
import mmap
import sys
from functools import partial

import interpreter  # noqa: F401  corrects bfloat16 before the kernels are imported
import pytest
import torch

import fastnest
from fastnest.testing import Case, as_tuple, assert_close, expect, flat, kernel, run, sample_inputs, small_inputs

MOST_ELEMENTS = 7_000  # of x: the interpreter takes about a second for three times as many
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(op: str) -> list[Case]:
    return [one for one in sample_inputs(op) if one.sizes["n"] * one.sizes["m"] <= MOST_ELEMENTS]


def check(one: Case, dtype: torch.dtype, change=None) -> None:
    results = partial(run, one, dtype=dtype, change=change)
    assert_close(results("triton"), expect(results), dtype, repr(one))


def outputs_and_gradients(op: str, dtype: torch.dtype) -> None:
    """Sizes that no tile divides, options, layouts: every third case, another third by every dtype."""
    for one in cases(op)[DTYPES.index(dtype) :: 3]:
        check(one, dtype)


def repeats(op: str, dtype: torch.dtype) -> None:
    """The same bits every time."""
    for one in cases(op)[5::29]:
        first, second = (run(one, "triton", dtype=dtype) for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{name} differs when repeated: {one!r}"


def nan_and_infinity(op: str, dtype: torch.dtype) -> None:
    """They come out where the definition has them, in the outputs and in every gradient."""
    for value in (float("nan"), float("inf"), -float("inf")):

        def change(leaves, gradients, value=value):
            leaves["x"][1, -1] = leaves["x"][-1, 0] = value

        for one in [one for one in cases(op) if one.sizes["n"] == 49][::11]:
            check(one, dtype, change)


def guard_pages(op: str, dtype: torch.dtype) -> None:
    """Nothing is read behind the end of an argument: there begins a page that may not be read."""

    def change(leaves, gradients):
        for name, leaf in leaves.items():
            leaves[name] = before_a_guard_page(leaf.detach()).requires_grad_()
        gradients[:] = map(before_a_guard_page, gradients)

    for one in [one for one in cases(op) if one.sizes["n"] and one.layout == "contiguous"][::16]:
        check(one, dtype, change)


def before_a_guard_page(values: torch.Tensor) -> torch.Tensor:
    page, size = mmap.PAGESIZE, values.nbytes
    end = -(-size // page) * page
    memory = mmap.mmap(-1, end + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + end), ctypes.c_size_t(page), 0) == 0
    copy = torch.frombuffer(memory, dtype=values.dtype, offset=end - size, count=values.numel()).view(values.shape)
    return copy.copy_(values)


def compiled(op: str, dtype: torch.dtype) -> None:
    """torch.compile keeps the operators whole, and the choice is on record."""
    one = small_inputs(op)[0]
    tensors = one.tensors(dtype)
    with kernel("triton"), fastnest._backend.logging_choices() as log:
        expected = one.call(tensors)
        actual = torch.compile(one.call, fullgraph=True, backend="aot_eager")(tensors)
        torch.testing.assert_close(actual, expected)
        leaves = list(flat(tensors).values())
        gradients = [torch.autograd.grad(as_tuple(y)[0].sum(), leaves) for y in (actual, expected)]
        torch.testing.assert_close(*gradients)
    assert log[0][:2] == (op, "triton")


def limits(op: str, dtype: torch.dtype) -> None:
    """What residual_chain's kernels do not take is said, and never taken by itself on the CPU."""
    x, down = torch.ones(3, 5), torch.ones(2, 129, 5)
    with fastnest._backend.logging_choices() as log:
        fastnest.functional.residual_chain(x, down, down.transpose(1, 2).contiguous())
        assert log[0].backend != "triton"
        with kernel("triton"), pytest.raises(RuntimeError, match="up to 128 bottleneck features, got 129"):
            fastnest.functional.residual_chain(x, down, down.transpose(1, 2).contiguous())


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](sys.argv[2], getattr(torch, sys.argv[3]))
