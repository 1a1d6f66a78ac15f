"""The JSON of a run, on disk after every entry, so that whatever ends the run leaves what was found."""

import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

# The lists, and what tells entries of one apart: a later entry takes the place of an earlier one of the same.
KEYS = {
    "runs": (),
    "stages": (),
    "tests": ("op", "backend", "dtype", "check", "part"),
    "sanitizers": ("op", "backend", "dtype", "tool"),
    "compiled": ("name", "peer"),
    "rows": ("name",),
    "profiles": ("name",),
    "convolutions": ("name",),
    "failures": ("stage", "name"),
    "not_measured": ("stage", "name"),
}
SAME = ("card", "capability", "torch", "triton", "python", "fastnest", "commit")  # of runs that one file may hold
MOST_TOLD = 4000  # characters of what went wrong in an entry


def slug(card: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def continues(path: Path, facts: dict) -> dict | None:
    """What path holds, if it is of the same card, versions and commit: then parts of a run add up to one result."""
    if not path.exists() or not facts["commit"] or "+changes" in facts["commit"]:
        return None
    data = json.loads(path.read_text())
    return data if all(data.get(name) == facts[name] for name in SAME) else None


def _again(entry: dict, stages: Sequence[str], only: str) -> bool:
    """Whether the stages will find out again about an entry: one of a case, or of a whole stage, named by it."""
    return entry["stage"] in stages and (entry["name"] == entry["stage"] or re.search(only, entry["name"]) is not None)


class Record:
    """What is known so far; methods may be called by several threads."""

    def __init__(self, path: Path, facts: dict, before: dict | None = None, stages: Sequence[str] = (), only: str = ""):
        """Begins anew, or goes on from what `continues` found: what the stages will find out again is taken out.

        Nothing is written before there is something to write.
        """
        self.path, self._lock = path, threading.Lock()
        facts, limit = {key: value for key, value in facts.items() if key != "limit_s"}, facts.get("limit_s")
        self.data = {**facts, "rates": {}, **{name: [] for name in KEYS}} | (before or {})
        for name in ("failures", "not_measured"):
            self.data[name] = [one for one in self.data[name] if not _again(one, stages, only)]
        self.data["runs"].append({"date": facts["date"], "limit_s": limit, "stages": list(stages)})

    def add(self, what: str, entry: dict) -> None:
        """Takes the place of an entry of the same. But what was found before stays where there was no time now."""
        if "what" in entry:
            entry = {**entry, "what": str(entry["what"])[:MOST_TOLD]}
        with self._lock:
            before = self._take_out(what, entry, KEYS[what])
            if entry.get("verdict") == "not run" and before:
                entry = before[-1]
            self.data[what].append(entry)
            self._write()

    def put(self, what: str, value: object) -> None:
        with self._lock:
            self.data[what] = value
            self._write()

    def _take_out(self, what: str, entry: dict, keys: Sequence[str]) -> list[dict]:
        """Those that agree in the keys."""
        same = [one for one in self.data[what] if keys and all(one[key] == entry[key] for key in keys)]
        self.data[what] = [one for one in self.data[what] if one not in same]
        return same

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(beside, self.path)


def complete(data: dict) -> bool:
    """Whether nothing that ran has failed."""
    found = [*data["tests"], *data["sanitizers"]]
    return not data["failures"] and all(one["verdict"] != "failed" for one in found)
