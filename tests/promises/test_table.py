"""docs/promises.md: every test that it names exists, and every op, dtype and backend has its row."""

import itertools
import re
import subprocess
import sys

import on_host
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
IN_CUDA = itertools.product(on_host.ops(), ("cuda",))


@pytest.mark.parametrize(("op", "backend"), [*EVERYWHERE, *IN_CUDA])
def test_every_op_has_a_bound(op, backend):
    dtypes = {"reference": ["float64"]}.get(backend, ["float32", "bfloat16", "float16"])
    for dtype in dtypes:
        assert any(row.promise == f"error bound: {op} {dtype} {backend}" for row in ROWS), (op, dtype, backend)


def test_results_are_counted():
    row = ROWS[0]
    found = {row.test: "passed", f"{row.test}[more]": "failed", "another::test": "failed"}
    assert said(row, found) == "1 failed, 1 passed"
    assert said(row, {}) is None


def test_results_of_a_run_are_filled_in(tmp_path):
    """The row that was run, and no other; and on which machine, of which commit and when."""
    page, report = tmp_path / "promises.md", tmp_path / "report.xml"
    page.write_text(TEXT)
    at, _, name = ROWS[0].test.removesuffix(".py").partition(".py::")
    case = f'<testcase classname="{at.replace("/", ".")}" name="{name}"><failure/></testcase>'
    report.write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>")
    command = [sys.executable, "tests/promises/table.py", page, "--report", report]
    assert subprocess.run(command, cwd=ROOT).returncode == 1
    assert rows(page.read_text()) == [ROWS[0]._replace(result="1 failed"), *ROWS[1:]]
    (ran_on,) = MACHINE.findall(page.read_text())
    assert re.search(r" cores, .*torch .*; commit ([0-9a-f]{40}(\+changes)?|unknown), \d{4}-\d\d-\d\d\.$", ran_on)
