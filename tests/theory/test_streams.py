"""Data as tensors, batches, over two processes, and more than fits in memory: one answer, and nothing else changes."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path

import pytest
import torch
from children import run_both
from theory.networks import RANDOM_WIDE, Random, Shape, build, huber
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fastnest import models, theory

CASE = Random(Shape(4, 3, 5, 2, 2))  # narrow: not every tool then says 0

# Every tool that reads data, as a function of a model and data (x, y) or batches.
ONE_PASS: dict[str, Callable] = {
    "linear_head": lambda model, *data: theory.linear_head(*through(model, *data)),
    "best_linear_predictor": lambda model, *data: theory.best_linear_predictor(*data, ridge=0.1, intercept=True),
    "empirical_risk": theory.empirical_risk,
    "empirical_risk, huber": lambda model, *data: theory.empirical_risk(model, *data, loss=huber),
    "optimal_prediction": lambda model, *data: theory.optimal_prediction(model, *data).risk,
    "risk_gap": theory.risk_gap,
    "block_profile": theory.block_profile,
    "check_assumptions": theory.check_assumptions,
    "critical_point": theory.critical_point,
    "check_convexity": lambda model, *data: theory.check_convexity(model, *data).excess,
}
SEVERAL_PASSES: dict[str, Callable] = {
    "linear_head, huber": lambda model, *data: theory.linear_head(*through(model, *data), loss=huber),
    "linear_head, huber, ridge": lambda model, *data: theory.best_linear_predictor(*data, loss=huber, ridge=0.1),
    "risk_gap, huber": lambda model, *data: theory.risk_gap(model, *data, loss=huber),
    "block_profile, huber": lambda model, *data: theory.block_profile(model, *data, loss=huber),
}
TOOLS = ONE_PASS | SEVERAL_PASSES
CLASSES: dict[str, Callable] = {
    "linear_head": lambda model, *data: theory.linear_head(*through(model, *data), loss="cross_entropy", classes=3),
    "linear_head, squared": lambda model, *data: theory.linear_head(*through(model, *data), classes=3),
    "empirical_risk": lambda model, *data: theory.empirical_risk(model, *data, loss="cross_entropy"),
    "risk_gap": lambda model, *data: theory.risk_gap(model, *data, loss="cross_entropy"),
    "block_profile": lambda model, *data: theory.block_profile(model, *data, loss="cross_entropy"),
    "check_assumptions": theory.check_assumptions,
    "critical_point": theory.critical_point,
}


def through(model, x, y=None):
    """Features in place of x, computed once, unless their batches come once too."""
    if y is not None:
        return theory.features(model, x), y
    batches = ((theory.features(model, part), y) for part, y in x)
    return (batches if iter(x) is x else list(batches),)


# A result's direction or weight may be any of many where an eigenvalue or a solution is not unique.
NOT_UNIQUE = {"direction", "step", "escaped_risk", "iterations", "intercept", "gradient_norm"}


def numbers(result) -> dict[str, float]:
    """What a tool found, as numbers by name."""
    found: dict[str, float] = {}

    def collect(name: str, value) -> None:
        if is_dataclass(value):
            value = asdict(value)
        if isinstance(value, dict):
            for key, part in value.items():
                if key not in NOT_UNIQUE:
                    collect(f"{name}.{key}", part)
        elif isinstance(value, torch.Tensor):
            collect(name, value.flatten().tolist())
        elif isinstance(value, (list, tuple)):
            for i, part in enumerate(value):
                collect(f"{name}[{i}]", part)
        elif isinstance(value, (bool, int, float)):
            found[name] = float(value)

    collect("", result)
    return found


def check_same(found: dict[str, float], expected: dict[str, float], solved: bool) -> None:
    """To 1e-9; what a solver found to 1e-6, as its stops at 1e-8 of a gradient are in other places then.

    Of its risks 1e-9 is left, as they are flat there.
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        loose = solved and "risk" not in name and "infimum" not in name
        close = pytest.approx(value, rel=1e-6, abs=1e-6) if loose else pytest.approx(value, rel=1e-9, abs=1e-9)
        assert found[name] == close, name


