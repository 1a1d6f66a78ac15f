"""The ops: what they check, which backend computes them, and their autograd."""
