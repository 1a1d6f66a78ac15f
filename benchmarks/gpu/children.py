"""Processes that say what they found in lines of JSON, and are ended when their time is up."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

TOLD = 4000  # characters of what a process said last


class Ended(NamedTuple):
    """How a process ended: its exit status, None where its time was up; and the end of all it said beside JSON."""

    status: int | None
    said: str

    def __str__(self) -> str:
        how = "its time was up" if self.status is None else f"ended with {self.status}"
        return f"{how}; {self.said[-1000:].strip()}" if self.said.strip() else how


def listen(
    words: Sequence[str],
    on_line: Callable[[dict], None],
    *,
    until: float,
    folder: Path,
    environment: dict | None = None,
) -> Ended:
    """Runs words in folder until then (`time.time`); every line of its stdout that is a JSON object goes to on_line."""
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it starts ends with it
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        _end(process)

    timer = threading.Timer(max(0.0, until - time.time()), end)
    timer.start()
    said = ""
    try:
        for line in process.stdout:
            entry = _entry(line)
            if entry is None:
                said = (said + line)[-TOLD:]
            else:
                on_line(entry)
        status = process.wait()
    finally:
        timer.cancel()
        _end(process)
        process.stdout.close()
    return Ended(None if late.is_set() else status, said)


def _end(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _entry(line: str) -> dict | None:
    if not line.startswith("{"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None
