"""The choice: by device, dtype, what is built and installed, and what a thread asks for."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import asked
from .asked import Choice
from .installed import CPP_IS_BUILT, CPP_MISSING, TRITON_IS_INTERPRETED, backends, why_no_gpu


def backend(name: str) -> AbstractContextManager[Any]:
    """`with fastnest.backend(name):` forces the backend of every op that this thread calls; the innermost one wins.

    Raises ValueError for an unknown name, RuntimeError for one that is not available here or cannot take a call.
    """
    states = backends()
    available = ", ".join(known for known, state in states.items() if state == "available")
    if name not in states:
        raise ValueError(f"backend: unknown backend {name!r}; known: {', '.join(states)}; available here: {available}")
    if states[name] != "available":
        raise RuntimeError(f"backend: {name} cannot run here: {states[name]}. Available here: {available}")
    return asked.asking("forced", name)


def reads_channels_last_weights(name: str) -> bool:
    """Whether a backend's kernels read convolution weights in channels-last memory too, or contiguous ones only."""
    return name == "triton"


def _why_not(name: str, x: Tensor, triton_limit: str | None) -> str | None:
    """Why kernels (cpp or triton) cannot take a call."""
    if name == "triton":
        missing = _why_not_on_gpu(x)
    else:
        missing = f"cpp is {CPP_MISSING}" if not CPP_IS_BUILT else _why_not_on_cpu(x)
    if missing is not None:
        return missing
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{x.dtype} is computed exactly, by the reference; the kernels take float32, bfloat16 and float16"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms and forward-mode derivatives go through the reference"
    return triton_limit if name == "triton" else None


def _why_not_on_cpu(x: Tensor) -> str | None:
    return None if x.is_cpu else f"no kernels for {x.device.type} tensors yet"


def _why_not_on_gpu(x: Tensor) -> str | None:
    if x.is_cuda:
        reason: str | None = why_no_gpu(x.get_device())
        return reason
    return None if x.is_cpu and TRITON_IS_INTERPRETED else f"no kernels in Triton for {x.device.type} tensors"


def why_no_kernel(x: Tensor, weight: Tensor) -> str | None:
    """Why a caller that has torch's way too should not call an op: no kernel takes x, or torch does something else."""
    if type(x) is not Tensor and is_traceable_wrapper_subclass(x):
        return f"{type(x).__name__} has operators of its own"
    if torch.is_autocast_enabled(x.device.type):
        if x.dtype is torch.float32:
            return "float32 under autocast, whose result torch leaves in float32"
    elif x.dtype != weight.dtype:
        return f"its input is {x.dtype} and its weights are {weight.dtype}"
    return _why_not(_by_device(x), x, None)


def _by_device(x: Tensor) -> str:
    return "triton" if x.is_cuda else "cpp"


def choose(op: str, x: Tensor, triton_limit: str | None = None) -> str:
    """The backend that runs `op` for x and other tensors of its dtype and device.

    triton_limit: why Triton's kernels, where there are some, cannot take this call for its sizes.
    """
    by_device = _by_device(x)
    why_not = _why_not(by_device, x, triton_limit)
    automatic = by_device if why_not is None else "reference"
    if not asked.anything():
        return automatic
    forced = asked.forced()
    if forced in ("cpp", "triton"):
        why_not = _why_not(forced, x, triton_limit)
        if why_not is not None:
            raise RuntimeError(f"{op}: the forced backend {forced} cannot take this call ({why_not}); reference can")
    reason = f"forced by fastnest.backend({forced!r})" if forced else why_not or ""
    asked.log(Choice(op, forced or automatic, x.dtype, reason))
    return forced or automatic
