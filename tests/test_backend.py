import json
import re
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from marks import needs_cpp
from torch._subclasses.fake_tensor import FakeTensorMode

import fastnest
from fastnest import _backend
from fastnest._backend import asked, choice, installed, measured
from fastnest.functional import dense_block2d, residual_chain
from fastnest.ops import dense_block2d_autograd
from fastnest.ops.dense_block2d import cuda_limit as dense_limit
from fastnest.ops.dense_block2d import sizes_of
from fastnest.ops.residual_chain import cuda_limit
from fastnest.reference.dense_block2d import Weights
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
    """By tensors that say they are on a GPU, with nothing behind them, in a build without CUDA C++."""
    monkeypatch.setattr(installed, "TRITON_IS_INSTALLED", True)
    monkeypatch.setattr(choice, "registered", lambda name: ("cpp",))
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
    monkeypatch,
    capability=(9, 0),
    codes=("sm_90a", "compute_90"),
    ops=("residual_chain",),
    kib=227,
    ways=("forward", "backward"),
) -> torch.Tensor:
    """As on a GPU with Triton and the kernels in CUDA C++ of some ops: a tensor that says it is there."""
    monkeypatch.setattr(installed, "TRITON_IS_INSTALLED", True)
    monkeypatch.setattr(installed, "CUDA_CODES", codes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    properties = SimpleNamespace(major=capability[0], shared_memory_per_block_optin=kib * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    names = [f"{op}_{way}" for op in ops for way in ways]
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
    assert choose("residual_chain", half, None, "too wide", **faster) == ("triton", "cuda: too wide")


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


def dense(dtype=torch.bfloat16, n=2, c=64, px=14, b=128, d=32, statistics=True, conv1=True, grad=False):
    """Arguments of dense_block2d with two layers, which say that they are on a GPU."""
    with FakeTensorMode():
        x = torch.empty(n, c, px, px, dtype=dtype, device="cuda:0", memory_format=torch.channels_last)

        def each(shapes, dtype=dtype):
            return [torch.empty(shape, dtype=dtype, device="cuda:0", requires_grad=grad) for shape in shapes]

        reads, hidden = [(c,), (c + d,)], [(b,)] * 2
        lists = {"conv1": each([(b, *one, 1, 1) for one in reads]) if conv1 else []}
        lists["conv2"] = each([(d, *one, 3, 3) for one in (hidden if conv1 else reads)])
        for norm, shapes in (("norm1", reads), ("norm2", hidden if conv1 else [])):
            given = {"weight": shapes, "bias": shapes} | ({"mean": shapes, "var": shapes} if statistics else {})
            lists |= {f"{norm}_{name}": each(shapes, torch.float32) for name, shapes in given.items()}
    return x, lists


def choose_dense(x, lists) -> tuple[str, str]:
    weights = Weights(**{name: lists.get(name, []) for name in Weights._fields})
    return choose("dense_block2d", x, None, partial(dense_limit, x, weights), **sizes_of(x, weights))


def on_hopper(monkeypatch, capability=(9, 0), codes=("sm_90a",)):
    """Whose dense_block2d has a forward in CUDA C++, and no backward."""
    on_a_gpu(monkeypatch, capability, codes, ops=("dense_block2d",), ways=("forward",))


@pytest.mark.parametrize("px", [7, 14, 28, 56])
@pytest.mark.parametrize("n", [1, 64])
def test_dense_blocks_run_cuda_where_that_was_measured(monkeypatch, px, n):
    on_hopper(monkeypatch)
    source = "benchmarks/results/prototypes/dense_block2d-nvidia-h200.json"
    assert choose_dense(*dense(n=n, px=px)) == ("cuda", f"cuda: measured to be faster, {source}")


@pytest.mark.parametrize(
    "sizes", [{"px": 6}, {"px": 57}, {"b": 96}, {"d": 48, "b": 192}, {"dtype": torch.float16}], ids=str
)
def test_dense_blocks_run_triton_where_nothing_was_measured(monkeypatch, sizes):
    on_hopper(monkeypatch)
    assert choose_dense(*dense(**sizes)) == ("triton", "triton: no measurement prefers cuda")


def test_layers_that_differ_were_not_measured(monkeypatch):
    on_hopper(monkeypatch)
    (x, lists), (_, others) = dense(), dense(d=16)
    lists["conv2"][1] = others["conv2"][1]
    assert choose_dense(x, lists)[0] == "triton"


CUDA = "the kernels in CUDA C++"
LIMITS = {
    f"training: {CUDA} are for inference, with given statistics": {"statistics": False},
    f"training: {CUDA} are for inference, and a gradient is asked for": {"grad": True},
    f"{CUDA} are for layers with conv1": {"conv1": False},
    f"{CUDA} compute float32 as TF32, which torch's fp32_precision does not allow here": {"dtype": torch.float32},
    f"{CUDA} take up to 192 hidden channels and a growth of 48, got 200 and 32": {"b": 200},
    f"{CUDA} take up to 192 hidden channels and a growth of 48, got 128 and 56": {"d": 56},
    f"{CUDA} write pixels of a multiple of 16 bytes, got 100 channels, 200": {"c": 36},
    f"{CUDA} take at least one image and fewer than 2^31 pixels, got [0, 64, 14, 14]": {"n": 0},
}


@pytest.mark.parametrize(("why", "sizes"), LIMITS.items(), ids=LIMITS)
def test_explain_says_why_a_dense_block_does_not_run_cuda(monkeypatch, why, sizes):
    on_hopper(monkeypatch)
    assert choose_dense(*dense(**sizes)) == ("triton", f"cuda: {why}")
    with fastnest.backend("cuda"), pytest.raises(RuntimeError, match=re.escape(f"cannot take this call ({why})")):
        choose_dense(*dense(**sizes))


def test_a_dense_block_of_too_many_pixels(monkeypatch):
    on_hopper(monkeypatch)
    pixels = "take at least one image and fewer than 2^31 pixels, got [32768, 64, 256, 256]"
    assert choose_dense(*dense(n=2**15, px=2**8)) == ("triton", f"cuda: {CUDA} {pixels}")


@pytest.mark.parametrize(
    ("capability", "codes", "runs"),
    [
        ((9, 0), ("sm_90a",), True),
        ((9, 0), ("sm_80", "compute_90a"), True),
        ((9, 0), ("sm_90",), False),
        ((9, 0), ("sm_80", "compute_80"), False),
        ((8, 0), ("sm_80", "sm_90a"), False),
        ((10, 0), ("sm_90a", "compute_90"), False),
        ((12, 0), ("sm_90a", "sm_120"), False),
    ],
)
def test_kernels_for_hopper_run_on_it_and_built_for_it_alone(monkeypatch, capability, codes, runs):
    on_hopper(monkeypatch, capability, codes)
    why = f"cuda: {CUDA} are for compute capability 9.0, and a build for 9.0a"
    found = choose_dense(*dense())
    assert found[0] == ("cuda" if runs else "triton")
    assert runs or found[1] == why


def test_evaluation_of_trainable_weights_is_inference(monkeypatch):
    on_hopper(monkeypatch)
    with torch.no_grad():
        assert choose_dense(*dense(grad=True))[0] == "cuda"


def test_float32_as_tf32(monkeypatch):
    on_hopper(monkeypatch)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert choose_dense(*dense(dtype=torch.float32)) == ("triton", "triton: no measurement prefers cuda")
        with fastnest.backend("cuda"):
            assert choose_dense(*dense(dtype=torch.float32))[0] == "cuda"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_training_without_triton_runs_the_reference(monkeypatch):
    on_hopper(monkeypatch)
    monkeypatch.setattr(installed, "TRITON_IS_INSTALLED", False)
    assert choose_dense(*dense())[0] == "cuda"
    found, why = choose_dense(*dense(grad=True))
    assert found == "reference"
    assert why.startswith("triton: not installed")
    assert why.endswith("a gradient is asked for")


@needs_cpp
def test_fake_tensors_run_the_whole_op(monkeypatch):
    on_hopper(monkeypatch)
    operator = torch.ops.fastnest.dense_block2d_forward.default
    monkeypatch.setitem(dense_block2d_autograd.forward_kernels, "cuda", operator)
    x, lists = dense()
    with _backend.logging_choices() as log:
        y = dense_block2d(x, **lists)
    assert (y.shape, y.dtype, log[0].backend) == ((2, 128, 14, 14), torch.bfloat16, "cuda")


def test_rows_name_what_was_measured():
    """Files that are there, of that op; not among the results that the pages show."""
    root = Path(fastnest.__file__).parents[1]
    for row in measured.ROWS:
        result = json.loads((root / row.source).read_text())
        assert row.op in result["what"]
        assert {"card", "date"} <= set(result)


def test_the_stream_of_a_tensor(monkeypatch):
    x, devices = on_a_gpu(monkeypatch), [0]

    class On:
        def __init__(self, index):
            devices.append(index)

        def __enter__(self):
            pass

        def __exit__(self, *_):
            devices.pop()

    capturing = {0: False, 1: True}
    monkeypatch.setattr(torch.cuda, "device", On)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: devices[-1])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[devices[-1]])
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 100 + index, raising=False)
    assert _backend.stream_of(x) == 100
    devices[0] = 1
    assert _backend.stream_of(x) == 100
    capturing[0] = True
    assert _backend.stream_of(x) is None
    assert _backend.stream_of(torch.ones(1)) is None  # of a module that was moved off the GPU
    assert devices == [1]
