"""The JSON of a run, on disk after every entry, so that whatever ends the run leaves what was found."""

import json
import os
import re
import threading
from pathlib import Path


def slug(card: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


class Record:
    """What is known so far; methods may be called by several threads."""

    def __init__(self, path: Path, facts: dict):
        self.path, self._lock = path, threading.Lock()
        lists = ("stages", "tests", "sanitizers", "rows", "failures", "not_measured")
        self.data = {**facts, "rates": {}, **{name: [] for name in lists}}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, what: str, entry: dict) -> None:
        with self._lock:
            self.data[what].append(entry)
            self._write()

    def put(self, what: str, value: object) -> None:
        with self._lock:
            self.data[what] = value
            self._write()

    def row(self, row: dict) -> None:
        """Takes the place of the row of that name, measured beside fewer peers, or of why there is none."""
        with self._lock:
            for what in ("rows", "not_measured"):
                self.data[what] = [one for one in self.data[what] if one["name"] != row["name"]]
            self.data["rows"].append(row)
            self._write()

    def _write(self) -> None:
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(beside, self.path)


def complete(data: dict) -> bool:
    """Whether nothing that ran has failed."""
    found = [*data["tests"], *data["sanitizers"]]
    return not data["failures"] and all(one["verdict"] != "failed" for one in found)
