import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastnest
from fastnest import _backend
from fastnest._backend import asked, choice, installed
from fastnest.functional import residual_chain

# Those that take the CPU tensors of these tests.
AVAILABLE = [name for name in ("reference", "cpp") if fastnest.backends()[name] == "available"]
needs_cpp = pytest.mark.skipif(not _backend.CPP_IS_BUILT, reason="the C++ kernels are not built")


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
            ("not built", "built but not loadable", "not installed", "no GPU")
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


def test_unknown_and_unavailable():
    with pytest.raises(
        ValueError, match=r"unknown backend 'cudnn'; known: reference, cpp, triton, cuda; available here: ref"
    ):
        fastnest.backend("cudnn")
    with pytest.raises(RuntimeError, match=r"cuda cannot run here: not built yet: .*\. Available here: reference"):
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
