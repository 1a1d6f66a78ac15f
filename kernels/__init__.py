"""Triton kernels of fastnest, one file per op, installed as ``fastnest.kernels``.

The only package that may import triton; it imports nothing of fastnest. This version has none: every op on a GPU
runs its reference.
"""
