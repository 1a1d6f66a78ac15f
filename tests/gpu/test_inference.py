"""The checks for kernels for inference alone, by those on the CPU and plain torch, and on results that are wrong."""

import math
from functools import partial

import pytest
import torch
from gpu import checks, inference
from gpu import packed_stand_in as operators
from gpu.stand_in import StandIn
from marks import needs_cpp

import fastnest
from fastnest import functional

BACKEND = "cpp" if fastnest.backends()["cpp"] == "available" else "reference"
OP = "dense_block2d"
pytestmark = pytest.mark.usefixtures("one_thread")


class Card(StandIn):
    def facts(self) -> dict:
        return {**super().facts(), "capability": [9, 0]}


def check(dtype: torch.dtype = torch.bfloat16, device=None, **options) -> checks.Check:
    return checks.Check(OP, dtype, device or Card(), BACKEND, inference=True, **{"operators": operators, **options})


def report(name: str, one: checks.Check) -> dict:
    return checks.report(name, one, "bfloat16")


@pytest.fixture
def here(monkeypatch):
    """The kernels on the CPU run unasked, a few times, on small cases."""
    cases = [one for one in inference.samples() if math.prod(one.x_shape) < 2**13][::6]
    monkeypatch.setattr(inference, "samples", lambda: cases)
    monkeypatch.setattr(inference, "expected_backend", lambda device, dtype: BACKEND)
    monkeypatch.setattr(checks, "REPEATS", 3)


def test_cases_cover_what_the_kernels_take():
    every = [one for cases in (inference.samples(), inference.small(), inference.real()) for one in cases]
    assert {one.sizes["w"] for one in every} >= set(range(1, 61))
    growth, hidden = ({size for one in every for size in one.sizes[letter]} for letter in "db")
    assert {12, 16, 24, 32, 40, 48} <= growth <= set(range(1, 49))
    assert {48, 64, 96, 128, 160, 192} <= hidden <= set(range(1, 193))
    assert {one.sizes["n"] for one in every} >= {1, 2, 3, 5, 17}
    assert {"dropout" in one.absent for one in every} == {True, False}
    for one in every:
        assert one.y_shape[1] % 8 == 0, one  # 16 bytes in bfloat16
        assert not {"norm1_mean", "norm2_var", "conv1"} & set(one.absent)
        assert len(one.sizes["b"]) == len(one.sizes["d"])
    assert len({str(one) for one in every}) == len(every)


