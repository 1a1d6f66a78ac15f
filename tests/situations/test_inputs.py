"""What fastnest's own blocks and accelerated ones make of unusual inputs: what plain torch makes of them."""

import copy

import pytest
import torch
from convert.blocks import AuthorsBlock, dense_block
from situations.test_own_blocks import BLOCKS as OWN

import fastnest

# How each is made, and how plain torch runs a copy of it.
BLOCKS = {
    **{name: (make, by_modules) for name, (make, by_modules, *_) in OWN.items()},
    "accelerated dense block": (lambda: fastnest.accelerate(dense_block()).train(), None),
    "accelerated residual block": (lambda: fastnest.accelerate(AuthorsBlock(6, 4, 6)).train(), None),
}


def block_and_plain(name):
    torch.manual_seed(0)
    make, by_modules = BLOCKS[name]
    block = make()
    other = copy.deepcopy(block)
    if by_modules is None:
        return block, other, fastnest.restore(other)
    return block, other, lambda x: by_modules(other, x)


def image(x):
    return x[0] if isinstance(x, tuple) else x


# Images whose running statistics have to be torch's after three calls.
STATISTICS = {
    "1e20: variances are infinite": torch.randn(3, 6, 9, 8, generator=torch.Generator().manual_seed(0)) * 1e20,
    "infinite": torch.full((3, 6, 9, 8), torch.inf),
    "NaN": torch.full((3, 6, 9, 8), torch.nan),
    "an empty batch": torch.zeros(0, 6, 9, 8),
    "subnormal": torch.randn(3, 6, 9, 8, generator=torch.Generator().manual_seed(0)) * 1e-40,
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("situation", STATISTICS)
def test_running_statistics(situation, name):
    block, other, plain = block_and_plain(name)
    for _ in range(3):
        assert image(block(STATISTICS[situation])).shape == image(plain(STATISTICS[situation])).shape
    for (key, mine), theirs in zip(block.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, equal_nan=True, msg=lambda m, k=key: f"{k}: {m}")


def strided(x, *strides):
    return torch.empty_strided(x.shape, strides).copy_(x)


# Images of one channel or more, and whether the result is contiguous, channels-last, as plain torch's.
ONE, TWO = torch.ones(2, 1, 3, 5), torch.ones(2, 2, 3, 5)
LAYOUTS = {
    "one channel": (ONE, True, False),
    "one channel, strides of channels-last": (strided(ONE, 15, 1, 5, 1), True, False),
    "two channels": (TWO, True, False),
    "two channels, channels-last": (TWO.contiguous(memory_format=torch.channels_last), False, True),
}
IN_ONE_BUFFER = {
    "DenseBlock2d": lambda c: fastnest.nn.DenseBlock2d(c, 4, 2),
    "Bottleneck2d": lambda c: fastnest.nn.Bottleneck2d(c, 4, 6),
    "BasicBlock2d": lambda c: fastnest.nn.BasicBlock2d(c, 4, 6),
}


@pytest.mark.parametrize("name", IN_ONE_BUFFER)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_format_of_the_result(layout, name):
    x, is_contiguous, is_channels_last = LAYOUTS[layout]
    block = IN_ONE_BUFFER[name](x.shape[1])
    by_modules = OWN[name][1]
    for y in (block(x), by_modules(block, x)):
        assert y.is_contiguous() == is_contiguous
        assert y.is_contiguous(memory_format=torch.channels_last) == is_channels_last
