"""What is timed on a GPU and how a row comes about, with the CPU and a clock of ones and twos in its place."""

from dataclasses import replace

import pytest
import torch
from gpu.stand_in import StandIn

import fastnest
from fastnest.benchmarks import contest, run
from fastnest.benchmarks import problem as problem_module
from fastnest.benchmarks.gpu import cases, measure
from fastnest.benchmarks.problem import Case, output_gradient

pytestmark = pytest.mark.usefixtures("one_thread")
BACKEND = "cpp" if fastnest.backends()["cpp"] == "available" else "reference"
SMALL = (
    Case("residual_chain", "train", "bfloat16", {"n": 33, "m": 64, "k": 16, "l": 3}, ("eager",)),
    Case("dense_chain", "forward", "bfloat16", {"n": 9, "in": 16, "d": 8, "l": 3, "h": 0}, ("eager",)),
    Case("bottleneck stage", "train", "bfloat16", {"n": 4, "px": 8, "c": 16, "k": 8, "b": 2}, ("eager",)),
    Case("bottleneck stage", "forward", "bfloat16", {"n": 2, "px": 8, "c": 16, "k": 8, "b": 2}, ("eager",)),
)


def test_every_group_begins_before_any_goes_on():
    names = [case.name for case in cases.in_order()]
    groups = cases.groups()
    assert len(names) == len(set(names)) == sum(map(len, groups.values()))
    assert names[: len(groups)] == [group[0].name for group in groups.values()]
    compiled = cases.in_order(compiled=True)
    assert sorted(case.name for case in compiled) == sorted(names)
    assert compiled[-1].subject == "DenseNet-121"


def test_cases_cover_what_is_promised():
    every = cases.in_order()
    rows = [case.sizes for case in every if case.subject == "residual_chain" and case.mode == "forward"]
    assert {256, 512, 1024} <= {sizes["m"] for sizes in rows}
    assert {sizes["k"] for sizes in rows} == {64}
    assert {8, 16, 32} <= {sizes["l"] for sizes in rows}
    assert {1, 16, 64, 256, 1024, 4096, 65536} <= {sizes["n"] for sizes in rows}
    assert {1, 8, 64, 256} == {case.sizes["n"] for case in every if case.subject == "DenseNet-121"}
    assert {8, 16, 48} <= {case.sizes["l"] for case in every if case.subject == "dense_chain"}
    for subject in ("residual_chain", "DenseNet-121", "bottleneck stage", "dense_chain"):
        assert {case.mode for case in every if case.subject == subject} == {"forward", "train"}
    assert all("memory-efficient" in c.peers for c in every if (c.subject, c.mode) == ("DenseNet-121", "train"))


def test_what_is_built_in_cuda_is_timed_beside_triton(monkeypatch):
    """The same sizes as without it, once, and not again beside compiled peers."""
    assert {case.backend for case in cases.in_order()} <= {"", "cuda"}
    monkeypatch.setattr(
        cases._backend,
        "registered",
        lambda name: ("cuda",) if name.startswith(("residual_chain", "dense_chain")) else (),
    )
    every = cases.in_order()
    cuda = [case for case in every if case.backend == "cuda"]
    plain = [case for case in every if not case.backend and case.subject in ("residual_chain", "dense_chain")]
    assert {replace(case, backend="", peers=()).name for case in cuda} == {case.name for case in plain}
    assert len({case.name for case in every}) == len(every)
    assert len(cuda) == len(plain)
    assert {case.peers for case in cuda} == {("triton", "eager")}
    assert set(cases.AT_ONCE) >= {"triton", "eager"}
    assert {case.backend for case in measure.chosen("first")} == {"", "cuda"}
    assert {case.backend for case in measure.chosen("compiled")} == {""}


@pytest.mark.skipif(BACKEND != "cpp", reason="the C++ kernels are not built")
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_a_row_of_two_backends(mode, monkeypatch):
    """cpp in the place of CUDA C++, the reference in that of Triton: each step runs the one that it is forced on."""
    for module in (contest, problem_module):
        monkeypatch.setattr(module, "BACKENDS", ("reference",))
    case = replace(SMALL[0], mode=mode, backend="cpp", peers=("reference", "eager"))
    problem = run.problem(case)
    with torch.set_grad_enabled(mode == "train"):
        steps = contest.steps(problem, case, output_gradient(problem))
        runs = [measure.what_runs(steps[name])[0] for name in ("fastnest", "reference")]
    assert runs == [
        f"1 x residual_chain on {name} (forced by fastnest.backend({name!r}))" for name in ("cpp", "reference")
    ]
    row = measure.attempt(case, (*cases.AT_ONCE, "reference"), StandIn())["row"]
    assert (row["name"], row["backend"]) == (f"{SMALL[0].name.replace('train', mode)}-cpp", "cpp")
    assert set(row["graph_us"]) == set(row["error"]) == {"fastnest", "reference", "eager"}


