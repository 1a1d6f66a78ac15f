import re
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from marks import needs_cpp
from torch._subclasses.fake_tensor import FakeTensorMode

import fastnest
from fastnest import _backend
from fastnest._backend import asked, choice, installed, measured
from fastnest.functional import residual_chain
from fastnest.ops.residual_chain import cuda_limit
from fastnest.reference.residual_chain import Inputs

# Those that take the CPU tensors of these tests.
AVAILABLE = [name for name in ("reference", "cpp") if fastnest.backends()[name] == "available"]


def call(dtype=torch.float32, **options):
    x = torch.ones(3, 5, dtype=dtype)
    return residual_chain(x, torch.ones(2, 4, 5, dtype=dtype), torch.ones(2, 5, 4, dtype=dtype), **options)


def chosen(function=call):
    with _backend.logging_choices() as log:
        function()
    return [(choice.backend, choice.reason) for choice in log]


def test_backends_says_why_not():
    states = fastnest.backends()
    assert list(states) == ["reference", "cpp", "triton", "cuda"]
    assert states["reference"] == "available"
    for state in states.values():
        assert state == "available" or state.startswith(
            ("not built", "built but not loadable", "built for", "not installed", "no GPU", "no kernels for")
        )


@pytest.mark.parametrize("name", AVAILABLE)
def test_forcing(name):
    with fastnest.backend(name):
        assert chosen() == [(name, f"forced by fastnest.backend({name!r})")]
    assert chosen() == [(AVAILABLE[-1], "")] or not _backend.CPP_IS_BUILT


def test_innermost_wins_and_the_outer_one_comes_back():
    for name in AVAILABLE:
        with fastnest.backend(name):
            with fastnest.backend("reference"):
                assert chosen()[0][0] == "reference"
            assert chosen()[0][0] == name
            with pytest.raises(ZeroDivisionError), fastnest.backend("reference"):
                raise ZeroDivisionError
            assert chosen()[0][0] == name
    assert asked._asked == ()


@needs_cpp
def test_forcing_holds_for_one_thread():
    seen = []
    with fastnest.backend("reference"):
        thread = threading.Thread(target=lambda: seen.extend(chosen()))
        thread.start()
        thread.join()
    assert seen == [("cpp", "")]


def test_unknown_and_unavailable(monkeypatch):
    monkeypatch.setattr(installed, "CUDA_CODES", ())
    with pytest.raises(
        ValueError, match=r"unknown backend 'cudnn'; known: reference, cpp, triton, cuda; available here: ref"
    ):
        fastnest.backend("cudnn")
    with pytest.raises(RuntimeError, match=r"cuda cannot run here: not built: .*\. Available here: reference"):
        fastnest.backend("cuda")


@needs_cpp
def test_a_forced_backend_that_cannot_take_the_call():
    message = r"residual_chain: the forced backend cpp cannot take this call \(torch.float64 is .*reference can"
    with fastnest.backend("cpp"), pytest.raises(RuntimeError, match=message):
        call(torch.float64)


def test_reasons():
    ((name, reason),) = chosen(lambda: call(torch.float64))
    assert name == "reference"
    assert reason.startswith("torch.float64 is computed exactly" if _backend.CPP_IS_BUILT else "cpp is not built")
    meta = [torch.empty(shape, device="meta") for shape in ((3, 5), (2, 4, 5), (2, 5, 4))]
    ((name, reason),) = chosen(lambda: residual_chain(*meta))
    assert name == "reference"
    assert "meta" in reason or not _backend.CPP_IS_BUILT


@needs_cpp
def test_copies_are_noted():
    """A stride that the kernel cannot take costs a copy, and says so."""
    x, down, up = torch.ones(5, 3).t(), torch.ones(2, 4, 5), torch.ones(2, 4, 5).transpose(1, 2)
    ((name, reason),) = chosen(lambda: residual_chain(x, down, up))
    assert name == "cpp"
    assert reason == ("x is copied first, from strides [1, 3] to rows that a kernel reads; "
                      "up is copied first, from strides [20, 1, 5] to rows that a kernel reads")  # fmt: skip


def test_results_do_not_depend_on_logging():
    with _backend.logging_choices():
        logged = call()
    assert torch.equal(logged, call())


