"""Basic blocks on images, by definition: residual_block2d.py with convolutions 3x3 with the stride, and 3x3.

a = relu(N_0(x))       v = relu(N_1(C_0 * a))       y = C_1 * v + (P * a, or x)
"""

from functools import partial

from . import residual_block2d
from .residual_block2d import Kind

KIND = Kind(kernels=(3, 3), strided=0)

basic_block2d_forward = partial(residual_block2d.residual_block2d_forward, KIND)
basic_block2d_backward = partial(residual_block2d.residual_block2d_backward, KIND)
basic_block2d_forward_fake = residual_block2d.forward_fake(KIND)
basic_block2d_backward_fake = residual_block2d.backward_fake
