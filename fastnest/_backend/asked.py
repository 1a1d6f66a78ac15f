"""What threads ask of the chooser: to force a backend, and to log what it chose."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch


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


def anything() -> bool:
    """Whether any thread forces or logs."""
    return bool(_asked)


@contextmanager
def asking(name: str, value: Any) -> Iterator[Any]:
    """The calling thread has `forced` or `log` set to value inside the block."""
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


def logging_choices() -> AbstractContextManager[list[Choice]]:
    """Yields a list that grows by one Choice with every op that this thread calls inside the block."""
    return asking("log", [])


@torch.compiler.assume_constant_result
def forced() -> str | None:
    """The backend that this thread forces."""
    return _thread.forced


def logs() -> bool:
    """Whether this thread logs."""
    return bool(_asked) and _thread.log is not None


def log(choice: Choice) -> None:
    if _thread.log is not None:
        _thread.log.append(choice)


def note(reason: str) -> None:
    """Adds to the reason of the op just chosen what its caller had to do for it (a copy, say)."""
    if _asked and _thread.log:
        last = _thread.log.pop()
        _thread.log.append(last._replace(reason="; ".join(filter(None, (last.reason, reason)))))
