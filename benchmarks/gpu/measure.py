"""Measures cases on the GPU, one JSON line each to stdout: measure.py rates|first|compiled UNTIL [REGEX [BEHIND]].

UNTIL is in seconds of `time.time`. "first" measures fastnest beside what need not be compiled, "compiled" beside all
peers: the cases in whose name REGEX is found, those behind the case BEHIND. {"cases": names} comes first and
{"begin": name} before each, so that whoever reads knows in which case the process died, and what is left.
"""

import dataclasses
import gc
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from statistics import median

import torch

from fastnest import _backend
from fastnest.benchmarks import contest, gate, run
from fastnest.benchmarks.gpu import cases
from fastnest.benchmarks.gpu.device import Gpu
from fastnest.benchmarks.problem import Case, Problem, output_gradient

ROUNDS = (7, 60)
TIMING = 1.0  # seconds of a case's timing, once per way of launching


def what_runs(step: Callable[[], object]) -> list[str]:
    """The ops that a step calls: how often each, on which backend, and why on no faster one."""
    with _backend.logging_choices() as log:
        step()
    counted = Counter(f"{op} on {backend}" + (f" ({reason})" if reason else "") for op, backend, _, reason in log)
    return [f"{count} x {what}" for what, count in counted.items()] or ["no op of fastnest: torch alone"]


def interleaved(timers: dict[str, Callable[[], float]], *, seconds: float, clock=time.perf_counter) -> dict:
    """name -> what its timer returned, once a round: A B C, A B C, ..., so that a slow moment is shared."""
    times, until = {name: [] for name in timers}, clock() + seconds
    for turn in range(ROUNDS[1]):
        if turn >= ROUNDS[0] and clock() >= until:
            break
        for name, timer in timers.items():
            times[name].append(timer())
    return times


def _microseconds(times: dict[str, list[float]]) -> tuple[dict, dict]:
    return tuple({name: f(values) * 1e6 for name, values in times.items()} for f in (median, contest.spread))


def _contestants(problem: Problem, case: Case, dy: torch.Tensor) -> dict[str, Callable]:
    """Parameters stay where they are, which spares torch.compile's own CUDA graphs copies of them."""
    for leaf in problem.forms["eager"].leaves[1:]:
        torch._dynamo.mark_static_address(leaf)
    steps = contest.steps(problem, case, dy)
    own_graphs = steps.get("max-autotune")
    if own_graphs is not None:

        def begins():
            torch.compiler.cudagraph_mark_step_begin()  # results of the last call may be overwritten
            return own_graphs()

        steps["max-autotune"] = begins
    return steps


def measure(problem: Problem, case: Case, device, *, seconds: float = TIMING) -> dict:
    """One row: medians and spread per contestant, called and as a CUDA graph, errors, memory of a training step.

    Raises AssertionError where numbers differ from float64: nothing is timed then.
    """
    dy = output_gradient(problem)
    if dy.dim() == 4:
        dy = dy.contiguous(memory_format=torch.channels_last)  # as in a network whose images are
    with torch.set_grad_enabled(case.mode == "train"):
        steps = _contestants(problem, case, dy)
        runs = what_runs(steps["fastnest"])
        for step in steps.values():
            step()
        error = gate.errors(problem, case, dy, steps)
        timers = {name: lambda step=step: device.latency(step) for name, step in steps.items()}
        called, called_iqr = _microseconds(interleaved(timers, seconds=seconds))
        replays, no_graph = {}, {}
        for name, step in steps.items():
            if name == "max-autotune":
                continue  # has graphs of its own
            try:
                replays[name] = device.capture(step)
            except Exception as reason:  # whatever a peer does that cannot be captured
                no_graph[name] = _said(reason)
        timers = {name: lambda replay=replay: device.device_time(replay) for name, (replay, _) in replays.items()}
        graph, graph_iqr = _microseconds(interleaved(timers, seconds=seconds))
        del replays, timers
        memory = {}
        if case.mode == "train":
            memory = {name: device.peak_bytes(step) for name, step in steps.items() if name != "max-autotune"}
    return {
        "name": case.name,
        "subject": case.subject,
        "mode": case.mode,
        "dtype": case.dtype,
        "sizes": case.sizes,
        "backend": case.backend,
        "flops": problem.flops,
        # A step reads the arguments and dy, and writes y and every gradient.
        "bytes": problem.bytes * (2 if case.mode == "train" else 1),
        "runs": runs,
        "call_us": called,
        "call_iqr_us": called_iqr,
        "graph_us": graph,
        "graph_iqr_us": graph_iqr,
        "no_graph": no_graph,
        "ratios": ratios(called, graph),
        "error": error,
        "memory_bytes": memory,
    }


def ratios(called: dict[str, float], graph: dict[str, float]) -> dict:
    """peer -> its median over fastnest's, called and as graphs; above 1, fastnest is faster."""

    def over(medians: dict[str, float]) -> dict[str, float]:
        own = medians.get("fastnest")
        return {peer: value / own for peer, value in medians.items() if peer != "fastnest"} if own else {}

    return {"call": over(called), "graph": over(graph)}


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def attempt(case: Case, peers: tuple[str, ...], device, build=run.problem) -> dict:
    """{"row": ...}, or {"failure": ...} with what went wrong."""
    case = dataclasses.replace(case, peers=tuple(peer for peer in case.peers if peer in peers))
    try:
        return {"row": measure(build(case, device.type), case, device)}
    except AssertionError as error:
        return {"failure": {"name": case.name, "what": f"wrong numbers, no speed reported: {error}"}}
    except Exception as error:
        return {"failure": {"name": case.name, "what": _said(error)}}


def chosen(what: str, only: str = "", behind: str = "") -> list[Case]:
    every = [case for case in cases.in_order(what == "compiled") if re.search(only, case.name)]
    if what == "compiled":
        every = [case for case in every if set(case.peers) & set(cases.COMPILED)]
    return every[1 + [case.name for case in every].index(behind) :] if behind else every


def main(what: str, until: float, *which: str) -> None:
    def say(line: dict) -> None:
        print(json.dumps(line), flush=True)

    device = Gpu()
    torch.backends.cudnn.benchmark = True  # the peers' convolutions are the fastest that cuDNN has
    if what == "rates":
        return say({"rates": device.rates(), "device": device.facts()})
    peers = cases.AT_ONCE if what == "first" else (*cases.AT_ONCE, *cases.COMPILED)
    left = chosen(what, *which)
    say({"cases": [case.name for case in left]})
    for case in left:
        if time.time() >= until:
            break
        say({"begin": case.name})
        say(attempt(case, peers, device))
        try:
            device.synchronize()
            gc.collect()  # a form refers to its module, which refers to it
            torch.cuda.empty_cache()
        except RuntimeError:  # a fault, after which this process can run nothing more
            sys.exit(3)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), *sys.argv[3:])