def data(classes: bool = False) -> tuple[models.ResNEst, torch.Tensor, torch.Tensor]:
    model, x, y = build(CASE)
    return model, x, y.argmax(1) if classes else y


def shuffled(x, y):
    """Batches of 50, of none, of 1 and of 69 rows, backwards."""
    order = torch.arange(len(x)).flip(0)
    return [(x[rows], y[rows]) for rows in order.split([50, 0, 1, 69])]


def loaded(x, y):
    return DataLoader(TensorDataset(x, y), batch_size=32)


SOURCES = {"batches": shuffled, "a DataLoader": loaded, "a first batch of none": lambda x, y: [(x[:0], y[:0]), (x, y)]}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("name", TOOLS)
def test_batches_are_tensors(name, source):
    model, x, y = data()
    found, expected = TOOLS[name](model, source(x, y)), TOOLS[name](model, x, y)
    check_same(numbers(found), numbers(expected), name in SEVERAL_PASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_batches_of_classes(name):
    model, x, y = data(classes=True)
    found, expected = CLASSES[name](model, shuffled(x, y)), CLASSES[name](model, x, y)
    check_same(numbers(found), numbers(expected), "squared" not in name)


@pytest.mark.parametrize("name", ONE_PASS)
def test_a_generator_is_enough_for_one_pass(name):
    model, x, y = data()
    found = ONE_PASS[name](model, (batch for batch in shuffled(x, y)))
    check_same(numbers(found), numbers(ONE_PASS[name](model, x, y)), solved=False)


@pytest.mark.parametrize("name", ["linear_head, huber, ridge", "risk_gap, huber", "block_profile, huber"])
def test_a_generator_is_not_enough_for_several(name):
    model, x, y = data()
    with pytest.raises(
        ValueError, match=r": x must be an iterable that can be read several times, such as a list or a"
    ):
        SEVERAL_PASSES[name](model, (batch for batch in shuffled(x, y)))


def test_unpredictability_by_batches():
    model, x, _ = data()
    v = theory.features(model, x)
    expected = theory.linear_unpredictability(v)
    batches = [[part[rows] for part in v] for rows in torch.arange(len(x)).split([50, 0, 70])]
    for given in (batches, (batch for batch in batches)):
        torch.testing.assert_close(theory.linear_unpredictability(given), expected, rtol=1e-9, atol=1e-9)


def test_large_tensors_are_read_in_chunks():
    """Those of 10000 rows: no forward sees more than 4096, and the answer is that of batches of 10000."""
    model, x, y = data()
    x, y = x.repeat(84, 1)[:10000], y.repeat(84, 1)[:10000]
    seen = []
    hook = model.chain.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    try:
        found = theory.risk_gap(model, x, y)
    finally:
        hook.remove()
    assert sum(rows for rows in seen if rows > 1) == 10000
    assert max(seen) <= 4096
    check_same(numbers(found), numbers(theory.risk_gap(model, [(x, y)])), solved=False)


def test_targets_of_one_output():
    """[n] is [n, 1]."""
    model, x, y = build(RANDOM_WIDE[4])
    assert theory.risk_gap(model, x, y[:, 0]) == theory.risk_gap(model, x, y)
    assert theory.empirical_risk(model, x, y[:, 0]) == theory.empirical_risk(model, x, y)
    v = theory.features(model, x)
    assert torch.equal(theory.linear_head(v, y[:, 0]).weight, theory.linear_head(v, y).weight)


@pytest.mark.parametrize("name", TOOLS)
def test_models_in_float32(name):
    """Sums are in float64 whatever the model's dtype: off by the rounding of float32 features, some 1e-6, alone.

    The narrow stream loses some digits more, and squared rounding is in what was 0: 1e-4.
    """
    model, x, y = data()
    found = TOOLS[name](copy.deepcopy(model).float(), x.float(), y)
    found, expected = numbers(found), numbers(TOOLS[name](model, x, y))
    for key in expected:
        if "eigenvalue" in key or "gradient" in key or "weight" in key:
            continue
        assert found[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-4), key


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.uint8])
def test_classes_of_any_integer_type(dtype):
    model, x, y = data(classes=True)
    expected = theory.linear_head(theory.features(model, x), y, loss="cross_entropy")
    found = theory.linear_head(theory.features(model, x), y.to(dtype), loss="cross_entropy")
    assert torch.equal(found.weight, expected.weight)
    assert theory.empirical_risk(model, x, y.to(dtype)) == theory.empirical_risk(model, x, y)


