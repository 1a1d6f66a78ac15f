"""Bottleneck blocks on images, by definition: residual_block2d.py with convolutions 1x1, 3x3 with the stride, and 1x1.

a = relu(N_0(x))       v = relu(N_2(C_1 * relu(N_1(C_0 * a))))       y = C_2 * v + (P * a, or x)
"""

from functools import partial

from . import residual_block2d
from .residual_block2d import Kind

KIND = Kind(kernels=(1, 3, 1), strided=1)

bottleneck2d_forward = partial(residual_block2d.residual_block2d_forward, KIND)
bottleneck2d_backward = partial(residual_block2d.residual_block2d_backward, KIND)
bottleneck2d_forward_fake = residual_block2d.forward_fake(KIND)
bottleneck2d_backward_fake = residual_block2d.backward_fake
