"""``pytest benchmarks``: every case and contestant through pytest-benchmark; ``-k quick`` is the subset.

The timed functions are those of the paired run; here each is timed alone, after its comparison with float64.
``--benchmark-compare`` fails where fastnest became slower against eager (ratios.py).
"""

import warnings

import pytest
import torch

from fastnest.benchmarks import contest, gate, ratios, run
from fastnest.benchmarks.problem import output_gradient


def pytest_configure(config):
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError('the benchmarks need pytest-benchmark: pip install "fastnest-torch[bench]"')
    if config.getoption("benchmark_compare"):
        # Without a saved run the stored results are compared with.
        warnings.filterwarnings("ignore", "Can't compare. No benchmark files")
        config.pluginmanager.register(ratios.Watch(), "fastnest-ratios")


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
    benchmark.extra_info["contestant"] = name
    problem = run.problem(case)
    dy = output_gradient(problem)
    with torch.set_grad_enabled(case.mode == "train"):
        compared = contest.steps(problem, case, dy, only=("eager", name))
        gate.errors(problem, case, dy, compared)
        yield compared[name]
