"""Which implementation runs: the one part that asks about devices, dtypes, and what is built and installed."""

from torch.cuda import device_of  # the block's kernels are launched on the GPU of a tensor

from .asked import Choice, asking, logging_choices, note
from .choice import backend, choose, packs_weights, reads_channels_last_weights, why_no_kernel
from .installed import _C, CPP_IS_BUILT, TRITON_IS_INSTALLED, Room, backends, registered
from .state import allows_tf32, keeps, situation, stream_of

__all__ = [
    "CPP_IS_BUILT",
    "TRITON_IS_INSTALLED",
    "_C",
    "Choice",
    "Room",
    "allows_tf32",
    "asking",
    "backend",
    "backends",
    "choose",
    "device_of",
    "keeps",
    "logging_choices",
    "note",
    "packs_weights",
    "reads_channels_last_weights",
    "registered",
    "situation",
    "stream_of",
    "why_no_kernel",
]
