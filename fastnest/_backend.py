"""Which implementation runs: the one place that asks about devices, dtypes and what is built."""

import threading
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

try:
    from . import _C
except ImportError as error:
    _C = None
    _cpp_missing = (
        "not built: fastnest was installed without a C++ compiler; install g++ >= 11, then `pip install` fastnest again"
        if error.name == "fastnest._C" or "cannot import name '_C'" in str(error)
        else f"built, but not loadable ({error}); build it again against this torch {torch.__version__}"
    )

_CPP_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


class Choice(NamedTuple):
    """What ran for one call of an op, and why not something faster ("" if nothing is)."""

    op: str
    backend: str
    dtype: torch.dtype
    reason: str


class _Thread(threading.local):
    forced: str | None = None
    log: list | None = None


_thread = _Thread()
# What any thread forces or logs, in order. torch.compile guards on this global, where it would not see a thread-local change.
_asked: tuple[str, ...] = ()
_lock = threading.Lock()


@torch.compiler.assume_constant_result
def _forced() -> str | None:
    return _thread.forced


def cpp_is_built() -> bool:
    return _C is not None


def backends() -> dict[str, str]:
    """Every backend by name: "available", or why it cannot run here and what to do about it."""
    return {
        "reference": "available",
        "cpp": "available" if _C is not None else _cpp_missing,
        "triton": "not built yet: this version has no Triton kernels; GPU tensors run the reference",
        "cuda": "not built yet: this version has no CUDA kernels; GPU tensors run the reference",
    }


@contextmanager
def _asking(what: str):
    global _asked
    with _lock:
        _asked = (*_asked, what)
    try:
        yield
    finally:
        with _lock:
            at = _asked.index(what)
            _asked = _asked[:at] + _asked[at + 1 :]


@contextmanager
def backend(name: str):
    """Forces the backend of every op called in this thread inside the `with` block; the innermost block wins.

    Raises ValueError for an unknown name and RuntimeError for a backend that is not available here; an op that the forced
    backend cannot take raises RuntimeError, naming what can run it.
    """
    states = backends()
    runnable = ", ".join(known for known, state in states.items() if state == "available")
    if name not in states:
        raise ValueError(f"backend: unknown backend {name!r}; known: {', '.join(states)}; available here: {runnable}")
    if states[name] != "available":
        raise RuntimeError(f"backend: {name} cannot run here: {states[name]}. Available here: {runnable}")
    previous, _thread.forced = _thread.forced, name
    try:
        with _asking(name):
            yield
    finally:
        _thread.forced = previous


@contextmanager
def logging_choices():
    """Yields a list that grows by one Choice with every op called in this thread inside the block."""
    previous, _thread.log = _thread.log, []
    try:
        with _asking("log"):
            yield _thread.log
    finally:
        _thread.log = previous


def _why_not_cpp(x: Tensor) -> str | None:
    if _C is None:
        return f"cpp is {_cpp_missing}"
    if not x.is_cpu:
        return f"no kernels for {x.device.type} tensors yet"
    if x.dtype not in _CPP_DTYPES:
        return f"{x.dtype} is computed exactly, by the reference; the kernels take float32, bfloat16 and float16"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms and forward-mode derivatives go through the reference"
    return None


def choose(op: str, x: Tensor) -> str:
    """The backend that runs `op` for x and other tensors of its dtype and device."""
    why_not = _why_not_cpp(x)
    automatic = "cpp" if why_not is None else "reference"
    if not _asked:
        return automatic
    forced = _forced()
    if forced == "cpp" and why_not is not None:
        raise RuntimeError(f"{op}: the forced backend cpp cannot take this call ({why_not}); reference can")
    name = forced or automatic
    if _thread.log is not None:
        reason = f"forced by fastnest.backend({name!r})" if forced else why_not or ""
        _thread.log.append(Choice(op, name, x.dtype, reason))
    return name


def note(reason: str) -> None:
    """Adds to the reason of the op just chosen, for what its caller had to do first (a copy, say)."""
    if _asked and _thread.log:
        last = _thread.log[-1]
        _thread.log[-1] = last._replace(reason="; ".join(filter(None, (last.reason, reason))))
