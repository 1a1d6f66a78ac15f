"""L bottleneck residual blocks on rows.

What moves through memory (n rows, width m, bottleneck k, l blocks, e bytes an element): the forward of all blocks in
one launch reads x and writes y once, 2 n m e, where eager reads and writes the stream several times a block. A program
owns a tile of rows. Where `options` finds room, its stream stays in registers through all blocks, in float32, as the
accumulator of the second product. A wider one lives in float32 in memory and passes through the multiprocessor in
chunks, twice a block, which its caches serve as long as the tiles of all programs fit. Weights are read by every
program and come from L2. Training also writes `hidden`, n l k e (with mid 2 n l k e), and in half precision the
unrounded end of the stream, 4 n m.

The backward takes two launches whatever l is, with mid three. The first steps the stream back, x_{i-1} = x_i -
up_i v_i, beside the gradient g, tile by tile of rows, and writes dz, n l k e. Given all of v and dz, a column of x and
g depends on no other column: the second steps chunks of columns back again and sums the weights' gradients, each
program into a slice of its own, so that no sum depends on the order in which programs run. slices.py adds them.

A branch around the stream would keep it in registers once for each side: hence masks and `where` in its place.
"""

from .residual_chain_backward import residual_chain_backward
from .residual_chain_forward import residual_chain_forward

__all__ = ["residual_chain_backward", "residual_chain_forward"]
