"""Whether something fits into this machine's memory, asked before it is begun."""

import os
from pathlib import Path

LIMIT_OF_GROUP = Path("/sys/fs/cgroup/memory.max")  # of a container; a number or "max"
UNKNOWN = 2**40  # where the system does not say


def memory() -> int:
    """Bytes of the machine's memory, or of the container's where that is less."""
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):  # not on this system
        limits = [UNKNOWN]
    try:
        limits.append(int(LIMIT_OF_GROUP.read_text()))
    except (OSError, ValueError):
        pass
    return min(limit for limit in limits if limit > 0)


def check_memory(what: str, needed: int) -> None:
    """Raises ValueError where `what` (such as "--width 10") needs more bytes than there are."""
    there = memory()
    if needed > there:
        raise ValueError(
            f"{what} would need {_size(needed)} of memory, and this machine has {_size(there).removeprefix('about ')}"
        )


def _size(number: int) -> str:
    return f"about {number / 2**30:,.1f} GiB" if number < 2**50 else "more than a million GiB"