def test_the_large_one_is_larger_than_32_bits_count():
    elements = torch.Size(inference.LARGE[OP].y_shape).numel()
    repeats = 2 ** (checks.MOST // elements).bit_length()
    assert checks.MOST < elements * repeats < 1.05 * checks.MOST
    n, _, h, w = inference.LARGE[OP].x_shape
    assert n * h * w * repeats < 2**31 - 2**10  # pixels that the op takes


@pytest.mark.parametrize(
    "name",
    [*inference.CHECKS, *("nan_and_infinity", "repeats", "graphs", "streams", "compiled", "smallest")],
)
def test_checks_pass_where_the_kernels_are_right(name, here):
    found = report(name, check())
    assert found["verdict"] == "passed", found["what"]
    assert found["done"] == found["of"] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_outputs(dtype):
    found = report("outputs_and_gradients", check(dtype, part=(2, 11)))
    assert found["verdict"] == "passed", found["what"]


def test_large_by_many_repeats():
    found = checks.large(check(), more_than=2**19)
    assert (found.failures, found.done) == ([], 1)


def test_the_first_check_has_an_awkward_size_and_real_ones(monkeypatch):
    monkeypatch.setattr(inference, "real", inference.small)
    found = report("first", check())
    assert (found["verdict"], found["done"]) == ("passed", 1 + len(inference.small()))
    (awkward,) = check().awkward()
    assert awkward.sizes["n"] % 16
    assert awkward.sizes["w"] > 14


def wrong(monkeypatch, change):
    """What the kernels return, where they are forced or run unasked, passes through change(arguments, y)."""
    function = functional.dense_block2d

    def changed(**arguments):
        y = function(**arguments)
        return y if fastnest._backend.asked.forced() == "reference" else change(arguments, y)

    monkeypatch.setattr(functional, OP, changed)


@needs_cpp
@pytest.mark.parametrize("name", ["outputs_and_gradients", "nan_and_infinity", "surrounded", "large", "compiled"])
def test_a_wrong_output_is_found(name, monkeypatch, here):
    wrong(monkeypatch, lambda arguments, y: y * 1.05)
    monkeypatch.setitem(checks.CHECKS, "large", partial(checks.large, more_than=2**16))
    found = report(name, check(part=(0, 3)))
    assert found["verdict"] == "failed"
    assert "y [" in found["what"]


@needs_cpp
def test_numbers_beside_the_arguments_are_found(monkeypatch, here):
    def change(arguments, y):
        x = arguments["x"]
        room = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
        if room > x.numel() + 64:  # a part of something: the channel behind its first pixel's last
            behind = x.as_strided((1,), (1,), x.storage_offset() + x.shape[1])
            y = y + 0 * behind
        return y

    wrong(monkeypatch, change)
    found = report("surrounded", check())
    assert found["verdict"] == "failed"
    assert "NaN or Inf differ" in found["what"]


@needs_cpp
def test_packed_weights_that_are_kept_too_long_are_found(monkeypatch):
    first = {}
    wrong(monkeypatch, lambda arguments, y: first.setdefault((id(arguments["conv2"][0]), y.shape), y))
    found = report("kept", check())
    assert found["verdict"] == "failed"
    assert "was changed in place" in found["what"]


def test_another_backend_is_found():
    found = report("evaluation", check())
    assert found["verdict"] == "failed"
    assert "evaluation at 56 x 56" in found["what"]


@pytest.mark.parametrize(
    ("capability", "dtype", "backend"),
    [
        ([9, 0], torch.bfloat16, "cuda"),
        ([9, 0], torch.float16, "triton"),
        ([10, 0], torch.bfloat16, "triton"),
    ],
)
def test_what_was_measured_runs(capability, dtype, backend):
    card = StandIn()
    card.facts = lambda: {"capability": capability}
    assert inference.expected_backend(card, dtype) == backend


def test_a_wrong_shape_is_found():
    class Wrong:
        dense_block2d_pack, conv_3x3 = operators.dense_block2d_pack, operators.conv_3x3

        @staticmethod
        def norm_conv_1x1(x, *arguments):
            y = operators.norm_conv_1x1(x, *arguments)
            return y * 1.02 if arguments[-1] == "split" else y

    found = report("shapes", check(operators=Wrong))
    assert (found["verdict"], found["failed"]) == ("failed", 3)
    assert report("smallest", check(operators=Wrong))["verdict"] == "failed"


def test_each_convolution_is_forced_into_every_shape():
    every = {(one.kind, one.shape) for one in inference.forced_shapes()}
    assert every == {(kind, shape) for kind, shapes in inference.convolutions.SHAPES.items() for shape in ("", *shapes)}
    assert all(one.of > one.c + one.growth and one.of % 8 == 0 for one in inference.forced_shapes())


@pytest.fixture
def forward_alone(monkeypatch):
    monkeypatch.setattr(checks._backend, "registered", lambda name: ("cuda",) if name == f"{OP}_forward" else ())


def test_jobs_where_there_is_no_backward(forward_alone):
    jobs = [job for job in checks.jobs() if job["backend"] == "cuda"]
    assert {job["op"] for job in jobs} == {OP}
    assert {job["dtype"] for job in jobs} == set(inference.DTYPES)
    names = [job["check"] for job in jobs if job["dtype"] == "bfloat16"]
    assert set(names) | {"smallest", "chosen"} == set(checks.CHECKS)
    assert names[0] == "first"
    assert len({tuple(job.values()) for job in jobs}) == len(jobs)
    for dtype in ("float16", "tf32"):
        assert {job["check"] for job in jobs if job["dtype"] == dtype} >= {"first", "shapes", "surrounded", "graphs"}


def test_a_job_knows_that_there_is_no_backward(forward_alone, monkeypatch):
    seen = []
    monkeypatch.setattr(checks, "report", lambda name, one, label: seen.append((one.inference, label)) or {})
    for backend in ("cuda", "triton"):
        list(checks.work({"op": OP, "backend": backend, "dtype": "tf32", "check": "first"}, StandIn()))
    assert seen == [(True, "tf32"), (False, "tf32")]
