"""docs/promises.md: every test that it names exists, and every op, dtype and backend has its row."""

import itertools
import re
import subprocess
import sys

import pytest
from promises.table import MACHINE, ROOT, proves, rows, said

from fastnest.testing import OPS

TEXT = (ROOT / "docs/promises.md").read_text()
ROWS = rows(TEXT)


def test_every_line_of_the_tables_is_a_row():
    lines = [line for line in TEXT.splitlines() if line.startswith("| ") and not re.match(r"\| (promise|--)", line)]
    assert len(lines) == len(ROWS) > 60


def test_every_test_exists():
    files = sorted({row.test.partition("::")[0] for row in ROWS})
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if "::" in line]
    absent = [row.test for row in ROWS if not any(proves(row, test) for test in found)]
    assert not absent, f"{absent}\n{done.stdout[-2000:]}{done.stderr}"


EVERYWHERE = itertools.product(OPS, ("cpp", "triton", "reference"))
IN_CUDA = [(op, "cuda") for op in ("residual_chain", "dense_chain", "dense_block2d")]
DTYPES = {"reference": ["float64"], "dense_block2d cuda": ["tf32", "bfloat16", "float16"]}


@pytest.mark.parametrize(("op", "backend"), [*EVERYWHERE, *IN_CUDA])
def test_every_op_has_a_bound(op, backend):
    dtypes = DTYPES.get(backend) or DTYPES.get(f"{op} {backend}", ["float32", "bfloat16", "float16"])
    for dtype in dtypes:
        assert any(row.promise == f"error bound: {op} {dtype} {backend}" for row in ROWS), (op, dtype, backend)


def test_results_are_counted():
    row = ROWS[0]
    found = {row.test: "passed", f"{row.test}[more]": "failed", "another::test": "failed"}
    assert said(row, found) == "1 failed, 1 passed"
    assert said(row, {}) is None


def report_of(test: str, outcome: str) -> str:
    """What pytest --junitxml writes of one test."""
    at, _, name = test.partition(".py::")
    case = f'<testcase classname="{at.replace("/", ".")}" name="{name}">{outcome}</testcase>'
    return f"<testsuites><testsuite>{case}</testsuite></testsuites>"


def test_results_of_runs_are_filled_in(tmp_path):
    """The rows that were run, and no other; and on which machine, of which commit and when."""
    page, ordinary, nightly = (tmp_path / name for name in ("promises.md", "report.xml", "nightly.xml"))
    page.write_text(TEXT)
    first, second, *others = ROWS
    ordinary.write_text(report_of(first.test, "<failure/>"))
    nightly.write_text(report_of(second.test, "<skipped/>"))
    command = [sys.executable, "tests/promises/table.py", page, "--report", ordinary, "--report", nightly]
    assert subprocess.run(command, cwd=ROOT).returncode == 1
    expected = [first._replace(result="1 failed"), second._replace(result="1 skipped"), *others]
    assert rows(page.read_text()) == expected
    (ran_on,) = MACHINE.findall(page.read_text())
    assert re.search(r" cores, .*torch .*; commit ([0-9a-f]{40}(\+changes)?|unknown), \d{4}-\d\d-\d\d\.$", ran_on)