# What does not change


def normed() -> tuple[models.ResNEst, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = models.ResNEst(4, 3, width=6, bottleneck=3, blocks=3, norm="batch", activation="gelu", dtype=torch.float64)
    _, x, y = build(CASE)
    model.train()(x + 1)
    model.chain.down_norm.eval()  # one module of the model in another mode
    return model, x, y


@pytest.mark.parametrize("name", [name for name in TOOLS if not name.startswith("linear_head")])
def test_the_model_stays_as_it_is(name):
    """Modes, parameters, running statistics and gradients, though features are those of evaluation."""
    model, x, y = normed()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    TOOLS[name](model, x, y)
    TOOLS[name](model, shuffled(x, y))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    expected = TOOLS[name](copy.deepcopy(model).eval(), x, y)
    check_same(numbers(TOOLS[name](model, x, y)), numbers(expected), solved=False)


@pytest.mark.parametrize("name", ["empirical_risk", "risk_gap", "block_profile", "block_profile, huber"])
def test_the_model_stays_as_it_is_after_an_error(name):
    model, x, y = normed()
    modes = [module.training for module in model.modules()]

    def failing():
        yield x[:50], y[:50]
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        TOOLS[name](model, failing())
    with pytest.raises(RuntimeError):
        TOOLS[name](model, x[:, :3], y)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("name", TOOLS)
def test_no_global_state_changes(name):
    model, x, y = data()
    state = (
        lambda: torch.get_num_threads(),
        lambda: torch.is_grad_enabled(),
        lambda: torch.get_default_dtype(),
        lambda: torch.get_rng_state().tolist(),
        lambda: torch.are_deterministic_algorithms_enabled(),
        lambda: torch.get_float32_matmul_precision(),
    )
    before = [read() for read in state]
    TOOLS[name](model, x, y)
    assert [read() for read in state] == before
    with torch.no_grad():
        found = TOOLS[name](model, x, y)
    check_same(numbers(found), numbers(TOOLS[name](model, x, y)), solved=False)


# Bad data

NAN = [name for name in TOOLS if not name.startswith("empirical_risk")]


@pytest.mark.parametrize("name", NAN)
@pytest.mark.parametrize("where", ["x", "y"])
def test_nan_is_an_error(name, where):
    model, x, y = data()
    x, y = (x.clone(), y.clone())
    (x if where == "x" else y)[70, 0] = torch.nan
    for given in ((x, y), (shuffled(x, y),)):
        with pytest.raises(ValueError, match="features and y must be finite, got NaN or Inf among them"):
            TOOLS[name](model, *given)


@pytest.mark.parametrize("name", TOOLS)
def test_no_data_is_an_error(name):
    model, x, y = data()
    for given in ([], [(x[:0], y[:0])]):
        with pytest.raises(ValueError, match=r": x must hold at least one (batch|sample)"):
            TOOLS[name](model, given)


BATCHES = [
    (TypeError, lambda x, y: [x], "every batch must be a pair"),
    (TypeError, lambda x, y: [(x, y), (x, y, y)], "every batch must be a pair"),
    (TypeError, lambda x, y: [(x, y.tolist())], "every batch must be a pair"),
    (ValueError, lambda x, y: [(x, y), (x[:, :3], y)], "features must have the sizes [4] in every batch, got [3]"),
    (ValueError, lambda x, y: [(x, y), (x, y[:, :2])], "y must be "),
    (ValueError, lambda x, y: [(x, y), (x[:5], y[:4])], "features must be [4, size] to match y, got [5, 4]"),
    (ValueError, lambda x, y: [(x, y.argmax(1))], "classes must be given where y comes in batches of classes"),
]


@pytest.mark.parametrize(("error", "make", "message"), BATCHES)
def test_bad_batches(error, make, message):
    _, x, y = data()
    given = make(x, y)
    given = iter(given) if isinstance(given[0], torch.Tensor) else given  # a list of tensors is a list of features
    with pytest.raises(error) as raised:
        theory.linear_head(given)
    assert str(raised.value).startswith(f"linear_head: {message}")


def test_progress(capfd):
    """A bar on stderr where asked for; none where stderr is no terminal."""
    pytest.importorskip("tqdm")
    model, x, y = data()
    theory.risk_gap(model, shuffled(x, y))
    assert capfd.readouterr().err == ""
    theory.risk_gap(model, shuffled(x, y), progress=True)
    assert "risk_gap" in capfd.readouterr().err


# Two processes

WORKER = """
import sys
import torch
import torch.distributed as dist
from theory import test_streams

torch.set_num_threads(1)
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
torch.save(test_streams.of_all_tools(rank), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def share(rank: int | None, x, y, tensors: bool):
    """Of process 0: 80 rows in 3 batches; of 1: the other 40 in one batch. None: all."""
    rows = {None: slice(None), 0: slice(0, 80), 1: slice(80, None)}[rank]
    x, y = x[rows], y[rows]
    if tensors:
        return x, y
    return ([(x[:1], y[:1]), (x[1:50], y[1:50]), (x[50:], y[50:])] if rank == 0 else [(x, y)],)


def of_all_tools(rank: int | None) -> dict[str, dict[str, float]]:
    found = {}
    for classes, tools in ((False, TOOLS), (True, CLASSES)):
        model, x, y = data(classes)
        for name, tool in tools.items():
            for tensors in (True, False) if name in ONE_PASS else (not classes,):
                given = share(rank, x, y, tensors)
                found[f"{name}, {tensors=}, {classes=}"] = numbers(tool(model, *given))
    # Classes of which one process sees only the first two, and a probe of what separates all classes only together.
    _, x, y = data(classes=True)
    order = y.argsort()
    head = theory.linear_head(*share(rank, x[order], y[order], tensors=True), loss="cross_entropy")
    found["sorted classes"] = numbers(head)
    apart = F.one_hot(y[order], 3).double()
    head = theory.linear_head(*share(rank, apart, y[order], tensors=True), loss="cross_entropy")
    found["separable"] = {"attained": float(head.attained), "infimum": head.infimum}
    return found


def test_two_processes_are_one(tmp_path):
    """The same numbers in both, and as of one process with all rows."""
    run_both(WORKER, tmp_path)
    expected = of_all_tools(None)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys() == expected.keys()
    for name, values in expected.items():
        solved = any(part in name for part in ("huber", "classes=True", "sorted"))
        check_same(first[name], values, solved)
        assert second[name] == first[name], name
    assert expected["separable"] == {"attained": 0, "infimum": 0}


# More than fits in memory

STREAM = """
import resource, sys, time
import torch
from fastnest import theory

ROWS, FEATURES, BATCH = 1_000_000, 512, 4096

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def batches():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(FEATURES, 2, generator=generator)
    left = ROWS
    while left:
        n = min(BATCH, left)
        x = torch.randn(n, FEATURES, generator=generator)
        yield x, x @ weight + torch.randn(n, 2, generator=generator)
        left -= n

x, y = next(batches())
before = peak()
head = theory.linear_head(batches())
generator = torch.Generator().manual_seed(0)
off = float((head.weight - torch.randn(FEATURES, 2, generator=generator).T).abs().max())
print(peak() - before, head.risk, head.rank, off)
"""


def test_a_million_rows_in_bounded_memory():
    """A million rows of 512 features, 2 GB in float32, in less than 1 GiB beside the first batch.

    With noise of variance 1 in each of 2 outputs the risk is 2 to within a few times (2 * 2 / 1e6)^(1/2), and a weight
    off by a few times 1e-3.
    """
    path = str(Path(models.__file__).parents[2])
    command = [sys.executable, "-c", STREAM]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}  # threads that wait for each other's core
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    grown, risk, rank, off = map(float, done.stdout.split())
    assert grown < 2**30
    assert rank == 512
    assert risk == pytest.approx(2, abs=0.012)
    assert off < 0.006