def test_a_backend_that_cannot_run_is_told():
    found = measure.attempt(replace(SMALL[0], backend="nothing"), cases.AT_ONCE, StandIn())
    assert "unknown backend 'nothing'" in found["failure"]["what"]


def test_chosen_by_name_and_behind_the_one_that_died():
    every = [case.name for case in measure.chosen("first")]
    assert every == [case.name for case in cases.in_order()]
    assert [case.name for case in measure.chosen("first", "", every[2])] == every[3:]
    dense = [case.name for case in measure.chosen("compiled", "dense_chain-train")]
    assert all(name.startswith("dense_chain-train") for name in dense)
    assert [case.name for case in measure.chosen("compiled", "dense_chain-train", dense[-1])] == []


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_row(case):
    row = measure.attempt(case, cases.AT_ONCE, StandIn())["row"]
    assert {key: row[key] for key in ("name", "subject", "mode", "dtype", "sizes")} == {
        "name": case.name,
        "subject": case.subject,
        "mode": case.mode,
        "dtype": case.dtype,
        "sizes": case.sizes,
    }
    assert set(row["call_us"]) == set(row["graph_us"]) == set(row["error"]) == {"fastnest", "eager"}
    assert row["ratios"]["call"] == {"eager": row["call_us"]["eager"] / row["call_us"]["fastnest"]}
    assert set(row["memory_bytes"]) == ({"fastnest", "eager"} if case.mode == "train" else set())
    assert row["no_graph"] == {}
    assert f"on {BACKEND}" in row["runs"][0] or BACKEND == "reference"
    assert row["flops"] > 0
    assert row["bytes"] == run.problem(case).bytes * (2 if case.mode == "train" else 1)


def test_images_step_on_a_channels_last_gradient():
    runs = measure.attempt(SMALL[2], cases.AT_ONCE, StandIn())["row"]["runs"]
    assert "copied" not in runs[0]


def test_compiled_peers_and_their_graphs():
    case = replace(SMALL[1], peers=("eager", *cases.COMPILED))
    row = measure.attempt(case, ("eager", *cases.COMPILED), StandIn())["row"]
    assert set(row["call_us"]) == {"fastnest", "eager", *cases.COMPILED}
    assert set(row["graph_us"]) == {"fastnest", "eager", "max-autotune-no-cudagraphs"}  # the other has its own
    at_once = measure.attempt(case, cases.AT_ONCE, StandIn())["row"]
    assert set(at_once["call_us"]) == {"fastnest", "eager"}


def test_wrong_numbers_have_no_speed():
    def build(case, device):
        problem = run.problem(case, device)
        call = problem.forms["fastnest"].call
        problem.forms["fastnest"].call = lambda *leaves: call(*leaves) * 1.1
        return problem

    found = measure.attempt(SMALL[1], cases.AT_ONCE, StandIn(), build)
    assert found["failure"]["name"] == SMALL[1].name
    assert found["failure"]["what"].startswith("wrong numbers, no speed reported: ")


def test_what_cannot_be_built_or_captured_is_told():
    def build(case, device):
        raise torch.OutOfMemoryError("no room")

    assert measure.attempt(SMALL[0], cases.AT_ONCE, StandIn(), build)["failure"]["what"] == "OutOfMemoryError: no room"

    class NoGraphs(StandIn):
        def capture(self, step):
            raise RuntimeError("not now")

    row = measure.attempt(SMALL[0], cases.AT_ONCE, NoGraphs())["row"]
    assert row["no_graph"] == dict.fromkeys(("fastnest", "eager"), "RuntimeError: not now")
    assert row["graph_us"] == row["ratios"]["graph"] == {}
    assert row["call_us"]


def test_interleaved_rounds_end_with_the_time():
    order, now = [], [0.0]

    def timer(name):
        def time() -> float:
            order.append(name)
            now[0] += 0.125
            return len(order)

        return time

    times = measure.interleaved({"a": timer("a"), "b": timer("b")}, seconds=2.0, clock=lambda: now[0])
    assert order == ["a", "b"] * 8
    assert times == {"a": list(range(1, 17, 2)), "b": list(range(2, 17, 2))}
    now[0] = 0.0
    least, most = measure.ROUNDS
    assert len(measure.interleaved({"a": timer("a")}, seconds=0.0, clock=lambda: now[0])["a"]) == least
    assert len(measure.interleaved({"a": timer("a")}, seconds=1e9, clock=lambda: now[0])["a"]) == most


def test_evaluation_in_parts_is_the_whole(monkeypatch):
    from fastnest.benchmarks import bench_images

    problem = run.problem(SMALL[3])
    whole = problem.exact(torch.zeros(()))
    monkeypatch.setattr(bench_images, "IMAGES", 1)
    torch.testing.assert_close(problem.exact(torch.zeros(())), whole)
    assert output_gradient(problem).dtype is torch.bfloat16
