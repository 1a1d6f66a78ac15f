"""L concatenating dense growths on rows.

What moves through memory (n rows, x of width m, L growths d, hidden layers h, e bytes an element; m_i = m + i d): the
forward reads x once and writes y once, n (m + m_L) e, where eager's `cat` reads and writes x_i anew in every block. A
program owns a tile of rows: it copies x into y, and for every block reads its rows of y back in chunks of columns and
writes the growth behind them. That is n (m + ... + m_{L-1}) e of reads, quadratic in L, of lines the program has just
written: the caches serve them as long as the tiles of all programs fit. A hidden layer passes through memory too, n h e
a block, which training keeps for the backward (and z of a growth under an activation that does not tell it, n d e).

Triton takes no list of pointers, so that one launch packs every list into one buffer, W bytes read and written for
weights of W bytes. Where all blocks grow by the same d (and have the same h), where block i lies in it is a formula,
and the forward of all blocks is one launch. Otherwise it is one for each run of equal blocks, in the same y. Launches
of a run: packing, one for each of weight, bias, hidden_weight, hidden_bias, scale and shift that there is, where it has
more than one block, and one kernel.

The backward goes from the last block to the first, a tile of rows per program, and gathers: the gradient of a growth's
columns is dy's plus that of every later block, a sum over all their features. It stays in float32 in registers until it
is whole, so that nothing but dz, n L d e (with hidden layers n L h e more), is written, and read back quadratically in
L as y is in the forward. No gradient of the stream is in memory, but between two runs: [n, m], in float32. Weights'
gradients are products over rows of what is then in memory: each program sums some rows of a tile of them into a slice
of its own (slices.py), so that no sum depends on the order in which programs run. Launches of a run:
packing of the weights, scale and shift; the rows; with hidden layers 2 and else 1 for the weights, and 1 with scale and
shift. Then one sum for each list of gradients, and once for all runs a copy into tensors of their own.
"""

from .dense_chain_backward import dense_chain_backward
from .dense_chain_forward import dense_chain_forward

__all__ = ["dense_chain_backward", "dense_chain_forward"]
