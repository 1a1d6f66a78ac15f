"""What is timed on a GPU and how a row comes about, with the CPU and a clock of ones and twos in its place."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu.stand_in import StandIn
from torch.autograd import DeviceType

import fastnest
from fastnest.benchmarks import contest, run
from fastnest.benchmarks import problem as problem_module
from fastnest.benchmarks.gpu import cases, device, measure, work
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
    assert cases.named(names[-1]).name == names[-1]


def test_cheap_peers_come_first_and_whole_networks_last():
    pairs = cases.compiled_pairs()
    assert len({(case.name, peer) for case, peer in pairs}) == len(pairs)
    network = [cases.is_network(case) for case, _ in pairs]
    assert network == sorted(network)
    quick = [peer for (_, peer), one in zip(pairs, network, strict=True) if not one]
    assert list(dict.fromkeys(quick)) == list(cases.COMPILED)
    assert quick == sorted(quick, key=cases.COMPILED.index)
    modes = [case.mode for (case, _), one in zip(pairs, network, strict=True) if one]
    assert modes == sorted(modes)  # forward before the training step
    limits = [cases.compile_limit(case) for case, _ in pairs]
    assert min(limits) < 100 < 95 * 2 < limits[-1]  # of a training step of DenseNet-121, which took more than 95 s
    assert {peer for _, peer in cases.compiled_pairs(["compile"])} == {"compile"}


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
    assert {case.backend for case, _ in cases.compiled_pairs()} == {""}


def test_a_network_in_evaluation_is_timed_beside_triton_where_cuda_runs_its_blocks(monkeypatch):
    def peers() -> dict[str, tuple[str, ...]]:
        return {case.mode: case.peers for case in cases.in_order() if case.subject == "DenseNet-121"}

    assert "triton" not in peers()["forward"]
    monkeypatch.setattr(
        cases._backend, "registered", lambda name: ("cuda",) if name.startswith("dense_block2d") else ()
    )
    assert "triton" in peers()["forward"]
    assert "triton" not in peers()["train"]


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
    row = measure.measure(case, (*cases.AT_ONCE, "reference"), StandIn())
    assert (row["name"], row["backend"]) == (f"{SMALL[0].name.replace('train', mode)}-cpp", "cpp")
    assert set(row["graph_us"]) == set(row["error"]) == {"fastnest", "reference", "eager"}


def test_a_backend_that_cannot_run_is_told():
    with pytest.raises(ValueError, match="unknown backend 'nothing'"):
        measure.measure(replace(SMALL[0], backend="nothing"), cases.AT_ONCE, StandIn())


def test_cases_are_listed_by_name_with_their_peers():
    every = work.listed("", None, StandIn())
    assert list(every["cases"]) == [case.name for case in cases.in_order()]
    assert len(every["compiled"]) == len(cases.compiled_pairs())
    dense = work.listed("^dense_chain-train", ["compile"], StandIn())
    assert all(name.startswith("dense_chain-train") for name in dense["cases"])
    assert {tuple(peers) for peers in dense["cases"].values()} <= {("eager",)}
    assert {(p["peer"], p["network"], p["tuned"]) for p in dense["compiled"]} == {("compile", False, False)}
    network = work.listed("DenseNet-121-train", None, StandIn())
    assert next(iter(network["cases"].values())) == ["eager", "memory-efficient"]
    assert all(pair["network"] for pair in network["compiled"])
    assert {pair["peer"]: pair["tuned"] for pair in network["compiled"]} == {
        "compile": False,
        "max-autotune-no-cudagraphs": True,
        "max-autotune": True,
    }


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_row(case):
    row = measure.measure(case, cases.AT_ONCE, StandIn())
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
    runs = measure.measure(SMALL[2], cases.AT_ONCE, StandIn())["runs"]
    assert "copied" not in runs[0]


def test_compiled_peers_and_their_graphs():
    case = replace(SMALL[1], peers=("eager", *cases.COMPILED))
    row = measure.measure(case, ("eager", *cases.COMPILED), StandIn())
    assert set(row["call_us"]) == {"fastnest", "eager", *cases.COMPILED}
    assert set(row["graph_us"]) == set(row["call_us"]) - {"max-autotune"}  # which has its own
    at_once = measure.measure(case, cases.AT_ONCE, StandIn())
    assert set(at_once["call_us"]) == {"fastnest", "eager"}


@pytest.fixture
def small(monkeypatch):
    """The small cases, as if they were those of a GPU."""
    monkeypatch.setattr(cases, "groups", lambda: {case.name: [case] for case in SMALL})


def answer(what: str, case: Case, *peers: str, build=run.problem, device=None) -> dict:
    return work.answer({"do": what, "name": case.name, "peers": peers}, device or StandIn(), build)


def test_answers(small):
    assert answer("measure", SMALL[1], "eager")["rows"]["name"] == SMALL[1].name
    assert answer("compile", SMALL[1], "fastnest")["compiled"].keys() == {"name", "peer", "seconds", "what"}
    assert work.answer({"do": "rates"}, StandIn()).keys() == {"rates", "device"}
    assert list(work.answer({"do": "list", "only": "dense", "peers": None}, StandIn())["cases"]) == [SMALL[1].name]
    (line,) = work.work({"do": "rates"}, StandIn())
    assert line["device"]["card"] == "Stand In (R) 5"


def test_wrong_numbers_have_no_speed(small):
    def build(case, device):
        problem = run.problem(case, device)
        call = problem.forms["fastnest"].call
        problem.forms["fastnest"].call = lambda *leaves: call(*leaves) * 1.1
        return problem

    found = answer("measure", SMALL[1], "eager", build=build)
    assert found["failures"]["name"] == SMALL[1].name
    assert found["failures"]["what"].startswith("wrong numbers, no speed reported: ")


def test_a_peer_that_computes_something_else_is_left_out(small):
    def build(case, device):
        problem = run.problem(case, device)
        eager = problem.forms["eager"]
        problem.forms["memory-efficient"] = replace(eager, call=lambda *leaves: eager.call(*leaves) * 2)
        return problem

    case = replace(SMALL[1], peers=("eager", "memory-efficient"))
    row = measure.measure(case, case.peers, StandIn(), build=build)
    assert set(row["call_us"]) == set(row["graph_us"]) == set(row["error"]) == {"fastnest", "eager"}
    assert list(row["wrong_peers"]) == ["memory-efficient"]
    assert "memory-efficient is off by" in row["wrong_peers"]["memory-efficient"]


def test_what_cannot_be_built_or_captured_is_told(small):
    def build(case, device):
        raise torch.OutOfMemoryError("no room")

    for what in ("measure", "compile", "profile"):
        assert answer(what, SMALL[0], "eager", build=build)["failures"]["what"] == "OutOfMemoryError: no room"

    class NoGraphs(StandIn):
        def capture(self, step):
            raise RuntimeError("not now")

    row = answer("measure", SMALL[0], "eager", device=NoGraphs())["rows"]
    assert row["no_graph"] == dict.fromkeys(("fastnest", "eager"), "RuntimeError: not now")
    assert row["graph_us"] == row["ratios"]["graph"] == {}
    assert row["call_us"]


def test_a_fault_behind_an_answer_ends_the_process(small):
    class Faulty(StandIn):
        def synchronize(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    lines = work.work({"do": "rates"}, Faulty())
    next(lines)
    with pytest.raises(SystemExit):
        next(lines)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_profile_is_of_fastnest_and_of_eager(case):
    found = measure.profile(case, StandIn())
    assert list(found["of"]) == ["fastnest", "eager"]
    assert found["flops"] > 0
    assert f"on {BACKEND}" in found["runs"][0] or BACKEND == "reference"


def test_kernels_of_a_profile():
    """As torch's profiler has them: events with a device, a name and a range of time."""

    def event(name: str, microseconds: float, device=DeviceType.CUDA):
        return SimpleNamespace(
            name=name, device_type=device, time_range=SimpleNamespace(elapsed_us=lambda: microseconds)
        )

    events = [event("a", 2.0), event("b", 10.0), event("a", 4.0), event("aten::mm", 99.0, DeviceType.CPU)] * 3
    found = device.kernels_of(events, 3)
    assert found == {
        "launches": 3.0,
        "kernels_us": 16.0,
        "kernels": [{"name": "b", "count": 1.0, "us": 10.0}, {"name": "a", "count": 2.0, "us": 6.0}],
    }
    many = device.kernels_of([event(f"{i}" * 200, 1.0) for i in range(2 * device.KERNELS)], 1)
    assert (len(many["kernels"]), many["launches"]) == (device.KERNELS, 2 * device.KERNELS)
    assert {len(kernel["name"]) for kernel in many["kernels"]} == {device.NAME}
    assert device.kernels_of([], 3) == {"launches": 0.0, "kernels_us": 0.0, "kernels": []}


