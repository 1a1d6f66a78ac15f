"""The choice: by device, dtype, what is built and installed, and what a thread asks for."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import asked
from .asked import Choice
from .installed import (
    CPP_IS_BUILT,
    CPP_MISSING,
    TRITON_IS_INTERPRETED,
    Room,
    backends,
    registered,
    room_on_gpu,
    why_no_cuda,
    why_no_triton,
)
from .measured import why_cuda

WRITTEN_IN = {"triton": "Triton", "cuda": "CUDA C++"}
# Why kernels cannot take a call for its sizes; those in CUDA C++, given the room that they have on the GPU.
CudaLimit = Callable[[Room], str | None]
Limits = dict[str, str | CudaLimit | None]


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


def packs_weights(name: str) -> bool:
    """Whether a backend's kernels read convolution weights from a packed copy, which serves until a weight changes."""
    return name == "cuda"


def _why_not(name: str, op: str | None, x: Tensor, limits: Limits) -> str | None:
    """Why kernels (cpp, triton or cuda) cannot take a call."""
    missing = _why_not_here(name, op, x)
    if missing is not None:
        return missing
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{x.dtype} is computed exactly, by the reference; the kernels take float32, bfloat16 and float16"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms and forward-mode derivatives go through the reference"
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # public, but not by torch's own list
        return "torch.jit.trace records torch's own operators only"
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        return "ONNX knows torch's own operators only"
    limit = limits.get(name)
    if limit is None or isinstance(limit, str):
        return limit
    room: Room = room_on_gpu(x.get_device())
    return limit(room)


def _why_not_here(name: str, op: str | None, x: Tensor) -> str | None:
    """Why kernels cannot run where x is."""
    if name == "cpp":
        if not CPP_IS_BUILT:
            return f"cpp is {CPP_MISSING}"
        return None if x.is_cpu else f"no kernels for {x.device.type} tensors yet"
    if x.is_cuda:
        reason: str | None = why_no_triton(x.get_device()) if name == "triton" else why_no_cuda(x.get_device(), op)
        return reason
    if name == "triton" and x.is_cpu and TRITON_IS_INTERPRETED:
        return None
    return f"no kernels in {WRITTEN_IN[name]} for {x.device.type} tensors"


def why_no_kernel(x: Tensor, weight: Tensor) -> str | None:
    """Why a caller that has torch's way too should not call an op: no kernel takes x, or torch does something else."""
    if type(x) is not Tensor and is_traceable_wrapper_subclass(x):
        return f"{type(x).__name__} has operators of its own"
    why_not = _why_not("triton" if x.is_cuda else "cpp", None, x, {})
    if why_not is not None:
        return why_not
    # Behind the device, because torch raises where a device knows no autocast (meta).
    if torch.is_autocast_enabled(x.device.type):
        if x.dtype is torch.float32:
            return "float32 under autocast, whose result torch leaves in float32"
    elif x.dtype != weight.dtype:
        return f"its input is {x.dtype} and its weights are {weight.dtype}"
    return None


def choose(
    op: str, x: Tensor, triton_limit: str | None = None, cuda_limit: CudaLimit | None = None, **sizes: int
) -> str:
    """The backend that runs `op` for x and other tensors of its dtype and device.

    triton_limit, cuda_limit: why its kernels, where there are some, cannot take this call for its sizes. sizes: by
    which it was measured whether Triton or CUDA C++ is faster.
    """
    limits = {"triton": triton_limit, "cuda": cuda_limit}
    automatic, reason = _automatic(op, x, limits, sizes)
    if not asked.anything():
        return automatic
    forced = asked.forced()
    if forced not in (None, "reference"):
        why_not = _why_not(forced, op, x, limits)
        if why_not is not None:
            raise RuntimeError(f"{op}: the forced backend {forced} cannot take this call ({why_not}); reference can")
    if forced:
        reason = f"forced by fastnest.backend({forced!r})"
    asked.log(Choice(op, forced or automatic, x.dtype, reason))
    return forced or automatic


def _automatic(op: str, x: Tensor, limits: Limits, sizes: dict[str, int]) -> tuple[str, str]:
    """The backend that nobody forces, and why: why nothing faster, or which of two is."""
    if not x.is_cuda:
        why_not = _why_not("cpp", op, x, limits)
        return ("cpp", "") if why_not is None else ("reference", why_not)
    no_triton = _why_not("triton", op, x, limits)
    if "cuda" not in registered(f"{op}_forward"):
        return ("triton", "") if no_triton is None else ("reference", no_triton)
    no_cuda = _why_not("cuda", op, x, limits)
    if no_triton is None and no_cuda is None:
        measured = why_cuda(op, x.dtype, sizes)
        return ("cuda", measured) if measured else ("triton", "triton: no measurement prefers cuda")
    if no_triton is None:
        return "triton", f"cuda: {no_cuda}"
    if no_cuda is None:
        return "cuda", f"triton: {no_triton}"
    return "reference", no_triton if no_triton == no_cuda else f"triton: {no_triton}; cuda: {no_cuda}"
