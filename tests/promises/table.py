"""docs/promises.md as rows, and its last column: python tests/promises/table.py docs/promises.md runs what it names.

Words behind the path choose tests whose names have one of them; --report FILE runs none, and takes the results from
what pytest --junitxml=FILE wrote; it can be given again, for the nightly tests. Rows of which nothing was run stay as
they are.
"""

import argparse
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from fastnest import _backend
from fastnest.benchmarks.machine import commit, facts

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| (?P<promise>[^|]+) \| `(?P<test>[^`|]+)` \| (?P<scope>[^|]*) \| (?P<result>[^|]*) \|$", re.MULTILINE
)
MACHINE = re.compile(r"(?<=<!-- machine -->\n).*?(?=\n<!-- end -->)", re.DOTALL)


class Row(NamedTuple):
    """A promise and the test that proves it: path::name, or path::name[parameters]."""

    promise: str
    test: str
    scope: str
    result: str


def rows(text: str) -> list[Row]:
    return [Row(*(value.strip() for value in match.groups())) for match in ROW.finditer(text)]


def proves(row: Row, test: str) -> bool:
    """Whether a test that pytest knows by this name is the row's, or one of its parameters'."""
    return test == row.test or test.startswith(f"{row.test}[")


def machine() -> str:
    """Where the tests ran, of which commit and when."""
    known, sets = facts(), ", ".join(_backend._C.instruction_sets()) if _backend.CPP_IS_BUILT else "no kernels built"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "onnxruntime", "hypothesis"))
    return (
        f"{known['cpu']}, {known['cores']} cores, kernels {sets}; Python {platform.python_version()}, {packages}; "
        f"commit {commit() or 'unknown'}, {datetime.now(timezone.utc).date()}."
    )


def outcomes(*reports: Path) -> dict[str, str]:
    """passed, failed or skipped, by the name that pytest gives a test."""
    found = {}
    for case in chain.from_iterable(ElementTree.parse(report).iter("testcase") for report in reports):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}"] = outcome
    return found


def said(row: Row, found: dict[str, str]) -> str | None:
    """The counts of a row's outcomes, None if none of its tests was run."""
    counts = Counter(outcome for test, outcome in found.items() if proves(row, test))
    return ", ".join(f"{counts[kind]} {kind}" for kind in ("failed", "passed", "skipped") if counts[kind]) or None


def run(names: list[str]) -> dict[str, str]:
    """The outcomes of the tests of these names."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "", f"--junitxml={report}", *names], cwd=ROOT)
        return outcomes(report)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--report", type=Path, action="append")
    options = parser.parse_args()
    # The commit is that of the tests when they start, which may take an hour, and not of what is edited meanwhile.
    text, ran_on = options.path.read_text(), machine()
    chosen = [row for row in rows(text) if any(word in row.test for word in options.words or [""])]
    found = outcomes(*options.report) if options.report else run(sorted({row.test for row in chosen}))

    def filled(match: re.Match) -> str:
        row = Row(*(value.strip() for value in match.groups()))
        result = said(row, found) if row in chosen else None
        return f"| {row.promise} | `{row.test}` | {row.scope} | {result or row.result} |"

    options.path.write_text(MACHINE.sub(lambda _: ran_on, ROW.sub(filled, text)))
    return int(not found or "failed" in found.values())


if __name__ == "__main__":
    sys.exit(main())
