"""The operators of every backend have one signature, that of the fake."""

import pytest
import torch

from fastnest import _backend
from fastnest.reference import residual_chain

FAKES = {
    "residual_chain_forward": residual_chain.residual_chain_forward_fake,
    "residual_chain_backward": residual_chain.residual_chain_backward_fake,
}


@pytest.mark.skipif(not _backend.CPP_IS_BUILT, reason="the C++ kernels are not built")
@pytest.mark.parametrize("name", FAKES)
def test_schemas_are_those_of_the_compiled_operators(name):
    compiled = getattr(torch.ops.fastnest, name).default._schema
    inferred = torch._C.parse_schema(name + torch.library.infer_schema(FAKES[name], mutates_args=()))
    assert [(a.name, str(a.type)) for a in inferred.arguments] == [(a.name, str(a.type)) for a in compiled.arguments]
    assert [str(a.type) for a in inferred.returns] == [str(a.type) for a in compiled.returns]
