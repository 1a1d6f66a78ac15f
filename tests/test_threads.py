"""Kernels called from several Python threads at once, and their scratch memory between calls."""

from concurrent.futures import ThreadPoolExecutor

import torch
from marks import needs_cpp

from fastnest import functional

pytestmark = needs_cpp


def step(n: int) -> list[torch.Tensor]:
    """y and every gradient of a residual chain, from a seed of n."""
    generator = torch.Generator().manual_seed(n)
    sizes = [(n, 130), (3, 33, 130), (3, 130, 33), (3, 33)]
    x, down, up, bias = (torch.randn(s, generator=generator).mul_(0.1).requires_grad_() for s in sizes)
    y = functional.residual_chain(x, down, up, down_bias=bias)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, down, up, bias])]


def test_threads_do_not_disturb_one_another():
    # 2: dot products; 20: threads share the width; 300: threads share the rows.
    rows = [2, 20, 300] * 8
    alone = {n: step(n) for n in set(rows)}
    with ThreadPoolExecutor(4) as pool:
        for n, found in zip(rows, pool.map(step, rows), strict=True):
            for one, other in zip(found, alone[n], strict=True):
                # A new thread may have another number of workers, which only orders sums differently.
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


def test_released_scratch_is_taken_anew():
    from fastnest import _C

    before = step(300)
    _C.release_scratch()
    _C.release_scratch()
    for one, other in zip(step(300), before, strict=True):
        assert torch.equal(one, other)
