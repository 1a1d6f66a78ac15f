"""Checks of an op's Triton kernels by the interpreter, each in a process of its own: interpret.py CHECK OP DTYPE.

test_interpreted.py starts it, with TRITON_INTERPRET=1 and the folder of tests on PYTHONPATH.
"""

import sys
from functools import partial

import interpreter  # noqa: F401  corrects bfloat16 before the kernels are imported
import kernel_checks
import pytest
import torch
import triton
import triton.language as tl
from kernel_checks import cases, light_cases

import fastnest
from fastnest.kernels import launch
from fastnest.kernels.activation import activate_backward as activate_backward_in_triton
from fastnest.reference.activation import ACTIVATIONS, activate_backward
from fastnest.testing import ULPS, as_tuple, assert_same_bits, before_a_guard_page, flat, kernel, run, small_inputs

check = partial(kernel_checks.check, "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def outputs_and_gradients(op: str, dtype: torch.dtype) -> None:
    """Sizes that no tile divides, options, layouts: every third case, another third by every dtype."""
    launch.MULTIPROCESSORS = 1  # tiles as for many rows; the other checks have those for few
    for one in cases(op)[DTYPES.index(dtype) :: 3]:
        check(one, dtype)


def repeats(op: str, dtype: torch.dtype) -> None:
    """The same bits every time."""
    for one in light_cases(op)[5::29]:
        first, second = (run(one, "triton", dtype=dtype) for _ in range(2))
        assert_same_bits(second, first, repr(one))


def tuned(op: str, dtype: torch.dtype) -> None:
    """Whichever tiles are measured to be the fastest, here the last ones: right, and measured once."""
    measured = []

    def measure(run) -> int:
        run()
        measured.append(run)
        return -len(measured)

    launch.MULTIPROCESSORS, launch.measure = 1, measure
    launch.tuning(True)
    for one in [one for one in light_cases(op) if one.sizes["n"] in (3, 49)][::12]:
        check(one, dtype)
        before = len(measured)
        run(one, "triton", dtype=dtype)
        assert len(measured) == before > 0, repr(one)
    assert len({str(one.args[0]) for one in measured}) > 1, "nothing to choose from"


def nan_and_infinity(op: str, dtype: torch.dtype) -> None:
    """They come out where the definition has them, in the outputs and in every gradient."""
    kernel_checks.nan_and_infinity(op, lambda one, change: check(one, dtype, change))


def guard_pages(op: str, dtype: torch.dtype) -> None:
    """Nothing is read behind the end of an argument: there begins a page that may not be read."""

    def change(leaves, gradients):
        for name, leaf in leaves.items():
            leaves[name] = before_a_guard_page(leaf.detach()).requires_grad_(leaf.requires_grad)
        gradients[:] = map(before_a_guard_page, gradients)

    for one in [one for one in light_cases(op) if one.is_contiguous][::16]:
        check(one, dtype, change)


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


@triton.jit
def _derivative(z, df, SIZE: tl.constexpr, NAME: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(df + at, activate_backward_in_triton(tl.full([SIZE], 1.0, tl.float32), tl.load(z + at), NAME))


def derivatives(op: str, dtype: torch.dtype) -> None:
    """Of every activation, to a few ulp of 1, their size: where tanh is near 1, differences from 1 are not that near.

    Nearer than torch has them, because a GPU's division and exponential are less exact than those here.
    """
    z = torch.linspace(-12, 12, 2**14)
    for name in ACTIVATIONS:
        ours = torch.empty_like(z)
        _derivative[(1,)](z, ours, len(z), name)
        error = (ours - activate_backward(name, torch.ones_like(z).double(), z.double())).abs().max().item()
        assert error <= ULPS * torch.finfo(dtype).eps, f"{name}: {error:.2e}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](sys.argv[2], getattr(torch, sys.argv[3]))
