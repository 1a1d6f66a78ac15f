"""The JSON of a run, on disk after every entry, so that whatever ends the run leaves what was found."""

import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

# The lists, and what tells entries of one apart: a later entry takes the place of an earlier one of the same.
KEYS = {
    "stages": (),
    "tests": ("op", "backend", "dtype", "check", "part"),
    "sanitizers": ("op", "backend", "dtype", "tool"),
    "compiled": ("name", "peer"),
    "rows": ("name",),
    "profiles": ("name",),
    "failures": ("stage", "name"),
    "not_measured": ("stage", "name"),
}
SAME = ("card", "capability", "torch", "triton", "python", "fastnest", "commit")  # of runs that one file may hold
LONGEST = 4000  # characters of what went wrong in an entry


def slug(card: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def continues(path: Path, facts: dict) -> dict | None:
    """What path holds, if it is of the same card, versions and commit: then parts of a run add up to one result."""
    if not path.exists() or not facts["commit"] or "+changes" in facts["commit"]:
        return None
    data = json.loads(path.read_text())
    return data if all(data.get(name) == facts[name] for name in SAME) else None


class Record:
    """What is known so far; methods may be called by several threads."""

    def __init__(self, path: Path, facts: dict, before: dict | None = None, stages: Sequence[str] = (), only: str = ""):
        """Begins anew, or goes on from what `continues` found: what the stages will find out again is taken out.

        Nothing is written before there is something to write.
        """
        self.path, self._lock = path, threading.Lock()
        self.data = {**facts, "rates": {}, **{name: [] for name in KEYS}} | (before or {})
        for name in ("failures", "not_measured"):
            self.data[name] = [
                one for one in self.data[name] if not (one["stage"] in stages and re.search(only, one["name"]))
            ]

    def add(self, what: str, entry: dict) -> None:
        if "what" in entry:
            entry = {**entry, "what": str(entry["what"])[:LONGEST]}
        with self._lock:
            self._leave_out(what, entry, KEYS[what])
            if what == "rows":
                self._leave_out("not_measured", entry, KEYS["rows"])
            self.data[what].append(entry)
            self._write()

    def put(self, what: str, value: object) -> None:
        with self._lock:
            self.data[what] = value
            self._write()

    def _leave_out(self, what: str, entry: dict, keys: Sequence[str]) -> None:
        if keys:
            self.data[what] = [one for one in self.data[what] if any(one[key] != entry[key] for key in keys)]

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(beside, self.path)


def complete(data: dict) -> bool:
    """Whether nothing that ran has failed."""
    found = [*data["tests"], *data["sanitizers"]]
    return not data["failures"] and all(one["verdict"] != "failed" for one in found)
