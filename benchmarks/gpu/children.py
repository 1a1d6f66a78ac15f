"""Processes that say what they found in lines of JSON, and are ended when their time is up."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

TOLD = 4000  # characters of what a process said last
READY, DONE = {"ready": True}, {"done": True}  # what a worker says before its first job, and behind every one


_running: set[subprocess.Popen] = set()


class Ended(NamedTuple):
    """How a process ended: its exit status, None where its time was up; and the end of all it said beside JSON."""

    status: int | None
    said: str

    def __str__(self) -> str:
        how = "its time was up" if self.status is None else f"ended with {self.status}"
        return f"{how}; {self.said[-1000:].strip()}" if self.said.strip() else how


def listen(
    words: Sequence[object],
    on_line: Callable[[dict], None],
    *,
    until: float,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Runs words in folder until then (`time.time`); every line of its stdout that is a JSON object goes to on_line."""
    process = _begin(words, folder, environment, subprocess.DEVNULL)
    try:
        return _hear(process, on_line, until) or Ended(process.wait(), "")
    finally:
        _end(process)


class Worker:
    """A process that does one job after another: a line of JSON to its stdin, lines of JSON from its stdout, then DONE.

    Starting Python, torch and a GPU takes seconds, which jobs share. The process begins with the first job, and begins
    again with the job after the one that it died of, or whose time was up.
    """

    def __init__(self, words: Sequence[object], *, folder: Path, environment: Mapping[str, str] | None = None):
        self._words, self._folder, self._environment = words, folder, environment
        self._process: subprocess.Popen | None = None
        self.ready = False  # whether it has ever begun as it should

    def do(self, job: dict, on_line: Callable[[dict], None], *, until: float) -> Ended | None:
        """One job, of which every line goes to on_line; None once it is done, or how the process ended."""
        if self._process is None:
            self._process = _begin(self._words, self._folder, self._environment, subprocess.PIPE)
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # why it died stands in what it said

        def heard(entry: dict) -> None:
            if entry == READY:
                self.ready = True
            else:
                on_line(entry)

        ended = _hear(self._process, heard, until)
        if ended is not None:
            self.close()
        return ended

    def close(self) -> None:
        if self._process is not None:
            _end(self._process)
            self._process = None


def serve(do: Callable[[dict], Iterable[dict]]) -> None:
    """The other side of a Worker: the jobs that stdin has, until it ends."""
    _tell(READY)
    for line in sys.stdin:
        for entry in do(json.loads(line)):
            _tell(entry)
        _tell(DONE)


def _tell(entry: dict) -> None:
    print(f"\n{json.dumps(entry)}", flush=True)  # on a line of its own, whatever a library has begun


Do = Callable[[Worker, dict], None]


def share(lanes: Sequence[tuple[Sequence[dict], Sequence[Worker]]], do: Do) -> None:
    """Every job of a lane in its turn, by the first of the lane's workers that is free; then closes the workers.

    If the caller's thread is interrupted, all processes end and no job begins.
    """
    stopped, lock = threading.Event(), threading.Lock()

    def take(waiting: Iterator[dict], worker: Worker) -> None:
        try:
            while not stopped.is_set():
                with lock:
                    job = next(waiting, None)
                if job is None:
                    return
                do(worker, job)
        finally:
            worker.close()

    with ThreadPoolExecutor(max(1, sum(len(workers) for _, workers in lanes))) as pool:
        try:
            taking = []
            for jobs, workers in lanes:
                waiting = iter(jobs)
                taking += [pool.submit(take, waiting, worker) for worker in workers]
            for one in taking:
                one.result()
        except BaseException:
            stopped.set()
            end_all()
            raise


def end_all() -> None:
    """Ends every process that was begun here."""
    for process in list(_running):
        _kill(process)


def _begin(
    words: Sequence[object], folder: Path, environment: Mapping[str, str] | None, stdin: int
) -> subprocess.Popen:
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it starts ends with it
    )
    _running.add(process)
    return process


def _hear(process: subprocess.Popen, on_line: Callable[[dict], None], until: float) -> Ended | None:
    """Lines of JSON until the process says that it is done (None) or ends."""
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(max(0.0, until - time.time()), end)
    timer.start()
    said = ""
    try:
        for line in process.stdout:
            entry = _entry(line)
            if entry is None:
                said = (said + line)[-TOLD:] if line.strip() else said
            elif entry == DONE:
                return None
            else:
                on_line(entry)
        status = process.wait()
    finally:
        timer.cancel()
    return Ended(None if late.is_set() else status, said)


def _end(process: subprocess.Popen) -> None:
    _kill(process)
    process.wait()
    _running.discard(process)
    process.stdout.close()
    if process.stdin is not None:
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass


def _kill(process: subprocess.Popen) -> None:
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
