"""One case on the GPU: ready to run, compiled, measured, or taken apart into kernels."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from fastnest import _backend
from fastnest.benchmarks import contest, gate, run
from fastnest.benchmarks.problem import Case, Problem, output_gradient

ROUNDS = (7, 60)
TIMING = 1.0  # seconds of a case's timing, once per way of launching


@dataclasses.dataclass
class Prepared:
    """A case with its tensors on the device, the gradient of its output, and a step of every contestant."""

    case: Case
    problem: Problem
    dy: Tensor
    steps: dict[str, Callable[[], object]]

    def gradients(self) -> torch.set_grad_enabled:
        """The context in which its steps run."""
        return torch.set_grad_enabled(self.case.mode == "train")


def prepare(case: Case, peers: Sequence[str], device, build=run.problem) -> Prepared:
    """With those of the case's peers that are asked for.

    Parameters stay where they are, which spares torch.compile's own CUDA graphs copies of them.
    """
    case = dataclasses.replace(case, peers=tuple(peer for peer in case.peers if peer in peers))
    problem = build(case, device.type)
    dy = output_gradient(problem)
    if dy.dim() == 4:
        dy = dy.contiguous(memory_format=torch.channels_last)  # as in a network whose images are
    for leaf in problem.forms["eager"].leaves[1:]:
        torch._dynamo.mark_static_address(leaf)
    prepared = Prepared(case, problem, dy, {})
    with prepared.gradients():
        prepared.steps = contest.steps(problem, case, dy)
    own_graphs = prepared.steps.get("max-autotune")
    if own_graphs is not None:

        def begins():
            torch.compiler.cudagraph_mark_step_begin()  # results of the last call may be overwritten
            return own_graphs()

        prepared.steps["max-autotune"] = begins
    return prepared


def compile_first(case: Case, contestant: str, device, build=run.problem) -> dict:
    """Runs one contestant once, so that its kernels are on disk when it is timed; how long that took."""
    start = time.time()
    prepared = prepare(case, (contestant,), device, build)
    with prepared.gradients():
        prepared.steps[contestant]()
        device.synchronize()
    return {"name": case.name, "peer": contestant, "seconds": round(time.time() - start, 1), "what": ""}


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


def microseconds(times: dict[str, list[float]]) -> tuple[dict, dict]:
    """Median and spread of seconds, by name."""
    return tuple({name: f(values) * 1e6 for name, values in times.items()} for f in (median, contest.spread))


def measure(case: Case, peers: Sequence[str], device, *, build=run.problem, seconds: float = TIMING) -> dict:
    """One row: medians and spread per contestant, called and as a CUDA graph, errors, memory of a training step.

    Raises AssertionError where numbers differ from float64: nothing is timed then.
    """
    prepared = prepare(case, peers, device, build)
    problem, steps = prepared.problem, prepared.steps
    with prepared.gradients():
        runs = what_runs(steps["fastnest"])
        for step in steps.values():
            step()
        error, wrong = _compared(prepared)
        timers = {name: lambda step=step: device.latency(step) for name, step in steps.items()}
        called, called_iqr = microseconds(interleaved(timers, seconds=seconds))
        replays, no_graph = {}, {}
        for name, step in steps.items():
            if name == "max-autotune":
                continue  # has graphs of its own
            try:
                replays[name] = device.capture(step)
            except Exception as reason:  # whatever a peer does that cannot be captured
                no_graph[name] = said(reason)
        timers = {name: lambda replay=replay: device.device_time(replay) for name, (replay, _) in replays.items()}
        graph, graph_iqr = microseconds(interleaved(timers, seconds=seconds))
        del replays, timers
        memory = {}
        if case.mode == "train":
            memory = {name: device.peak_bytes(step) for name, step in steps.items() if name != "max-autotune"}
    return {
        **_what(case, problem),
        "runs": runs,
        "call_us": called,
        "call_iqr_us": called_iqr,
        "graph_us": graph,
        "graph_iqr_us": graph_iqr,
        "no_graph": no_graph,
        "wrong_peers": wrong,
        "ratios": ratios(called, graph),
        "error": error,
        "memory_bytes": memory,
    }


def _compared(prepared: Prepared) -> tuple[dict[str, float], dict[str, str]]:
    """Every contestant's error; peers that compute something else, and why, which are left out from here on."""
    wrong: dict[str, str] = {}
    while True:
        try:
            return gate.errors(prepared.problem, prepared.case, prepared.dy, prepared.steps), wrong
        except gate.WrongPeer as error:
            wrong[error.peer] = str(error)
            del prepared.steps[error.peer]


def _what(case: Case, problem: Problem) -> dict:
    """What a row or profile is of."""
    return {
        **case.labels(),
        "backend": case.backend,
        "flops": problem.flops,
        # A step reads the arguments and dy, and writes y and every gradient.
        "bytes": problem.bytes * (2 if case.mode == "train" else 1),
    }


def profile(case: Case, device, build=run.problem) -> dict:
    """Where the time goes, of fastnest and of eager: kernels by name, launches, what the host takes."""
    prepared = prepare(case, ("eager",), device, build)
    with prepared.gradients():
        runs = what_runs(prepared.steps["fastnest"])
        of = {name: device.profile(step) for name, step in prepared.steps.items()}
    return {**_what(case, prepared.problem), "runs": runs, "of": of}


def ratios(called: dict[str, float], graph: dict[str, float]) -> dict:
    """peer -> its median over fastnest's, called and as graphs; above 1, fastnest is faster."""

    def over(medians: dict[str, float]) -> dict[str, float]:
        own = medians.get("fastnest")
        return {peer: value / own for peer, value in medians.items() if peer != "fastnest"} if own else {}

    return {"call": over(called), "graph": over(graph)}


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:2000]
