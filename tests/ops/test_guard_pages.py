"""Nothing is read outside of an argument: pages before and behind each of them may not be touched.

Results and scratch memory are the kernels' own: tests/standalone/test_sanitized.py guards them.
"""

import children
import pytest

from fastnest.testing import OPS, kernels

CODE = """
import itertools
import sys
import torch
from fastnest.testing import before_a_guard_page, behind_a_guard_page, run, sample_inputs

torch.set_num_threads(1)
op, *names = sys.argv[1:]
for guarded in (before_a_guard_page, behind_a_guard_page):

    def change(leaves, gradients):
        for leaf, tensor in leaves.items():
            leaves[leaf] = guarded(tensor).requires_grad_(tensor.requires_grad)
        gradients[:] = map(guarded, gradients)

    for name, dtype in itertools.product(names, (torch.float32, torch.bfloat16, torch.float16)):
        for one in sample_inputs(op)[::8]:
            print(guarded.__name__, name, dtype, repr(one), file=sys.stderr)  # the last one is what crashed
            expected = run(one, name, dtype=dtype)
            for key, value in run(one, name, dtype=dtype, change=change).items():
                same = torch.equal(value, expected[key])
                assert same or torch.allclose(value, expected[key], rtol=0.02, atol=0.02), f"{key} of {one!r}"
"""


@pytest.mark.skipif(not kernels(), reason="the C++ kernels are not built")
@pytest.mark.parametrize("op", OPS)
def test_arguments_between_guard_pages(op):
    """On every instruction set that this CPU has."""
    children.run(CODE, op, *kernels())