def test_rates_leave_the_settings_as_they_were(monkeypatch):
    """A cache of torch.compile is only for processes with the same."""
    gpu = device.Gpu()
    for name in ("randint", "randn"):
        of = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, of=of, device, **options: of(*a, **options))
    monkeypatch.setattr(device.Gpu, "_median", lambda self, step: 1.0)
    monkeypatch.setattr(device.Gpu, "free_bytes", lambda self: 8 * 2**10)
    monkeypatch.setattr(device, "PRODUCTS", {"tf32": (torch.float32, 4), "float32": (torch.float32, 2)})
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        gpu.take_float32(tf32=False)
        assert gpu.rates() == {"copy_bytes_per_second": 2 * 2**10, "flops_per_second": {"tf32": 128.0, "float32": 16.0}}
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        monkeypatch.setattr(device, "PRODUCTS", {"tf32": (torch.float32, 4)})
        gpu.rates()
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_what_one_process_compiles_another_finds(tmp_path):
    """torch.compile's caches on disk, though the process that times has measured rates, and set TF32, before."""
    tests = Path(__file__).parents[1]
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tests)}
    words = [sys.executable, Path(__file__).with_name("cached.py")]
    found = [
        json.loads(subprocess.run([*words, way], capture_output=True, text=True, check=True,
                                  env={**os.environ, **environment}).stdout.splitlines()[-1])
        for way in ("compile", "measure")
    ]  # fmt: skip
    assert found[0] == {"hit": 0, "miss": 1}
    assert found[1] == {"hit": 1, "miss": 0}


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
