"""How a case is timed: contestants on the same tensors, first compared with float64, then interleaved in rounds."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastnest
from fastnest import _backend
from fastnest.testing import ULPS

# On a CPU max-autotune finds matrix products to tune only in frozen weights; frozen, these chains ran no faster.
# Frozen convolutions are tuned and fused: "frozen" is torch.compile's best for images.
COMPILED = {
    "compile": {},
    "max-autotune": {"mode": "max-autotune"},
    "max-autotune-no-cudagraphs": {"mode": "max-autotune-no-cudagraphs"},
    "frozen": {"options": {"max_autotune": True, "freezing": True}},
}
# Peers that are fastnest, forced on that backend.
BACKENDS = ("triton",)
CHUNK = 2048  # rows of the float64 reference at a time, so that its activations fit where float32's do


@dataclass(frozen=True)
class Case:
    """One line of a table: an op or model, forward or training step, dtype and sizes by the paper's letters."""

    subject: str
    mode: str  # "forward" (no grad) or "train" (forward, backward, every gradient)
    dtype: str
    sizes: dict = field(hash=False)
    peers: tuple[str, ...]  # names of the contestants besides fastnest
    quick: bool = False
    backend: str = ""  # that fastnest is forced on; "": it chooses

    @property
    def name(self) -> str:
        sizes = "-".join(f"{letter}{value}" for letter, value in self.sizes.items())
        return f"{self.subject}-{self.mode}-{self.dtype}-{sizes}{self.backend and '-' + self.backend}"


@dataclass
class Form:
    """One way to write the computation, call(*leaves) -> y, x = leaves[0]; collect: gradients as fastnest has them."""

    call: Callable[..., Tensor]
    leaves: list[Tensor]
    collect: Callable[[Sequence[Tensor]], list[Tensor]] = list


@dataclass
class Problem:
    """A case with its tensors. `forms` has "fastnest", "eager" and perhaps others; torch.compile takes "eager".

    A leaf that needs no gradient is data: no contestant computes one for it.
    """

    forms: dict[str, Form]
    flops: int  # of the case's mode, by fastnest.testing
    bytes: int  # the least that the forward moves: every argument and the result, once
    exact: Callable[[Tensor], list[Tensor]] | None = None  # results in float64 given dy, where rows are not independent


