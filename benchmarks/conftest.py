"""``pytest benchmarks``: every case and contestant through pytest-benchmark; ``-k quick`` is the two-minute subset.

The timed functions are those of the paired run; here each is timed alone, after its comparison with float64.
"""

import pytest
import torch

from fastnest.benchmarks import contest, run


def pytest_generate_tests(metafunc):
    cases = run.FILES[metafunc.module.__name__.rpartition(".")[2]].cases()
    entries = [(case, name) for case in cases for name in ("fastnest", *case.peers)]
    ids = [f"{case.name}-{name}{'-quick' if case.quick else ''}" for case, name in entries]
    metafunc.parametrize("contestant", entries, ids=ids, indirect=True)


@pytest.fixture
def contestant(request, benchmark):
    """One contestant's whole step, compared with float64 first; its case becomes the benchmark's group."""
    case, name = request.param
    benchmark.group = case.name
    problem = run.problem(case)
    dy = contest.output_gradient(problem)
    with torch.set_grad_enabled(case.mode == "train"):
        compared = contest.steps(problem, case, dy, only=("eager", name))
        contest.errors(problem, case, dy, compared)
        yield compared[name]
