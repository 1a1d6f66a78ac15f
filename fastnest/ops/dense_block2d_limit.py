"""dense_block2d: which calls the kernels in CUDA C++ take, and by which sizes they were measured."""

from itertools import chain

import torch
from torch import Tensor

from .. import _backend
from ..reference.dense_block2d import Weights
from .arguments import need_grad
from .image import MOST_PIXELS

MOST_HIDDEN, MOST_GROWTH = 192, 48
ALIGNED = 16  # bytes that the channels of a pixel fill evenly


def cuda_limit(x: Tensor, weights: Weights, room: _backend.Room) -> str | None:
    """Why the kernels in CUDA C++ cannot take a call on a GPU."""
    if not weights.norm1_mean:
        return "training: the kernels in CUDA C++ are for inference, with given statistics"
    if need_grad((x, *chain.from_iterable(weights))):
        return "training: the kernels in CUDA C++ are for inference, and a gradient is asked for"
    if not room.hopper:
        return "the kernels in CUDA C++ are for compute capability 9.0, and a build for 9.0a"
    if not weights.conv1:
        return "the kernels in CUDA C++ are for layers with conv1"
    if x.dtype is torch.float32 and not _backend.allows_tf32():
        return "the kernels in CUDA C++ compute float32 as TF32, which torch's fp32_precision does not allow here"
    hidden, growth = (max(w.shape[0] for w in convolutions) for convolutions in (weights.conv1, weights.conv2))
    if hidden > MOST_HIDDEN or growth > MOST_GROWTH:
        most = f"{MOST_HIDDEN} hidden channels and a growth of {MOST_GROWTH}"
        return f"the kernels in CUDA C++ take up to {most}, got {hidden} and {growth}"
    channels = x.shape[1] + sum(w.shape[0] for w in weights.conv2)
    if channels * x.element_size() % ALIGNED:
        size = channels * x.element_size()
        return f"the kernels in CUDA C++ write pixels of a multiple of {ALIGNED} bytes, got {channels} channels, {size}"
    if torch.compiler.is_compiling():  # which has no size to compare
        return None
    n, _, h, w = x.shape
    if n == 0 or n * h * w >= MOST_PIXELS:
        return f"the kernels in CUDA C++ take at least one image and fewer than 2^31 pixels, got {list(x.shape)}"
    return None


def sizes_of(x: Tensor, weights: Weights) -> dict[str, int]:
    """What was measured: hidden channels and growth, 0 where layers differ, and the width of an image."""
    found = [{weight.shape[0] for weight in convolutions} for convolutions in (weights.conv1, weights.conv2)]
    b, d = (sizes.pop() if len(sizes) == 1 else 0 for sizes in found)
    return {"b": b, "d": d, "w": x.shape[3]}
