import threading

import pytest
import torch

import fastnest
from fastnest import _backend
from fastnest.functional import residual_chain

AVAILABLE = [name for name, state in fastnest.backends().items() if state == "available"]
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
        assert state == "available" or state.startswith(("not built", "built but not loadable"))


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
    assert _backend._asked == ()


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
    with pytest.raises(RuntimeError, match=r"triton cannot run here: not built yet: .*\. Available here: reference"):
        fastnest.backend("triton")


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
