"""A run of `make gpu`, as its stages share it."""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .children import Ended, Worker, listen
from .record import Record

WORK = ("-m", "fastnest.benchmarks.gpu.work")
LEAST = 10  # seconds that a job needs to be worth beginning


def caches() -> dict[str, str]:
    """Where all processes keep what they compile. Unless named, torch.compile moves its process's Triton cache."""
    places = {
        "TRITON_CACHE_DIR": Path.home() / ".triton" / "cache",
        "TORCHINDUCTOR_CACHE_DIR": Path(tempfile.gettempdir()) / "fastnest-gpu-inductor",
    }
    return {name: os.environ.get(name) or str(path) for name, path in places.items()}


def say(text: str) -> None:
    print(f"gpu: {text}", file=sys.stderr, flush=True)


@dataclass
class Session:
    """A run: where it writes, what it is asked for, and how it starts what it runs."""

    record: Record
    workers: int = 1
    only: str = ""  # a regular expression: cases and checks in whose name it is found
    peers: Sequence[str] | None = None  # that are asked for; None: those that there is time for
    environment: dict[str, str] = field(default_factory=dict)
    listen: Callable[..., Ended] = listen
    begin: Callable[..., Worker] = Worker
    caches: dict[str, str] = field(default_factory=caches)
    listed: dict = field(default_factory=dict)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="fastnest-gpu-")))

    def worker(self, words: Sequence[object], **environment: str) -> Worker:
        environment = {**self.caches, **self.environment, **environment}
        return self.begin([sys.executable, *words], folder=self.folder, environment=environment)

    def ask(self, stage: str, worker: Worker, job: dict, until: float) -> dict:
        """What a job finds that has no case; a failure of the stage if that is nothing."""
        found: dict = {}
        ended = worker.do(job, found.update, until=until)
        if not found:
            self.record.add("failures", {"stage": stage, "name": stage, "what": f"{job['do']}: {ended}"})
        return found

    def cases(self, stage: str, until: float) -> dict:
        """What a worker lists (work.py), asked for once: the cases and their peers that are compiled."""
        if not self.listed:
            worker = self.worker(WORK)
            self.listed = self.ask(stage, worker, {"do": "list", "only": self.only, "peers": self.peers}, until)
            worker.close()
        return {"cases": {}, "compiled": [], "convolutions": [], "no_convolutions": ""} | self.listed

    def wants(self, *words: str) -> bool:
        return re.search(self.only, " ".join(words)) is not None
