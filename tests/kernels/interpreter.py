"""Triton's interpreter with bfloat16 as a GPU has it: rounded to nearest where a float32 is stored, and multiplied.

As it comes, the interpreter truncates when it narrows to bfloat16, and multiplies the bits as if they were integers.
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


interpreter._convert_float = _convert_rounding
interpreter.InterpreterBuilder.create_dot = _dot_in_float32
