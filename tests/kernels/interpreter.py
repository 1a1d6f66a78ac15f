"""Triton's interpreter with bfloat16 and sums as a GPU has them.

As it comes, the interpreter truncates when it narrows to bfloat16, multiplies the bits as if they were integers, and
adds one row of a tile after another, where the threads of a GPU add by halves.
Imported before the kernels, with TRITON_INTERPRET=1.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_convert, _dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot


def _convert_rounding(values, source, target, mode):
    if (source, target) == (tl.float32, tl.bfloat16):
        values = torch.from_numpy(np.array(values, dtype=np.float32))
        return values.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    if (source, target) == (tl.bfloat16, tl.float32):
        return (np.asarray(values).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return _convert(values, source, target, mode)


def _dot_in_float32(self, a, b, *rest):
    if a.dtype.scalar == tl.bfloat16:
        a, b = self.cast_impl(a, tl.float32), self.cast_impl(b, tl.float32)
    return _dot(self, a, b, *rest)


def _sum_by_halves(self, values):
    data = np.moveaxis(values.handle.data, self.axis, 0)
    while len(data) > 1:
        data = data[: len(data) // 2] + data[len(data) // 2 :]
    data = np.expand_dims(data[0], self.axis) if self.keep_dims else data[0]
    return self.to_tensor(data, values.dtype)


interpreter._convert_float = _convert_rounding
interpreter.InterpreterBuilder.create_dot = _dot_in_float32
interpreter.ReduceOps.sum = _sum_by_halves
