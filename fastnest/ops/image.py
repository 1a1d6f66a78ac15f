"""What every image op does with its arguments before anything runs: check, lay out channels last, widen norms."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .. import _backend
from ..reference.batch_stats import wide_dtype
from .arguments import DTYPES, Name, Wanted, check_number, misfit

MOST_PIXELS = 2**31 - 2**10  # on a GPU: less a tile


def check_image(op: str, x: Tensor) -> None:
    """x is a floating point tensor [n, c, h, w] with c >= 1."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() != 4 or x.size(1) < 1:
        raise ValueError(f"{op}: x must be [n, channels, height, width] with at least one channel, got {list(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{op}: x must be float64, float32, bfloat16 or float16, got {x.dtype}")


def check_pixels(op: str, x: Tensor) -> None:
    """A convolution needs a pixel to read, though there may be no image."""
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{op}: x must have at least one pixel an image, got x {list(x.shape)}")


def check_stride(op: str, stride: int) -> None:
    if isinstance(stride, bool) or not isinstance(stride, int) or stride not in (1, 2):
        raise ValueError(f"{op}: stride must be 1 or 2, got {stride!r}")


def check_batch_norm(op: str, x: Tensor, eps: float, batch: bool) -> None:
    """As torch's batch norm has it: a batch's own statistics need a positive eps and two values a channel (or none)."""
    check_number(op, "eps", eps)
    if eps < 0 or (batch and eps == 0):
        least = "positive where the statistics are the batch's own" if batch else "at least 0"
        raise ValueError(f"{op}: eps must be {least}, got {eps}")
    if batch and x.numel() == x.shape[1]:
        raise ValueError(f"{op}: batch statistics need more than one value per channel, got x {list(x.shape)}")


def is_rows_of_channels(x: Tensor) -> bool:
    """Whether a kernel reads x as it lies: channels consecutive, all pixels the same distance apart.

    So lie images in channels-last memory, and a range of channels of a wider one.
    """
    n, c, h, w = x.shape
    if c > 1 and x.stride(1) != 1:
        return False
    pixel = x.stride(3) if w > 1 else x.stride(2) if h > 1 else x.stride(0) if n > 1 else c
    return (
        pixel >= c and (w == 1 or x.stride(3) == pixel) and (h == 1 or x.stride(2) == w * pixel)
    ) and (n == 1 or x.stride(0) == h * w * pixel)  # fmt: skip


def channels_last(name: str, x: Tensor) -> Tensor:
    """x for a kernel, which reads rows of channels: itself, or a copy in channels-last memory."""
    if is_rows_of_channels(x):
        return x
    if not torch.compiler.is_compiling():  # which has no size to write down
        cost = f"{_megabytes(x)} each way or more"
        _backend.note(f"{name} is copied to channels-last memory, and the result back: {cost}")
    return x.contiguous(memory_format=torch.channels_last)


def _megabytes(x: Tensor) -> str:
    return f"{x.numel() * x.element_size() / 1e6:.1f} MB"


def convolution_weights(backend: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Weights [o, c, k, k] as a backend's kernels read them: themselves, or contiguous copies."""
    if _backend.reads_channels_last_weights(backend):
        return [t if t.is_contiguous(memory_format=torch.channels_last) else t.contiguous() for t in tensors]
    return [t.contiguous() for t in tensors]


def triton_limit(x: Tensor) -> str | None:
    """Why the GPU's kernels cannot take an image of that size: they count its pixels in 32 bits, its elements in 64."""
    if torch.compiler.is_compiling():  # which has no size to compare
        return None
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return None if pixels < MOST_PIXELS else f"on a GPU, the kernels take fewer than 2^31 pixels, got {pixels}"


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """y, which a kernel left in channels-last memory, in the memory format of x.

    With one channel both formats are the same memory, which torch takes for contiguous.
    """
    is_last = is_rows_of_channels(x) and not (x.shape[1] == 1 and x.is_contiguous())
    return y if is_last else y.contiguous()


def norm_dtypes(x: Tensor) -> tuple[torch.dtype, ...]:
    """What the parameters and statistics of a batch norm over x may be."""
    return (x.dtype,) if x.dtype is wide_dtype(x.dtype) else (x.dtype, torch.float32)


def misfit_beside_norms(
    x: Tensor, others: Iterable[Wanted[Name]], norms: Iterable[Wanted[Name]]
) -> Wanted[Name] | None:
    """As `misfit`; all of the norms have one of the dtypes that theirs may be."""
    wrong, norms = misfit(x, others), list(norms)
    for dtype in norm_dtypes(x):
        unfit = misfit(x if dtype is x.dtype else x.new_empty(0, dtype=dtype), norms)
        if unfit is None:
            break
    return wrong or unfit


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Vectors of a batch norm as a kernel takes them: float32 and contiguous."""
    # Looking costs a third of a call that has nothing to do.
    return [t if t.dtype is torch.float32 and t.is_contiguous() else t.to(torch.float32).contiguous() for t in tensors]
