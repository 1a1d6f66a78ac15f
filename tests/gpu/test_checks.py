"""The checks for GPUs, by the C++ kernels (or the reference) on the CPU, and on results that are wrong."""

import json
import math
from functools import partial

import pytest
import torch
from gpu import checks
from gpu.stand_in import StandIn
from marks import needs_cpp

import fastnest
from fastnest.testing import OPS, Call, real_inputs, small_inputs

CPP = fastnest.backends()["cpp"] == "available"
BACKEND = "cpp" if CPP else "reference"
pytestmark = pytest.mark.usefixtures("one_thread")


def check(op: str, dtype: torch.dtype = torch.float32, **options) -> checks.Check:
    return checks.Check(op, dtype, StandIn(), BACKEND, **options)


def report(name: str, one: checks.Check) -> dict:
    return checks.report(name, one, "float32")


@pytest.fixture
def few_repeats(monkeypatch):
    monkeypatch.setattr(checks, "REPEATS", 3)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["nan_and_infinity", "repeats", "graphs", "streams", "chosen", "smallest"])
def test_checks_pass_where_the_kernels_are_right(op, name, few_repeats):
    found = report(name, check(op))
    assert found["verdict"] == "passed", found["what"]
    assert found["done"] == found["of"] > 0


@pytest.mark.parametrize("op", OPS)
def test_outputs_and_gradients(op):
    found = report("outputs_and_gradients", check(op, part=(1, 9)))
    assert found["verdict"] == "passed", found["what"]
    assert found["part"] == "1/9"


def test_compiled():
    found = report("compiled", check("batch_stats"))
    assert found["verdict"] == "passed", found["what"]


@pytest.mark.parametrize("op", OPS)
def test_large_by_many_repeats(op):
    """What is over 2^31 elements on a GPU, here over 2^19."""
    one = check(op, torch.bfloat16)
    found = checks.large(one, more_than=2**19)
    assert (found.failures, found.done) == ([], 1)


def test_large_is_larger_than_32_bits_count():
    for op, one in checks.LARGE.items():
        elements = max(torch.Size(shape).numel() for shape in (one.shapes()["x"], one.y_shape))
        repeats = 2 ** (checks.MOST // elements).bit_length()
        assert checks.MOST < elements * repeats < 1.05 * checks.MOST, op


def test_large_says_what_it_needs():
    found = report("large", checks.Check("dense_chain", torch.bfloat16, StandIn(free=2**30), BACKEND))
    assert found["verdict"] == "not run"
    assert found["what"] == "needs 41 GiB, 1 GiB are free"


def broken(monkeypatch, change):
    """Every step's results pass through change(call, results)."""
    step = Call.step
    monkeypatch.setattr(Call, "step", lambda call: change(call, step(call)))


@needs_cpp
@pytest.mark.parametrize("name", ["outputs_and_gradients", "nan_and_infinity", "large"])
def test_a_wrong_gradient_is_found(name, monkeypatch):
    def change(call, results):
        wrong = {"dx": results["dx"] * 1.05} if call.name == BACKEND else {}
        return results | wrong

    broken(monkeypatch, change)
    monkeypatch.setitem(checks.CHECKS, "large", partial(checks.large, more_than=2**16))
    found = report(name, check("residual_chain", part=(0, 9)))
    assert found["verdict"] == "failed"
    assert "dx" in found["what"]
    assert 0 < found["failed"] <= found["done"]


@pytest.mark.parametrize("name", ["repeats", "streams", "graphs"])
def test_bits_that_change_are_found(name, monkeypatch, few_repeats):
    calls = iter(range(10**6))

    def change(call, results):
        with torch.no_grad():
            results["dx"].view(-1)[0] += next(calls) * 1e-3
        return results

    broken(monkeypatch, change)
    found = report(name, check("batch_stats"))
    assert found["verdict"] == "failed"
    assert "dx differs" in found["what"]


@pytest.mark.parametrize("built", [(), ("residual_chain", "dense_chain")])
def test_what_is_built_in_cuda_is_checked_too(built, monkeypatch):
    """Everything but what runs unasked, in as many parts and dtypes as Triton's."""
    names = [f"{op}_{way}" for op in built for way in ("forward", "backward")]
    monkeypatch.setattr(checks._backend, "registered", lambda name: ("cuda",) if name in names else ())
    of = {"triton": set(), "cuda": set()}
    for job in checks.jobs():
        of[job["backend"]].add((job["op"], job["dtype"], job["check"], job["part"]))
    assert of["cuda"] == {key for key in of["triton"] if key[0] in built and key[2] != "chosen"}


def test_another_backend_is_found(monkeypatch):
    one = checks.Check("residual_chain", torch.float32, StandIn(), "triton")
    found = report("chosen", one)
    assert found["verdict"] == "failed"


def test_an_exception_is_a_failure_and_the_rest_still_runs():
    def function(one):
        if one == 2:
            raise ValueError("two")
        assert one != 3, "three"

    found = check("batch_stats").each([1, 2, 3, 4], function)
    assert (found.done, found.of, len(found.failures)) == (4, 4, 2)
    assert found.failures[0].startswith("ValueError: two of 2")
    assert found.failures[1].startswith("three")


def test_no_memory_beside_other_processes_is_no_failure():
    def function(one):
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = check("batch_stats").each([1, 2], function)
    assert (found.done, found.failures, found.not_run) == (0, [], "no memory: CUDA out of memory")


def test_time_that_is_up():
    late = check("batch_stats", until=0.0)
    assert late.each([1, 2], print).done == 0
    assert report("repeats", late) | {"seconds": 0} == {
        "check": "repeats",
        "op": "batch_stats",
        "backend": BACKEND,
        "dtype": "float32",
        "part": "0/1",
        "verdict": "not run",
        "done": 0,
        "of": 0,
        "failed": 0,
        "what": "no time left",
        "seconds": 0,
    }


def test_main_says_a_line_a_check(capsys):
    words = ["batch_stats", "float32", "chosen", "smallest", "--backend", BACKEND]
    assert checks.main(words, StandIn()) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["check"], line["verdict"]) for line in lines] == [("chosen", "passed"), ("smallest", "passed")]
    assert {line["backend"] for line in lines} == {BACKEND}
    assert checks.main(["batch_stats", "float32", "chosen", "--backend", "triton"], StandIn()) == 1


