"""Bottleneck blocks on images: residual_block2d.py with convolutions 1x1, 3x3 with the stride, and 1x1."""

from functools import partial

from . import residual_block2d

bottleneck2d_forward = partial(residual_block2d.forward, 1)
bottleneck2d_backward = partial(residual_block2d.backward, 1)
