"""Which implementation runs: the one place that asks about devices, dtypes and what is built."""

import threading
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

try:
    from . import _C
except ImportError as error:
    _C = None
    _cpp_missing = f"built but not loadable ({error}); build it again for torch {torch.__version__}"
    if error.name == "fastnest._C" or "cannot import name" in str(error):
        _cpp_missing = "not built: installed without a C++ compiler; install g++ >= 11, then install fastnest again"

CPP_IS_BUILT = _C is not None


class Choice(NamedTuple):
    """What ran for one call of an op, and why nothing faster did ("" where nothing is)."""

    op: str
    backend: str
    dtype: torch.dtype
    reason: str


class _Thread(threading.local):
    forced: str | None = None
    log: list[Choice] | None = None


_thread = _Thread()
# What any thread forces or logs, in order: torch.compile guards on this global, and would not on a thread-local.
_asked: tuple[str, ...] = ()
_lock = threading.Lock()


def backends() -> dict[str, str]:
    """Every backend by name: "available", or why it cannot run here and what to do about it."""
    cpp = "available" if CPP_IS_BUILT else _cpp_missing
    gpu = "not built yet: this version has no kernels for GPUs; GPU tensors run the reference"
    return {"reference": "available", "cpp": cpp, "triton": gpu, "cuda": gpu}


@contextmanager
def _asking(name: str, value: Any):
    global _asked
    previous, what = getattr(_thread, name), f"{name} {value}"
    with _lock:
        _asked = (*_asked, what)
    setattr(_thread, name, value)
    try:
        yield value
    finally:
        setattr(_thread, name, previous)
        with _lock:
            at = _asked.index(what)
            _asked = _asked[:at] + _asked[at + 1 :]


def backend(name: str) -> AbstractContextManager:
    """`with fastnest.backend(name):` forces the backend of every op that this thread calls; the innermost one wins.

    Raises ValueError for an unknown name, RuntimeError for one that is not available here or cannot take a call.
    """
    states = backends()
    available = ", ".join(known for known, state in states.items() if state == "available")
    if name not in states:
        raise ValueError(f"backend: unknown backend {name!r}; known: {', '.join(states)}; available here: {available}")
    if states[name] != "available":
        raise RuntimeError(f"backend: {name} cannot run here: {states[name]}. Available here: {available}")
    return _asking("forced", name)


def logging_choices() -> AbstractContextManager:
    """Yields a list that grows by one Choice with every op that this thread calls inside the block."""
    return _asking("log", [])


@torch.compiler.assume_constant_result
def _forced() -> str | None:
    return _thread.forced


def _why_not_cpp(x: Tensor) -> str | None:
    if not CPP_IS_BUILT:
        return f"cpp is {_cpp_missing}"
    if not x.is_cpu:
        return f"no kernels for {x.device.type} tensors yet"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{x.dtype} is computed exactly, by the reference; the kernels take float32, bfloat16 and float16"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms and forward-mode derivatives go through the reference"
    return None


def why_no_kernel(x: Tensor, weight: Tensor) -> str | None:
    """Why a caller that has torch's way too should not call an op: no kernel takes x, or torch does something else."""
    if type(x) is not Tensor and is_traceable_wrapper_subclass(x):
        return f"{type(x).__name__} has operators of its own"
    if torch.is_autocast_enabled(x.device.type):
        if x.dtype is torch.float32:
            return "float32 under autocast, whose result torch leaves in float32"
    elif x.dtype != weight.dtype:
        return f"its input is {x.dtype} and its weights are {weight.dtype}"
    return _why_not_cpp(x)


def choose(op: str, x: Tensor) -> str:
    """The backend that runs `op` for x and other tensors of its dtype and device."""
    why_not = _why_not_cpp(x)
    automatic = "cpp" if why_not is None else "reference"
    if not _asked:
        return automatic
    forced = _forced()
    if forced == "cpp" and why_not is not None:
        raise RuntimeError(f"{op}: the forced backend cpp cannot take this call ({why_not}); reference can")
    if _thread.log is not None:
        reason = f"forced by fastnest.backend({forced!r})" if forced else why_not or ""
        _thread.log.append(Choice(op, forced or automatic, x.dtype, reason))
    return forced or automatic


def note(reason: str) -> None:
    """Adds to the reason of the op just chosen what its caller had to do for it (a copy, say)."""
    if _asked and _thread.log:
        last = _thread.log.pop()
        _thread.log.append(last._replace(reason="; ".join(filter(None, (last.reason, reason)))))