def leaf(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Leaves of autograd on the same memory."""
    return [t.detach().requires_grad_() for t in tensors]


class _NearestKink(TorchDispatchMode):
    """Per row, the least magnitude that any relu has met, as a share of the largest in that row."""

    rows: Tensor | None = None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default):
            magnitude = args[0].abs()
            # Exactly 0 is a constant input (a blank pixel), which no rounding moves to either side.
            share = magnitude.where(magnitude > 0, torch.inf).amin(1) / magnitude.amax(1)
            self.rows = share if self.rows is None else torch.minimum(self.rows, share)
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def near_kinks(call: Callable[..., object], x: Tensor, *parameters: Tensor, share: float = 2e-6) -> Tensor:
    """Which rows of x [n] some relu of call(x, *parameters) nearly zeroes, found in float64.

    There a rounding error decides whether the row counts in a gradient, which says nothing about a kernel. float32
    loses about 1e-7 of a row's largest value per block, far less than `share`.
    """
    wide = [p.double() for p in parameters]
    near = []
    for rows in x.double().split(CHUNK):
        with _NearestKink() as kink:
            call(rows, *wide)
        near.append(kink.rows < share)
    return torch.cat(near)


def step_off_kinks(problem: Problem) -> Problem:
    """The problem with copies of other rows in the place of those near a kink, in the memory that all forms share."""
    form = problem.forms["eager"]
    x, *parameters = (t.detach() for t in form.leaves)
    near = near_kinks(form.call, x, *parameters)
    safe = x[~near]
    if len(safe):
        x[near] = safe[torch.arange(int(near.sum())) % len(safe)]
    return problem


def _step(form: Form, mode: str, dy: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    if mode == "forward":
        return lambda: form.call(*form.leaves)
    learned = [tensor for tensor in form.leaves if tensor.requires_grad]
    return lambda: torch.autograd.grad(form.call(*form.leaves), learned, dy)


def steps(
    problem: Problem, case: Case, dy: Tensor, only: Sequence[str] | None = None
) -> dict[str, Callable[[], object]]:
    """name -> a function of nothing that does the whole forward or training step."""
    torch._dynamo.reset()
    forms, forced = {"fastnest": problem.forms["fastnest"]}, {"fastnest": case.backend}
    for peer in case.peers if only is None else only:
        if peer in COMPILED:
            eager = problem.forms["eager"]
            call = torch.compile(eager.call, dynamic=False, **COMPILED[peer])
            forms[peer] = Form(call, eager.leaves, eager.collect)
        elif peer in BACKENDS:
            forms[peer], forced[peer] = problem.forms["fastnest"], peer
        elif peer in problem.forms:
            forms[peer] = problem.forms[peer]
    return {name: _forced(_step(form, case.mode, dy), forced.get(name)) for name, form in forms.items()}


def _forced(step: Callable[[], object], name: str | None) -> Callable[[], object]:
    """The step by the kernels of a backend, entered without asking again whether it can run."""
    if not name:
        return step
    with fastnest.backend(name):
        pass  # raises here where it cannot

    def forced():
        with _backend.asking("forced", name):
            return step()

    return forced


def output_gradient(problem: Problem) -> Tensor:
    with torch.no_grad():
        y = problem.forms["fastnest"].call(*problem.forms["fastnest"].leaves)
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)


def expected(problem: Problem, case: Case, dy: Tensor) -> list[Tensor]:
    """y, or for training [dx, gradients of the parameters], by the plain form in float64, CHUNK rows at a time."""
    form = problem.forms["eager"]
    x, *parameters = [t.detach().double() for t in form.leaves]
    by_rows, sums = [], None
    for rows, dy_rows in zip(x.split(CHUNK), dy.double().split(CHUNK), strict=True):
        if case.mode == "forward":
            with torch.no_grad():
                by_rows.append(form.call(rows, *parameters))
            continue
        leaves = leaf([rows, *parameters])
        dx, *gradients = form.collect(torch.autograd.grad(form.call(*leaves), leaves, dy_rows))
        by_rows.append(dx)
        sums = gradients if sums is None else [a.add_(b) for a, b in zip(sums, gradients, strict=True)]
    return [torch.cat(by_rows), *(sums or [])]


def errors(problem: Problem, case: Case, dy: Tensor, contestants: dict) -> dict[str, float]:
    """Greatest error of every contestant against float64, in units of each tensor's greatest magnitude.

    Raises AssertionError where fastnest is worse than twice the worst of the plain form in that dtype plus a few ulp:
    no speed is reported then. A peer is held to 16 times, which tells another computation from another rounding.
    """
    truth = problem.exact(dy) if problem.exact else expected(problem, case, dy)
    scale = [float(t.abs().max()) or 1.0 for t in truth]
    ulp = torch.finfo(getattr(torch, case.dtype)).eps
    found = {}
    for name, step in contestants.items():
        collect = problem.forms.get("fastnest" if name in BACKENDS else name, problem.forms["eager"]).collect
        result = step()
        tensors = [result] if case.mode == "forward" else collect(result)
        found[name] = [float((a.double() - b).abs().max()) / s for a, b, s in zip(tensors, truth, scale, strict=True)]
    for name, worst in found.items():
        bound = (2 if name == "fastnest" else 16) * max(found["eager"]) + ULPS * ulp
        for index, error in enumerate(worst):
            if not error <= bound:
                where = f"{case.name}, result {index}"
                raise AssertionError(f"{where}: {name} is off by {error:.2e} of the largest value, bound {bound:.2e}")
    return {name: max(worst) for name, worst in found.items()}


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
    gradients it returns: saved tensors, accumulators and every temporary. (Scratch of MKL and oneDNN is not seen.)"""
    from fastnest import _C

    step()
    _C.release_scratch()  # else the kernels' scratch, kept from the last call, would not be counted
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        gradients = step()
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
        "name": case.name,
        "subject": case.subject,
        "mode": case.mode,
        "dtype": case.dtype,
        "sizes": case.sizes,
        "flops": problem.flops,
        "bytes": problem.bytes,
        "rounds": len(times["fastnest"]),
        "median_us": {name: median(values) * 1e6 for name, values in times.items()},
        "iqr_us": {name: spread(values) * 1e6 for name, values in times.items()},
        "error": error,
        "memory": memory,
    }
