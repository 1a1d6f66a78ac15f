"""The gate in front of every time: no speed from wrong numbers.

Every result is compared with float64, and may be off by what rounding does to plain torch. The gradients of a whole
network in half precision cannot be judged this way: a hundred layers of batch norm and relu amplify rounding until the
error exceeds the gradient, in plain torch too (60 times the largest value, for DenseNet-121 with random weights).
There the network's output is judged, and each block by itself, for the input that it has in the network and a random
gradient of its output.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastnest.testing import ULPS

from .problem import Case, Form, Problem, leaf, output_gradient

CHUNK = 2048  # rows of the float64 reference at a time, so that its activations fit where float32's do
LARGEST, PEER = 2, 16  # how many times plain torch's error fastnest may have, and a peer
RMS = 1.5  # the same of the root mean square of all errors in a tensor
SIGMAS = 4  # the root mean square over few rows may be off by chance by so many standard deviations


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


class WrongPeer(AssertionError):
    """A peer computes something else; fastnest was right until then."""

    def __init__(self, peer: str, what: str):
        super().__init__(what)
        self.peer = peer


class Error(NamedTuple):
    """Of one result: the largest, in units of its largest magnitude, and the root mean square, in units of its own."""

    largest: float
    rms: float


def error_of(values: Tensor, exact: Tensor) -> Error:
    difference = values.double() - exact
    largest, rms = exact.abs().max(), exact.square().mean().sqrt()
    return Error(
        float(difference.abs().max() / largest.where(largest > 0, 1)),
        float(difference.square().mean().sqrt() / rms.where(rms > 0, 1)),
    )


def expected(problem: Problem, case: Case, dy: Tensor) -> list[Tensor]:
    """[y], or for training [y, dx, gradients of the parameters], by the plain form in float64, CHUNK rows at a time."""
    form = problem.forms["eager"]
    x, *parameters = [t.detach().double() for t in form.leaves]
    by_rows, sums = [], None
    for rows, dy_rows in zip(x.split(CHUNK), dy.double().split(CHUNK), strict=True):
        leaves = leaf([rows, *parameters])
        y, *gradients = form.results(Form(form.call, leaves, form.collect).step(case.mode, dy_rows)())
        by_rows.append([y, *gradients[:1]])
        sums = gradients[1:] if sums is None else [a.add_(b) for a, b in zip(sums, gradients[1:], strict=True)]
    return [*map(torch.cat, zip(*by_rows, strict=True)), *(sums or [])]


def errors(problem: Problem, case: Case, dy: Tensor, contestants: dict) -> dict[str, float]:
    """Largest error of every contestant against float64, in units of each result's largest magnitude.

    Raises AssertionError where fastnest or plain torch is wrong: no speed is reported then. No result's largest error
    is above twice the worst of the plain form in that dtype plus a few ulp, nor its root mean square above 1.5 times
    plain torch's own of that result plus half an ulp. A peer is held to 16 times the largest, which tells another
    computation from another rounding; WrongPeer names one that is beyond.
    """
    worst = _compare(problem, case, dy, contestants, case.name)
    for name, block in problem.blocks() if problem.blocks else ():
        gradient = output_gradient(block)
        steps = {who: form.step(case.mode, gradient) for who, form in block.forms.items()}
        found = _compare(block, case, gradient, steps, f"{case.name}, block {name}")
        worst |= {who: max(error, worst[who]) for who, error in found.items() if who in worst}
    return worst


def _compare(problem: Problem, case: Case, dy: Tensor, contestants: dict, where: str) -> dict[str, float]:
    exact = problem.exact(dy) if problem.exact else expected(problem, case, dy)
    found = {}
    for name, step in contestants.items():
        results = problem.form_of(name).results(step())[: len(exact)]
        found[name] = [error_of(*pair) for pair in zip(results, exact, strict=True)]
    ulp = torch.finfo(getattr(torch, case.dtype)).eps
    largest = max(error.largest for error in found["eager"])
    rms = RMS * (1 + SIGMAS / _rows(exact[0]) ** 0.5) if _has_stable_rms(problem, case) else float("inf")
    for name, of_results in found.items():
        bound = (LARGEST if name == "fastnest" else PEER) * largest + ULPS * ulp
        for index, (error, plain) in enumerate(zip(of_results, found["eager"], strict=True)):
            said = f"{where}, result {index}: {name} is off by"
            if not error.largest <= bound:
                what = f"{said} {error.largest:.2e} of the largest value, bound {bound:.2e}"
                raise AssertionError(what) if name in ("fastnest", "eager") else WrongPeer(name, what)
            of_rms = rms * plain.rms + ulp / 2  # the rounding of the result itself
            if name == "fastnest" and not error.rms <= of_rms:
                raise AssertionError(f"{said} {error.rms:.2e} in the root mean square, bound {of_rms:.2e}")
    return {name: max(error.largest for error in of_results) for name, of_results in found.items()}


def _has_stable_rms(problem: Problem, case: Case) -> bool:
    """Whether plain torch's own error predicts that of another order of sums.

    In float32 rounding rarely flips a relu, but a single flip is larger than all other errors, and only one contestant
    may have it. Chains are tested away from such kinks (step_off_kinks); images cannot be.
    """
    return case.mode == "forward" or case.dtype != "float32" or problem.exact is None


def _rows(y: Tensor) -> int:
    """Rows of y [n, m] or pixels of y [n, c, h, w]: the independent terms behind a root mean square."""
    return max(1, y.numel() // y.shape[1])
