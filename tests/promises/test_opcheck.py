"""torch.library.opcheck with all of its utilities, for every operator that the library registers."""

from collections import defaultdict

import pytest
import torch
from marks import needs_cpp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fastnest.reference.activation import IDEMPOTENT
from fastnest.testing import OPS, as_tuple, flat, small_inputs, unflat

pytestmark = needs_cpp
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def kind(args: tuple) -> str:
    """Equal where a call has the same tensors, by shape, and options as another: activations are kept in two ways."""
    args = tree_map_only(torch.Tensor, lambda tensor: (tensor.dtype, *tensor.shape), args)
    return repr(tree_map_only(str, lambda activation: activation in IDEMPOTENT, args))


class Recording(TorchDispatchMode):
    """Keeps one of every kind of call that an operator of the library gets."""

    def __init__(self):
        super().__init__()
        self.calls = defaultdict(dict)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastnest":
            self.calls[function].setdefault(kind(args), tree_map_only(torch.Tensor, torch.Tensor.detach, args))
        return function(*args, **(kwargs or {}))


def calls(op: str, dtype: torch.dtype) -> dict:
    """What its operators get in evaluation and in training steps that use all outputs or one, however it is called."""
    with Recording() as recording:
        for one in small_inputs(op):
            leaves = flat(one.tensors(dtype))
            with torch.no_grad():
                outputs = as_tuple(one.call(unflat(leaves)))
            for used in ({*range(len(outputs))}, {0}, {len(outputs) - 1}):
                outputs = as_tuple(one.call(unflat(leaves)))
                sum(out.float().sin().sum() for i, out in enumerate(outputs) if i in used).backward()
    return recording.calls


# With kernels for GPUs alone: tests/cuda/on_host/check_dense_block2d.py checks them, run on the CPU.
FOR_GPUS = {f"fastnest::dense_block2d_{name}" for name in ("pack", "packed_forward")}
# A single convolution, for benchmarks/gpu/convolutions.py; the library never calls them.
MEASURED = {"fastnest::norm_conv_1x1", "fastnest::conv_3x3"}


def registered() -> set[str]:
    names = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("fastnest::")}
    return names - FOR_GPUS - MEASURED


def test_every_operator_is_checked():
    found = {function.name() for op in OPS for function in calls(op, torch.float32)}
    assert {name.partition(".")[0] for name in found} == registered()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op, dtype):
    for function, every in calls(op, dtype).items():
        for args in every.values():
            torch.library.opcheck(function, args, test_utils=UTILITIES)
