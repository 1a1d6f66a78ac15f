"""How a case is timed: contestants on the same tensors, first compared with float64, then interleaved in rounds."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import quantiles

import torch
from torch import Tensor

import fastnest
from fastnest import _backend
from fastnest.convert.swap import plan_of, why_not

from .gate import errors
from .problem import BACKENDS, Autocast, Case, Problem, output_gradient

# On a CPU max-autotune finds matrix products to tune only in frozen weights; frozen, these chains ran no faster.
# Frozen convolutions are tuned and fused: "frozen" is torch.compile's best for images.
COMPILED = {
    "compile": {},
    "max-autotune": {"mode": "max-autotune"},
    "max-autotune-no-cudagraphs": {"mode": "max-autotune-no-cudagraphs"},
    "frozen": {"options": {"max_autotune": True, "freezing": True}},
}
TUNED = frozenset(COMPILED) - {"compile"}  # by times of their own, which takes minutes a case
SHORT = 0.02  # seconds; the first of so short steps may take many times as long as the next


def steps(
    problem: Problem, case: Case, dy: Tensor, only: Sequence[str] | None = None
) -> dict[str, Callable[[], object]]:
    """name -> a function of nothing that does the whole forward or training step."""
    torch._dynamo.reset()
    found = {}
    for name in ("fastnest", *(case.peers if only is None else only)):
        form = problem.form_of(name)
        if name in COMPILED:
            form = replace(form, call=compiled(form.call, COMPILED[name]))
        elif name not in (*BACKENDS, *problem.forms):
            continue
        forced = case.backend if name == "fastnest" else name if name in BACKENDS else ""
        found[name] = _forced(form.step(case.mode, dy), forced)
    return found


def compiled(call: Callable[..., Tensor], options: dict) -> Callable[..., Tensor]:
    """What torch.compile makes of a form's call."""
    if isinstance(call, Autocast):
        return replace(call, call=compiled(call.call, options))
    return torch.compile(call, dynamic=False, **options)


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


def compile_all(contestants: dict[str, Callable], tag: str) -> None:
    """The first step of those that torch.compile makes, by its cache on disk where that has them.

    tag: under which the cache keeps what was tuned, since the fastest code of one condition is not that of another.
    All other code is the same under every condition.
    """
    for name, step in contestants.items():
        if name in COMPILED:
            with torch.compiler.config.patch(cache_key_tag=tag if name in TUNED else ""):
                step()


def seconds(contestants: dict, *, budget: float, rounds: tuple[int, int] = (5, 25)) -> dict[str, list[float]]:
    """name -> seconds of one step, a value per round; what has to be compiled is.

    Every round times each contestant in turn (A B C, A B C, ...), so that a slow moment of the machine is shared; a
    turn repeats a short step until it lasts 2 ms.
    """
    repeats, once = {}, 0.0
    for name, step in contestants.items():
        took = _took(step)
        if took < SHORT:
            took = _took(step)
        repeats[name] = max(1, round(2e-3 / took))
        once += took * repeats[name]
    times = {name: [] for name in contestants}
    for _ in range(min(rounds[1], max(rounds[0], int(budget / once)))):
        for name, step in contestants.items():
            times[name].append(_took(step, repeats[name]))
    return times


def _took(step: Callable[[], object], repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def spread(values: list[float]) -> float:
    """Interquartile range."""
    low, _, high = quantiles(values, n=4)
    return high - low


def ran(problem: Problem, step: Callable[[], object]) -> dict:
    """What fastnest's step runs: {"ops": {backend: calls}, "blocks": accelerated ones, "own": {why: of these, those
    that ran their own forward}}."""
    blocks = [block for block in (problem.model.modules() if problem.model else ()) if plan_of(block) is not None]
    reasons = []

    def note(block, args, kwargs):
        reasons.append(why_not(block, args, kwargs))

    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    try:
        with _backend.logging_choices() as choices:
            step()
    finally:
        for hook in hooks:
            hook.remove()
    return {
        "ops": dict(Counter(choice.backend for choice in choices)),
        "blocks": len(blocks),
        "own": dict(Counter(reason for reason in reasons if reason is not None)),
    }


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


def measure(problem: Problem, case: Case, *, budget: float, first: bool = True, tag: str = "") -> dict:
    """What one process finds of a case: "seconds" of every round per contestant.

    first: whether no process before has compared the case with float64; then also labels, errors, what ran and the
    memory of a training step. tag: as `compile_all` has it.
    """
    dy = output_gradient(problem)
    with torch.set_grad_enabled(case.mode == "train"):
        contestants = steps(problem, case, dy)
        compile_all(contestants, tag)
        if not first:
            return {"name": case.name, "seconds": seconds(contestants, budget=budget)}
        error = errors(problem, case, dy, contestants)
        return {
            **case.labels(),
            "flops": problem.flops,
            "bytes": problem.bytes,
            "error": error,
            "ran": ran(problem, contestants["fastnest"]),
            "seconds": seconds(contestants, budget=budget),
            "memory": _memory(contestants) if case.mode == "train" else {},
        }


def _memory(contestants: dict[str, Callable]) -> dict[str, int]:
    counted = [name for name in ("fastnest", "eager", "compile", "memory-efficient") if name in contestants]
    return {name: training_memory(contestants[name]) for name in counted}
