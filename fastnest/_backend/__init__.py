"""Which implementation runs: the one part that asks about devices, dtypes, and what is built and installed."""

from torch.cuda import device_of  # the block's kernels are launched on the GPU of a tensor

from .asked import Choice, asking, logging_choices, note
from .choice import backend, choose, reads_channels_last_weights, why_no_kernel
from .installed import _C, CPP_IS_BUILT, TRITON_IS_INSTALLED, Room, backends, registered

__all__ = [
    "CPP_IS_BUILT",
    "TRITON_IS_INSTALLED",
    "_C",
    "Choice",
    "Room",
    "asking",
    "backend",
    "backends",
    "choose",
    "device_of",
    "logging_choices",
    "note",
    "reads_channels_last_weights",
    "registered",
    "why_no_kernel",
]
