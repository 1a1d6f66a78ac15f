"""What a run on a GPU may have found, which no machine has, and processes that play what they are given."""

import time

from fastnest.benchmarks.gpu.children import Ended

FACTS = {"card": "Stand In (R) 5", "torch": "2.11", "triton": "3.6", "python": "3.12", "fastnest": "0.1.0"}
FACTS |= {"capability": [9, 0], "commit": "abc", "date": "2026-01-01"}
RUNS = [{"date": "2026-01-01", "limit_s": 840, "stages": ["checks", "measure"]}]
RATES = {"copy_bytes_per_second": 1e12, "flops_per_second": {"bfloat16": 1e14}}


def row(name: str, own: float = 10.0, **more) -> dict:
    call, graph = {"fastnest": 2 * own, "eager": 40.0}, {"fastnest": own, "eager": 25.0}
    return {
        "name": name,
        "subject": "residual_chain",
        "mode": "train",
        "dtype": "bfloat16",
        "sizes": {"n": 8, "m": 4},
        "backend": "",
        "flops": 10**8,
        "bytes": 5 * 10**6,
        "runs": ["1 x residual_chain on triton"],
        "call_us": call,
        "call_iqr_us": call,
        "graph_us": graph,
        "graph_iqr_us": graph,
        "wrong_peers": {"compile": "off by 1"},
        "no_graph": {"max-autotune-no-cudagraphs": "RuntimeError: no"},
        "ratios": {"call": {"eager": 20 / own}, "graph": {"eager": 25 / own}},
        "error": {"fastnest": 1e-3},
        "memory_bytes": {"fastnest": 2**20, "eager": 2**22},
        **more,
    }


def convolution(name: str, kind: str = "3x3", own: float = 10.0, **more) -> dict:
    return {
        "name": name,
        "kind": kind,
        "shape": "",
        "sizes": {"n": 64, "px": 56, "c": 128},
        "dtype": "bfloat16",
        "flops": 10**9,
        "bytes": 10**7,
        "error": 1e-3,
        "prototype_us": {"warm": 11.0, "cold": 20.0},
        "warm_us": {"fastnest": own, "library": 25.0},
        "cold_us": {"fastnest": 2 * own, "library": 30.0},
        "what": "",
        **more,
    }


def profile(name: str) -> dict:
    one = row(name)
    kernels = [{"name": f"void at::native::kernel_{i}<int|x>(float*)", "count": 2.0, "us": 10.0 - i} for i in range(8)]
    own = {"host_us": 30.0, "wall_us": 70.0, "launches": 20.0, "kernels_us": 60.0, "kernels": kernels}
    plain = {"host_us": 1500.0, "wall_us": 1600.0, "launches": 3.0, "kernels_us": 6.0, "kernels": kernels[-1:]}
    what = ("name", "subject", "mode", "dtype", "sizes", "backend", "flops", "bytes", "runs")
    return {key: one[key] for key in what} | {"of": {"fastnest": own, "eager": plain}}


def result() -> dict:
    one = {**FACTS, "rates": RATES, "device": {"driver": "580.1"}, "stages": [], "runs": RUNS}
    compiled = {"peer": "fastnest", "seconds": 1.0}
    one["compiled"] = [{"name": "a", "what": "", **compiled}, {"name": "b", "what": "its time was up", **compiled}]
    one |= {"rows": [row("a"), row("b", own=5.0)], "profiles": [profile("a")]}
    test = {"op": "o", "backend": "cuda", "check": "graphs", "dtype": "float32", "verdict": "passed"}
    test |= {"done": 3, "of": 3, "failed": 0}
    failed = {**test, "verdict": "failed", "failed": 1, "what": "dx is off"}
    sanitizer = {
        "op": "o",
        "backend": "cuda",
        "dtype": "float32",
        "tool": "memcheck",
        "verdict": "not run",
        "what": "?",
    }
    one |= {"tests": [test, failed], "sanitizers": [sanitizer]}
    one["failures"] = [{"stage": "measure", "name": "c", "what": "wrong numbers"}]
    return one | {"not_measured": [{"stage": "measure", "name": "d", "what": "late"}]}


def soon(seconds: float = 1000) -> float:
    return time.time() + seconds


class Script:
    """In the place of `listen`: plays a reply per process, [(lines, ended), ...], and keeps what it was asked."""

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def __call__(self, words, on_line, *, until, folder, environment=None):
        self.asked.append(([str(word) for word in words], environment))
        lines, ended = self.replies.pop(0)
        for line in lines:
            on_line(line)
        return ended


class ScriptedWorker:
    """In the place of a Worker: plays a reply per job, (lines, ended), and keeps what it was asked."""

    def __init__(self, replies, environment=None):
        self.replies, self.environment = replies, environment
        self.asked, self.limits, self.ready, self.closed = [], [], True, False

    def do(self, job, on_line, *, until):
        self.asked.append(job)
        self.limits.append(until)
        lines, ended = self.replies(job)
        for line in lines:
            on_line(line)
        return ended

    def close(self):
        self.closed = True


class Office:
    """Makes a session's workers, all of which reply as one function says: replies(job) -> (lines, ended)."""

    def __init__(self, replies):
        self.replies, self.workers, self.words = replies, [], []

    def __call__(self, words, *, folder, environment):
        self.words.append([str(word) for word in words])
        self.workers.append(ScriptedWorker(self.replies, environment))
        return self.workers[-1]

    @property
    def asked(self) -> list[dict]:
        return [job for worker in self.workers for job in worker.asked]


__all__ = [
    "FACTS",
    "RATES",
    "RUNS",
    "Ended",
    "Office",
    "Script",
    "ScriptedWorker",
    "convolution",
    "profile",
    "result",
    "row",
    "soon",
]
