"""The operators of every backend have one signature, that of the fake."""

from importlib import import_module

import pytest
import torch
from marks import needs_cpp
from torch._subclasses.fake_tensor import FakeTensorMode

from fastnest import _backend
from fastnest.ops import library
from fastnest.testing import OPS

# By the names of their operators: an op's own, or its forward and backward.
FAKES = {
    name.removesuffix("_fake"): value
    for op in OPS
    for name, value in vars(import_module(f"fastnest.reference.{op}")).items()
    if name in (f"{op}_fake", f"{op}_forward_fake", f"{op}_backward_fake")
}


def test_every_op_has_fakes():
    assert {name.removesuffix("_forward").removesuffix("_backward") for name in FAKES} == {*OPS}


@needs_cpp
@pytest.mark.parametrize("name", FAKES)
def test_schemas_are_those_of_the_compiled_operators(name):
    compiled = getattr(torch.ops.fastnest, name).default._schema
    inferred = torch._C.parse_schema(name + library.schema(FAKES[name]))
    assert [(a.name, str(a.type)) for a in inferred.arguments] == [(a.name, str(a.type)) for a in compiled.arguments]
    assert [str(a.type) for a in inferred.returns] == [str(a.type) for a in compiled.returns]


@pytest.mark.parametrize("keys", [("CPU",), ("CPU", "CUDA"), ("CUDA",)])
def test_compiled_kernels_are_found_by_what_is_registered(keys, monkeypatch):
    """One operator, which has a kernel for each of the keys."""
    monkeypatch.setattr(_backend, "CPP_IS_BUILT", True)
    monkeypatch.setattr(_backend, "TRITON_IS_INSTALLED", False)
    name = f"probe_{'_'.join(keys).lower()}"
    fragment = torch.library.Library("fastnest", "FRAGMENT")
    fragment.define(f"{name}(Tensor x) -> Tensor")
    for key in keys:
        fragment.impl(name, torch.clone, key)
    found = library.kernels(name, torch.empty_like)
    assert list(found) == [{"CPU": "cpp", "CUDA": "cuda"}[key] for key in keys]
    assert set(found.values()) == {getattr(torch.ops.fastnest, name).default}
    with FakeTensorMode():
        assert next(iter(found.values()))(torch.empty(3, device="cuda:0")).device.type == "cuda"


def test_no_operator_has_no_kernels():
    assert _backend.registered("nothing_forward") == ()
