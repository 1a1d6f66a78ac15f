"""The gate in front of every time: no speed from wrong numbers.

Every result is compared with float64, and may be off by what rounding does to plain torch: `fastnest.testing`'s judge,
as in tests. A relu that rounding flips in one contestant is a larger error than all rounding in float32, so training in
float32 is compared where no relu is near its kink. The gradients of a whole network in half precision cannot be judged
at all: a hundred layers of batch norm and relu amplify rounding until the error exceeds the gradient, in plain torch
too (60 times the largest value, for DenseNet-121 with random weights). There the network's output is judged, and each
block by itself, for the input that it has in the network and a random gradient of its output.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastnest.testing import ULPS, Results, assert_close, error_of, expect_by_one_run

from .problem import Case, Form, Problem, leaf, output_gradient

CHUNK = 2048  # rows of the float64 reference at a time, so that its activations fit where float32's do
PEER = 16  # how many times plain torch's largest error a peer may have
NEAR = 0.1  # of a batch norm's outputs those that may become the place of relu's kink


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


@torch.no_grad()
def part_at_kinks(model: torch.nn.Module, x: Tensor) -> None:
    """Shifts the biases of all batch norms so that no relu behind them gets an input near 0, for the images x.

    Rows and pixels share batch statistics, so that none of them can be replaced. Instead the widest gap between two
    values of a channel becomes the place of the kink. It is about 1e-4, and the error of float32 there 1e-6.
    """
    wide = copy.deepcopy(model).double()
    norms = {name: module for name, module in wide.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}

    def part(name: str):
        def hook(norm: torch.nn.Module, args: tuple, y: Tensor) -> Tensor:
            values = y.movedim(1, 0).flatten(1).sort().values  # [c, n h w]
            gaps, middles = values.diff(), (values[:, 1:] + values[:, :-1]) / 2
            widest = gaps.where(middles.abs() < NEAR, 0).argmax(1, keepdim=True)
            shift = -middles.gather(1, widest).squeeze(1)
            model.get_submodule(name).bias += shift
            return y + shift[:, None, None]

        return hook

    for name, norm in norms.items():
        norm.register_forward_hook(part(name))
    wide(x.double())


class WrongPeer(AssertionError):
    """A peer computes something else; fastnest was right until then."""

    def __init__(self, peer: str, what: str):
        super().__init__(what)
        self.peer = peer


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

    Raises AssertionError where fastnest or plain torch is wrong: no speed is reported then. A peer is held to 16 times
    the largest error of plain torch's results, which tells another computation from another rounding; WrongPeer names
    one that is beyond.
    """
    worst = _compare(problem, case, dy, contestants, case.name)
    for name, block in problem.blocks() if problem.blocks else ():
        gradient = output_gradient(block)
        steps = {who: form.step(case.mode, gradient) for who, form in block.forms.items()}
        found = _compare(block, case, gradient, steps, f"{case.name}, block {name}")
        worst |= {who: max(error, worst[who]) for who, error in found.items() if who in worst}
    return worst


def _compare(problem: Problem, case: Case, dy: Tensor, contestants: dict, where: str) -> dict[str, float]:
    dtype = getattr(torch, case.dtype)
    exact = _named(problem.exact(dy) if problem.exact else expected(problem, case, dy))

    def results(who: str) -> Results:
        found = _named(problem.form_of(who).results(contestants[who]()))
        return {name: found[name] for name in exact}

    allowed = expect_by_one_run(exact, results("eager"), _rows(exact["y"]))
    bound = PEER * max(error.largest for error in allowed.error.values()) + ULPS * torch.finfo(dtype).eps
    worst = {}
    for who in contestants:
        found = allowed.plain if who == "eager" else results(who)
        if who == "fastnest":
            assert_close(found, allowed, dtype, where)
        worst[who] = max(error_of(value, exact[name]).largest for name, value in found.items())
        if not (worst[who] <= bound and all(value.isfinite().all() for value in found.values())):
            what = f"{where}: {who} is off by {worst[who]:.2e} of the largest value, bound {bound:.2e}, or not finite"
            raise AssertionError(what) if who == "eager" else WrongPeer(who, what)
    return worst


def _named(results: list[Tensor]) -> Results:
    """y and the gradients, which are numbered from 1."""
    return {f"gradient {i}" if i else "y": value for i, value in enumerate(results)}


def _rows(y: Tensor) -> int:
    """Rows of y [n, m] or pixels of y [n, c, h, w]: the independent terms behind a root mean square."""
    return max(1, y.numel() // y.shape[1])
