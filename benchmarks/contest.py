"""How a case is timed: contestants on the same tensors, first compared with float64, then interleaved in rounds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median, quantiles

import torch
from torch import Tensor

import fastnest
from fastnest import _backend

from .gate import errors
from .problem import BACKENDS, Case, Problem, output_gradient

# On a CPU max-autotune finds matrix products to tune only in frozen weights; frozen, these chains ran no faster.
# Frozen convolutions are tuned and fused: "frozen" is torch.compile's best for images.
COMPILED = {
    "compile": {},
    "max-autotune": {"mode": "max-autotune"},
    "max-autotune-no-cudagraphs": {"mode": "max-autotune-no-cudagraphs"},
    "frozen": {"options": {"max_autotune": True, "freezing": True}},
}
TUNED = frozenset(COMPILED) - {"compile"}  # by times of their own, which takes minutes a case


def steps(
    problem: Problem, case: Case, dy: Tensor, only: Sequence[str] | None = None
) -> dict[str, Callable[[], object]]:
    """name -> a function of nothing that does the whole forward or training step."""
    torch._dynamo.reset()
    found = {}
    for name in ("fastnest", *(case.peers if only is None else only)):
        form = problem.form_of(name)
        if name in COMPILED:
            form = replace(form, call=torch.compile(form.call, dynamic=False, **COMPILED[name]))
        elif name not in (*BACKENDS, *problem.forms):
            continue
        forced = case.backend if name == "fastnest" else name if name in BACKENDS else ""
        found[name] = _forced(form.step(case.mode, dy), forced)
    return found


def _forced(step: Callable[[], object], name: str) -> Callable[[], object]:
    """The step by the kernels of a backend, entered without asking again whether it can run."""
    if not name:
        return step
    with fastnest.backend(name):
        pass  # raises here where it cannot

    def forced():
        with _backend.asking("forced", name):
            return step()

    return forced


def seconds(contestants: dict, *, budget: float, rounds: tuple[int, int] = (5, 25)) -> dict[str, list[float]]:
    """name -> seconds of one step, a value per round; the steps have run before.

    Every round times each contestant in turn (A B C, A B C, ...), so that a slow moment of the machine is shared; a
    turn repeats a short step until it lasts 2 ms.
    """
    repeats, once = {}, 0.0
    for name, step in contestants.items():
        start = time.perf_counter()
        step()
        took = time.perf_counter() - start
        repeats[name] = max(1, round(2e-3 / took))
        once += took * repeats[name]
    times = {name: [] for name in contestants}
    for _ in range(min(rounds[1], max(rounds[0], int(budget / once)))):
        for name, step in contestants.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                step()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def spread(values: list[float]) -> float:
    """Interquartile range."""
    low, _, high = quantiles(values, n=4)
    return high - low


def training_memory(step: Callable[[], Sequence[Tensor]]) -> int:
    """Bytes that torch's allocator holds at the peak of a training step beyond what was there before it and the
    gradients it returns behind y: saved tensors, accumulators and every temporary.

    Scratch of MKL and oneDNN is not seen.
    """
    from fastnest import _C

    step()
    _C.release_scratch()  # else the kernels' scratch, kept from the last call, would not be counted
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        _y, *gradients = step()
    events, waiting = [], list(profile.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == torch._C._profiler._EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    events.sort(key=lambda event: event[0])
    held = {t.untyped_storage().data_ptr() for t in gradients}
    last = {pointer: i for i, (_, pointer, size) in enumerate(events) if size > 0 and pointer in held}
    returned = set(last.values())
    now = peak = 0
    for i, (_, _, size) in enumerate(events):
        now += 0 if i in returned else size
        peak = max(peak, now)
    return peak


def measure(problem: Problem, case: Case, *, budget: float) -> dict:
    """One line of the JSON: medians and spread per contestant in microseconds, errors, memory of a training step."""
    dy = output_gradient(problem)
    with torch.set_grad_enabled(case.mode == "train"):
        contestants = steps(problem, case, dy)
        for step in contestants.values():
            step()
        error = errors(problem, case, dy, contestants)
        times = seconds(contestants, budget=budget)
        memory = {}
        if case.mode == "train":
            counted = [n for n in ("fastnest", "eager", "compile", "memory-efficient") if n in contestants]
            memory = {name: training_memory(contestants[name]) for name in counted}
    return {
        **case.labels(),
        "flops": problem.flops,
        "bytes": problem.bytes,
        "rounds": len(times["fastnest"]),
        "median_us": {name: median(values) * 1e6 for name, values in times.items()},
        "iqr_us": {name: spread(values) * 1e6 for name, values in times.items()},
        "error": error,
        "memory": memory,
    }
