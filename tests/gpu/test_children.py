"""Processes that say lines of JSON: one for a command, one for many jobs, and their ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastnest.benchmarks.gpu import children
from fastnest.benchmarks.gpu.children import Ended, Worker


def listen(code: str, tmp_path: Path, seconds: float = 20, **environment) -> tuple[list, Ended]:
    lines = []
    words = [sys.executable, "-c", code]
    until = time.time() + seconds
    return lines, children.listen(words, lines.append, until=until, folder=tmp_path, environment=environment)


def test_children_say_lines_and_how_they_ended(tmp_path):
    code = "import os, sys; print('{\"a\": 1}'); print('{no'); print('words', os.environ['X']); sys.exit(3)"
    lines, ended = listen(code, tmp_path, X="y")
    assert lines == [{"a": 1}]
    assert ended == Ended(3, "{no\nwords y\n")
    assert str(ended) == "ended with 3; {no\nwords y"


def test_children_end_with_their_time_and_with_all_they_started(tmp_path):
    code = (
        "import subprocess, sys, time; print('{\"a\": 1}', flush=True)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('{\"pid\": %d}' % p.pid, flush=True); time.sleep(60)"
    )
    start = time.time()
    lines, ended = listen(code, tmp_path, seconds=1.5)
    assert time.time() - start < 15
    assert lines[0] == {"a": 1}
    assert ended.status is None
    state = Path(f"/proc/{lines[1]['pid']}/stat")
    for _ in range(50):
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("what the child started still runs")


SERVES = """
import os, sys, time
from fastnest.benchmarks.gpu.children import serve

def do(job):
    yield {"pid": os.getpid(), "job": job["n"]}
    print("words")
    sys.stderr.write("progress 100%")  # no end of the line
    sys.stderr.flush()
    if job["n"] == "dies":
        print("of this", flush=True)
        os._exit(7)
    if job["n"] == "sleeps":
        time.sleep(60)
    yield {"twice": 2 * job["n"]}

serve(do)
"""


def do(worker: Worker, n, seconds: float = 60) -> tuple[list[dict], Ended | None]:
    lines: list[dict] = []
    return lines, worker.do({"n": n}, lines.append, until=time.time() + seconds)


def test_a_worker_does_job_after_job_in_one_process(tmp_path):
    worker = Worker([sys.executable, "-c", SERVES], folder=tmp_path)
    assert not worker.ready
    (first, ended), (second, _) = do(worker, 1), do(worker, 2)
    worker.close()
    assert ended is None
    assert worker.ready
    assert first[0]["pid"] == second[0]["pid"]
    assert (first[1], second[1]) == ({"twice": 2}, {"twice": 4})


def test_a_worker_that_dies_costs_one_job(tmp_path):
    worker = Worker([sys.executable, "-c", SERVES], folder=tmp_path)
    before, _ = do(worker, 1)
    died, ended = do(worker, "dies")
    assert (died[0]["job"], ended.status) == ("dies", 7)
    assert ended.said.endswith("words\nprogress 100%of this\n")
    late, ended = do(worker, "sleeps", seconds=8)
    assert (late[0]["job"], ended.status) == ("sleeps", None)
    after, ended = do(worker, 3)
    worker.close()
    assert (after[1], ended) == ({"twice": 6}, None)
    assert len({lines[0]["pid"] for lines in (before, late, after)}) == 3


def test_a_worker_that_never_begins_says_why(tmp_path):
    worker = Worker([sys.executable, "-c", "raise SystemExit('no torch')"], folder=tmp_path)
    for _ in range(2):
        lines, ended = do(worker, 1)
        assert (lines, ended) == ([], Ended(1, "no torch\n"))
    assert not worker.ready


class Counting:
    """In the place of a worker."""

    def __init__(self):
        self.done, self.closed = [], False

    def close(self):
        self.closed = True


def test_jobs_are_shared_in_order():
    begun, workers = [], [Counting() for _ in range(3)]

    def one(worker, job):
        begun.append(job["n"])
        worker.done.append(job["n"])
        time.sleep(0.2 if job["n"] == 0 else 0.01)

    alone = Counting()
    children.share([([{"n": n} for n in range(12)], workers), ([{"n": 99}], [alone])], one)
    assert sorted(begun) == [*range(12), 99]
    assert [n for n in begun if n < 3] == [0, 1, 2]
    assert sorted(n for worker in workers for n in worker.done) == list(range(12))
    assert min(len(worker.done) for worker in workers) == 1  # the slow job kept its worker
    assert alone.done == [99]  # a lane has its own workers
    assert all(worker.closed for worker in (*workers, alone))


def test_workers_are_closed_where_a_job_raises():
    workers, begun = [Counting()], []

    def one(worker, job):
        begun.append(job)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        children.share([([{}, {}], workers)], one)
    assert workers[0].closed
    assert len(begun) == 1


SHARES = """
import json, os, sys, time
from pathlib import Path
from fastnest.benchmarks.gpu import children, run

def one(worker, job):
    worker.do(job, lambda entry: print(json.dumps(entry), flush=True), until=time.time() + 60)

run.signal.signal(run.signal.SIGTERM, lambda *_: sys.exit(143))
workers = [children.Worker([sys.executable, "-c", os.environ["SERVES"]], folder=Path()) for _ in range(2)]
try:
    children.share([([{"n": "sleeps"}] * 6, workers)], one)
finally:
    children.end_all()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_processes_and_begins_no_more(number):
    process = subprocess.Popen([sys.executable, "-c", SHARES], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               env={**os.environ, "SERVES": SERVES}, text=True)  # fmt: skip
    pids = [json.loads(process.stdout.readline())["pid"] for _ in range(2)]
    process.send_signal(number)
    assert process.wait(timeout=20) != 0
    assert process.stdout.read() == ""
    for pid in pids:
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
