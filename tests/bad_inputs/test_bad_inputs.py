"""Random calls of everything public: the definition's answer or a clear error, no crash, hang or changed argument.

Each property runs in a process of its own, so that one that dies or hangs leaves the call that did it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bad_inputs.properties import PROPERTIES

TESTS = Path(__file__).parents[1]
CASES = len(PROPERTIES) * 50
NIGHTLY = len(PROPERTIES) * 1000


def run(name: str, cases: int, way: str, folder: Path, timeout: float) -> None:
    case = folder / "case"
    case.write_text("none yet")
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"CASE_FILE": str(case), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-W",
        "ignore",
        "-m",
        "bad_inputs.properties",
        name,
        str(cases),
        way,
    ]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{name} hangs in {case.read_text()}")
    assert done.returncode == 0, f"exit status {done.returncode} in {case.read_text()}\n{done.stdout}{done.stderr}"
    ran = int(re.search(rf"{name}: (\d+) cases", done.stdout)[1])
    assert ran >= cases // 2, f"only {ran} of {cases} cases: nothing else can be drawn"
    print(done.stdout)


@pytest.mark.parametrize("name", PROPERTIES)
def test_calls(name, tmp_path):
    run(name, CASES // len(PROPERTIES), "repeatable", tmp_path, timeout=300)


@pytest.mark.nightly
@pytest.mark.parametrize("name", PROPERTIES)
def test_many_calls(name, tmp_path):
    run(name, NIGHTLY // len(PROPERTIES), "random", tmp_path, timeout=3600)


def test_as_many_as_promised():
    assert CASES >= 500
    assert NIGHTLY >= 10_000
