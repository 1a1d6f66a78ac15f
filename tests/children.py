"""Python in processes of its own, for what no test can do to the one that it runs in."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
BEGIN = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import faulthandler; faulthandler.enable()\n"


def start(code: str, *words: object) -> subprocess.Popen:
    """A process that runs code with words as its arguments, and may import what tests may."""
    command = [sys.executable, "-c", BEGIN + code, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen, timeout: float = 240) -> list[str]:
    """What they printed, once all have ended well."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = [
        f"exit status {p.returncode}:\n{error}" for p, (_, error) in zip(processes, said, strict=True) if p.returncode
    ]
    assert not failed, "\n".join(failed)
    return [out for out, _ in said]


# Caches of torch may hold a process group that was destroyed. Its gloo threads live on, and now and then abort a Python
# that ends ("terminate called without an active exception").
WITHOUT_FINALIZATION = """
import os
import sys
sys.stdout.flush()
os._exit(0)
"""


def run_both(code: str, *words: object, timeout: float = 240) -> list[str]:
    """Two processes that wait for one another, each with its rank as the last word."""
    return finish(*(start(code + WITHOUT_FINALIZATION, *words, rank) for rank in (0, 1)), timeout=timeout)


def run(code: str, *words: object, timeout: float = 240) -> str:
    return finish(start(code, *words), timeout=timeout)[0]