def test_triton_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(installed, "TRITON_IS_INSTALLED", False)
    assert fastnest.backends()["triton"] == 'not installed: pip install "fastnest-torch[triton]"'
    monkeypatch.setattr(installed, "TRITON_IS_INSTALLED", True)
    monkeypatch.setattr(installed, "TRITON_IS_INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fastnest.backends()["triton"].startswith("no GPU that torch can use; install")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert fastnest.backends()["triton"] == "no kernels for GPUs older than compute capability 8.0, got 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert fastnest.backends()["triton"] == "available"


def test_gpu_tensors_run_triton(monkeypatch):
    """By tensors that say they are on a GPU, with nothing behind them."""
    monkeypatch.setattr(installed, "TRITON_IS_INSTALLED", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    with FakeTensorMode():
        x = torch.empty(3, 5, device="cuda:0")
        assert choice.choose("residual_chain", x) == "triton"
        assert choice.choose("residual_chain", x.double()) == "reference"
        assert choice.choose("residual_chain", x, "too wide") == "reference"
        assert choice.choose("dense_chain", x) == "triton"


def test_accelerated_blocks_ask_about_the_device_of_their_input(monkeypatch):
    monkeypatch.setattr(installed, "TRITON_IS_INSTALLED", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    with FakeTensorMode():
        x = torch.empty(2, 3, 4, 4, device="cuda:0")
        assert choice.why_no_kernel(x, x) is None
        assert choice.why_no_kernel(x.half(), x) is not None
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
        assert choice.why_no_kernel(x, x).startswith("no kernels for GPUs older")


def test_triton_takes_no_cpu_tensors_unless_interpreted(monkeypatch):
    x = torch.ones(3, 5)
    monkeypatch.setattr(choice, "TRITON_IS_INTERPRETED", False)
    with asked.asking("forced", "triton"):
        with pytest.raises(
            RuntimeError, match=r"triton cannot take this call \(no kernels in Triton for cpu tensors\)"
        ):
            choice.choose("residual_chain", x)
        monkeypatch.setattr(choice, "TRITON_IS_INTERPRETED", True)
        assert choice.choose("residual_chain", x) == "triton"


def on_a_gpu(
    monkeypatch, capability=(9, 0), codes=("sm_90a", "compute_90"), ops=("residual_chain",), kib=227
) -> torch.Tensor:
    """As on a GPU with Triton and the kernels in CUDA C++ of some ops: a tensor that says it is there."""
    monkeypatch.setattr(installed, "TRITON_IS_INSTALLED", True)
    monkeypatch.setattr(installed, "CUDA_CODES", codes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    properties = SimpleNamespace(major=capability[0], shared_memory_per_block_optin=kib * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    names = [f"{op}_{way}" for op in ops for way in ("forward", "backward")]
    monkeypatch.setattr(installed, "_registered", lambda name: ("cpp", "cuda") if name in names else ("cpp",))
    with FakeTensorMode():
        return torch.empty(3, 5, device="cuda:0")


def choose(*arguments, **sizes) -> tuple[str, str]:
    """The backend and the reason that explain shows."""
    with _backend.logging_choices() as log:
        found = choice.choose(*arguments, **sizes)
    assert found == log[0].backend
    return found, log[0].reason


def test_cuda_says_what_is_missing(monkeypatch):
    on_a_gpu(monkeypatch)
    assert fastnest.backends()["cuda"] == "available"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert fastnest.backends()["cuda"] == "no kernels for GPUs older than compute capability 8.0, got 7.5"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert fastnest.backends()["cuda"].startswith("no kernels for AMD GPUs")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fastnest.backends()["cuda"].startswith("no GPU that torch can use; install")
    monkeypatch.setattr(installed, "CUDA_CODES", ())
    assert fastnest.backends()["cuda"].startswith("not built: install fastnest again beside a CUDA toolkit")


@pytest.mark.parametrize(
    ("codes", "runs", "does_not"),
    [
        (("sm_80",), [(8, 0), (8, 9)], [(9, 0), (12, 0)]),
        (("sm_90a", "compute_80"), [(8, 0), (8, 6), (9, 0), (10, 3)], []),
        (("sm_90a",), [(9, 0)], [(8, 9), (10, 0)]),
        (("sm_100a", "compute_100a"), [(10, 0)], [(10, 3), (12, 0)]),
        (("sm_100f", "compute_100f"), [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        (("sm_120", "compute_120"), [(12, 0), (12, 1), (13, 0)], [(8, 0), (10, 3)]),
    ],
)
def test_what_was_built_runs_on_which_gpus(codes, runs, does_not, monkeypatch):
    for capability in [*runs, *does_not]:
        on_a_gpu(monkeypatch, capability, codes)
        state = fastnest.backends()["cuda"]
        assert (state == "available") == (capability in runs), f"{capability}: {state}"
    for major, minor in does_not:
        on_a_gpu(monkeypatch, (major, minor), codes)
        said = fastnest.backends()["cuda"]
        assert said.startswith(f"built for {', '.join(codes)}, not for this GPU")
        assert said.endswith(f"TORCH_CUDA_ARCH_LIST={major}.{minor}")


def test_triton_runs_where_no_measurement_prefers_cuda(monkeypatch):
    x = on_a_gpu(monkeypatch)
    monkeypatch.setattr(measured, "ROWS", ())
    assert choose("residual_chain", x) == ("triton", "triton: no measurement prefers cuda")
    assert choose("dense_chain", x) == ("triton", "")  # of which there are none in CUDA C++


def test_measurements_choose_by_op_dtype_and_sizes(monkeypatch):
    x = on_a_gpu(monkeypatch, ops=("residual_chain", "dense_chain"))
    row = measured.Row("residual_chain", torch.bfloat16, {"n": (1, 1024), "m": (256, 1024)}, "somewhere.json")
    monkeypatch.setattr(measured, "ROWS", (row,))
    half, faster = x.bfloat16(), {"n": 1024, "m": 256, "k": 64, "l": 8}
    assert choose("residual_chain", half, **faster) == ("cuda", "cuda: measured to be faster, somewhere.json")
    for other in ("residual_chain", x, faster), ("dense_chain", half, faster):
        assert choose(*other[:2], **other[2])[0] == "triton"
    for letter, value in (("n", 1025), ("n", 0), ("m", 255), ("m", 1025)):
        assert choose("residual_chain", half, **faster | {letter: value})[0] == "triton"
    assert choose("residual_chain", half, "too wide", "too wide", **faster) == ("reference", "too wide")
    assert choose("residual_chain", half, None, "too wide", **faster) == ("triton", "")


def test_cuda_runs_where_triton_cannot(monkeypatch):
    x = on_a_gpu(monkeypatch)
    assert choose("residual_chain", x, "too wide") == ("cuda", "triton: too wide")
    assert choose("residual_chain", x, "too wide", "wide") == ("reference", "triton: too wide; cuda: wide")
    assert choose("residual_chain", x.double())[0] == "reference"
    assert choose("dense_chain", x, "too wide") == ("reference", "too wide")
    monkeypatch.setattr(installed, "TRITON_IS_INSTALLED", False)
    assert choose("residual_chain", x) == ("cuda", 'triton: not installed: pip install "fastnest-torch[triton]"')
    assert choose("batch_stats", x)[0] == "reference"


@pytest.mark.parametrize(
    ("capability", "kib", "dtype", "k", "m", "why"),
    [
        ((9, 0), 227, torch.float32, 192, 8192, None),
        ((9, 0), 227, torch.float32, 193, 5, "up to 192 bottleneck features and a width of 8192, got 193 and 5"),
        ((8, 0), 163, torch.bfloat16, 128, 1024, None),
        ((8, 0), 163, torch.bfloat16, 64, 1025, "up to 128 bottleneck features and a width of 1024, got 64 and 1025"),
        ((8, 9), 99, torch.float16, 64, 1024, None),
        ((8, 9), 99, torch.float32, 64, 64, "float32 needs more shared memory than this GPU's 99 KiB"),
    ],
)
def test_cuda_takes_what_the_gpu_has_room_for(monkeypatch, capability, kib, dtype, k, m, why):
    x = on_a_gpu(monkeypatch, capability, ("sm_80", "sm_90a"), kib=kib).to(dtype)
    inputs = Inputs(x, torch.empty(2, k, m, device="meta"), *[None] * 6)
    with fastnest.backend("cuda"):
        if why is None:
            assert choose("residual_chain", x, None, partial(cuda_limit, inputs))[0] == "cuda"
        else:
            with pytest.raises(RuntimeError, match=re.escape(why)):
                choice.choose("residual_chain", x, None, partial(cuda_limit, inputs))


def test_forcing_cuda(monkeypatch):
    x = on_a_gpu(monkeypatch)
    with fastnest.backend("cuda"):
        assert choose("residual_chain", x) == ("cuda", "forced by fastnest.backend('cuda')")
        for op, tensor, limit, why in (
            ("batch_stats", x, None, "no kernels in CUDA C++ for batch_stats"),
            ("residual_chain", torch.ones(3, 5), None, "no kernels in CUDA C++ for cpu tensors"),
            ("residual_chain", x, "too wide", "too wide"),
        ):
            with pytest.raises(RuntimeError, match=rf"forced backend cuda cannot take this call \({re.escape(why)}\)"):
                choice.choose(op, tensor, None, limit)
    with fastnest.backend("triton"):
        assert choose("residual_chain", x)[0] == "triton"


@pytest.mark.parametrize("faster", [(), ({"n": (1, 3), "m": (5, 5)},), ({"n": (4, 9)},)])
def test_the_choice_on_a_gpu_is_no_graph_break(faster, monkeypatch):
    x = on_a_gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # which torch.compile asks, too
    untraced = (installed, "_registered"), (torch.cuda, "get_device_capability"), (torch.cuda, "get_device_properties")
    for module, name in untraced:
        monkeypatch.setattr(module, name, torch.compiler.disable(getattr(module, name)))
    rows = [measured.Row("residual_chain", torch.float32, sizes, "") for sizes in faster]
    monkeypatch.setattr(measured, "ROWS", tuple(rows))

    def limit(m, room):
        return None if room.clusters and m * 1024 < room.shared_bytes else "no room"

    def numbered(x):
        name = choice.choose("residual_chain", x, None, partial(limit, x.shape[1]), n=x.shape[0], m=5)
        return x.new_empty(["reference", "triton", "cuda"].index(name))

    with FakeTensorMode():
        compiled = torch.compile(numbered, backend="eager", fullgraph=True, dynamic=True)
        for n in (3, 7):
            rows = torch.empty(n, 5, device=x.device)
            assert compiled(rows).shape == numbered(rows).shape
