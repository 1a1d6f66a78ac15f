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
# torch.compile moves the Triton cache of its process, unless it is named. One place for all, or the process that times
# would compile again what another has compiled.
TRITON_CACHE = {"TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR") or str(Path.home() / ".triton" / "cache")}
LEAST = 10  # seconds that a job needs to be worth beginning


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
    listed: dict = field(default_factory=dict)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="fastnest-gpu-")))

    def worker(self, words: Sequence[object], **environment: str) -> Worker:
        environment = {**TRITON_CACHE, **self.environment, **environment}
        return self.begin([sys.executable, *words], folder=self.folder, environment=environment)

    def ask(self, worker: Worker, job: dict, until: float) -> dict:
        """What a job finds that has no case; a failure if that is nothing."""
        found: dict = {}
        ended = worker.do(job, found.update, until=until)
        if not found:
            self.record.add("failures", {"stage": job["do"], "name": job["do"], "what": str(ended)})
        return found

    def cases(self, until: float) -> dict:
        """What a worker lists (work.py), asked for once: the cases and their peers that are compiled."""
        if not self.listed:
            worker = self.worker(WORK)
            self.listed = self.ask(worker, {"do": "list", "only": self.only, "peers": self.peers}, until)
            worker.close()
        return {"cases": {}, "compiled": []} | self.listed

    def wants(self, *words: str) -> bool:
        return re.search(self.only, " ".join(words)) is not None
