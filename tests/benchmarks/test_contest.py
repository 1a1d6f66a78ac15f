"""Contestants of every case, and the count of memory; nothing here is timed."""

import pytest
import torch

import fastnest
from fastnest.benchmarks import contest, gate, run
from fastnest.benchmarks.problem import Autocast, Case, output_gradient

SMALL = [
    Case("residual_chain", mode, dtype, {"n": 7, "m": 24, "k": 5, "l": 3}, ("eager", "in-place"))
    for mode in ("forward", "train")
    for dtype in ("float32", "bfloat16")
]
SMALL += [
    Case("dense_chain", mode, "float32", {"n": 7, "in": 6, "d": 5, "l": 3, "h": h}, peers)
    for mode, peers in (("forward", ("eager", "in-place")), ("train", ("eager",)))
    for h in (0, 9)
]
SMALL += [
    Case(subject, mode, "float32", {"n": 7, **sizes, "l": 3, "in": 6, "out": 2}, ("eager",))
    for subject, sizes in (("ResNEst", {"m": 24, "k": 5}), ("AResNEst", {"m": 24, "k": 5}), ("DenseNEst", {"d": 5}))
    for mode in ("forward", "train")
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_contestants_compute_the_same(case):
    """Every way to write a case agrees with float64, whatever backend runs here."""
    problem = run.problem(case)
    dy = output_gradient(problem)
    with torch.set_grad_enabled(case.mode == "train"):
        contestants = contest.steps(problem, case, dy)
        assert set(contestants) == {"fastnest", *case.peers}
        assert set(gate.errors(problem, case, dy, contestants)) == set(contestants)


def test_memory_counts_what_is_held_but_not_the_gradients():
    x = torch.randn(256, 1024, requires_grad=True)  # 1 MiB

    def step():
        return torch.autograd.grad(x.exp().exp().sum(), [x])

    # exp saves its result: two of them; the backward adds one temporary product at a time, and its result is returned.
    assert 2 * 2**20 <= contest.training_memory(step) <= 4 * 2**20


def test_what_ran_is_recorded_of_ops_and_of_accelerated_blocks():
    chain = SMALL[0]
    problem = run.problem(chain)
    step = contest.steps(problem, chain, output_gradient(problem), only=())["fastnest"]
    kernels = "cpp" if fastnest.backends()["cpp"] == "available" else "reference"
    assert contest.ran(problem, step) == {"ops": {kernels: 1}, "blocks": 0, "own": {}}
    for dtype in ("float32", "bfloat16"):
        case = Case("bottleneck block", "forward", dtype, {"n": 1, "px": 4, "c": 8, "k": 4}, ())
        problem = run.problem(case)
        step = contest.steps(problem, case, output_gradient(problem))["fastnest"]
        found = contest.ran(problem, step)
        assert found["blocks"] == 1
        # The block alone gets a float32 image under autocast, which torch computes in its own way.
        own = kernels == "reference" or dtype == "bfloat16"
        assert (sum(found["own"].values()), found["ops"]) == ((1, {}) if own else (0, {"cpp": 1}))


def test_both_image_models_have_weights_in_the_same_memory():
    case = Case("bottleneck block", "forward", "float32", {"n": 1, "px": 4, "c": 8, "k": 4}, ())
    forms = run.problem(case).forms
    for mine, theirs in zip(forms["fastnest"].leaves, forms["eager"].leaves, strict=True):
        assert mine.stride() == theirs.stride()


def test_a_later_process_compares_nothing(monkeypatch):
    monkeypatch.setattr(contest, "errors", None)
    monkeypatch.setattr(contest, "seconds", lambda contestants, budget: {name: [1.0] for name in contestants})
    found = contest.measure(run.problem(SMALL[0]), SMALL[0], budget=0.0, first=False)
    assert found == {"name": SMALL[0].name, "seconds": {"fastnest": [1.0], "eager": [1.0], "in-place": [1.0]}}


def test_a_long_step_is_called_once_before_its_rounds(monkeypatch):
    calls = []
    monkeypatch.setattr(contest, "_took", lambda step, repeats=1: calls.append((step, repeats)) or step)
    times = contest.seconds({"long": 1.0, "short": 1e-3}, budget=0.0)
    assert times == {"long": [1.0] * 5, "short": [1e-3] * 5}
    assert calls[:3] == [(1.0, 1), (1e-3, 1), (1e-3, 1)]
    assert calls[3:5] == [(1.0, 1), (1e-3, 2)]


def test_torch_compile_stays_inside_of_autocast(monkeypatch):
    """Else it cannot cache its tracing, which every process of a run would repeat."""
    taken = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: taken.append(options) or call)
    case = Case("bottleneck block", "forward", "bfloat16", {"n": 1, "px": 4, "c": 8, "k": 4}, ())
    call = run.problem(case).forms["eager"].call
    made = contest.compiled(call, {"mode": "max-autotune"})
    assert isinstance(made, Autocast)
    assert taken == [{"dynamic": False, "mode": "max-autotune"}]
    assert made == call