def test_jobs_are_every_check_of_every_op_and_dtype():
    jobs = list(checks.jobs())
    assert {job["check"] for job in jobs} | {"smallest", *checks.inference.CHECKS} == set(checks.CHECKS)
    for op in OPS:
        for dtype in checks.DTYPES:
            these = [job for job in jobs if (job["op"], job["dtype"], job["backend"]) == (op, dtype, "triton")]
            parts = [job["part"] for job in these if job["check"] == "outputs_and_gradients"]
            assert parts == [f"{i}/{checks.PARTS}" for i in range(checks.PARTS)]
            assert these[0]["check"] == "first"
    assert len({json.dumps(job) for job in jobs}) == len(jobs)


def test_jobs_come_by_risk():
    """Nothing comes again in full before everything has come once."""
    order = list(dict.fromkeys((job["check"], job["dtype"]) for job in checks.jobs()))
    names = [name for name, _ in order]
    assert names[:5] == [*["first"] * len(checks.DTYPES), "large"]
    assert [dtype for _, dtype in order[:4]] == ["bfloat16", "float32", "float16", "tf32"]
    risky = {"chosen", "graphs", "streams", "repeats", "compiled", "nan_and_infinity"}
    assert {name for name, dtype in order[5:11] if dtype == "bfloat16"} == risky
    assert {name for name, dtype in order[11:17] if dtype == "float32"} == risky
    assert set(names[17:]) == {"outputs_and_gradients"}


def test_the_first_check_has_an_awkward_size_and_a_real_one(monkeypatch):
    for op in OPS:
        (real,), (awkward,) = real_inputs(op), check(op).awkward()
        assert math.prod(real.x_shape) > 10**5
        assert all(size > 0 for size in real.y_shape)
        # No tile of 16 rows or pixels divides it, and several are needed.
        rows = math.prod(awkward.x_shape) // awkward.x_shape[1]
        assert awkward.sizes["n"] % 16
        assert rows > 100
    small = small_inputs("dense_chain")[:1]
    monkeypatch.setattr(checks, "real_inputs", lambda op: small)
    found = report("first", check("dense_chain"))
    assert (found["verdict"], found["done"], found["of"]) == ("passed", 2, 2)


def test_it_serves_jobs(capsys, monkeypatch):
    served = []
    monkeypatch.setattr(checks, "serve", lambda do: served.append(do))
    assert checks.main(["--serve"], StandIn()) == 0
    job = {"op": "batch_stats", "backend": BACKEND, "dtype": "bfloat16", "check": "smallest", "part": "0/1"}
    (line,) = served[0](job)
    assert {key: line[key] for key in job} == job
    assert line["verdict"] == "passed"
    (late,) = served[0]({**job, "until": 0.0})
    assert (late["verdict"], late["what"]) == ("not run", "no time left")
