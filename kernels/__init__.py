"""Triton kernels of fastnest, installed as ``fastnest.kernels``: one file with an op's launchers, and what they share.

The only package that may import triton. It imports nothing of fastnest, which imports its files when they are needed.
"""
