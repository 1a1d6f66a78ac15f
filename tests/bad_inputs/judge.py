"""What a call may do: return what the definition returns, or raise an error that names what is wrong."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

# What a caller can do something about; an AttributeError or IndexError is an accident inside the library.
ERRORS = (ValueError, TypeError, RuntimeError, MemoryError)
# torch's own words where no memory holds a result, where a meta, sparse or quantized tensor has no such numbers, or
# where a layer of torch's own, the first of a network, gets no tensor or one of another type or shape.
TORCH_SAYS = (
    "memory",
    "overflow",
    "too large",
    "meta tensor",
    "sparse",
    "argument 'input'",
    "scalar type",
    "weight type",
    "not implemented for",
    "could not run",
    "arguments to linear",
    "to have",
    "mat1",
)


def begin(case: object) -> None:
    """Leaves the case in the file that the process was given, for whoever finds the process dead or hanging."""
    path = os.environ.get("CASE_FILE")
    if path:
        with open(path, "w") as file:
            file.write(str(case))


def outcome(call: Callable[[], Any], names: tuple[str, ...]) -> Any:
    """What call returns, or the error that it raises, which has to be a clear one: with one of the names in it."""
    try:
        return call()
    except ERRORS as error:
        found = error
    said = f"{type(found).__name__}: {found}"  # Python's own MemoryError has no words
    clear = any(name in said for name in names) or any(words in said.lower() for words in TORCH_SAYS)
    assert clear, f"unclear: {said}"
    return found


def tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor))


def is_plain(tensor: Tensor) -> bool:
    """Whether its numbers can be looked at."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and tensor.numel() < 2**24


class Unchanged:
    """The arguments of a call are, bit by bit, what they were."""

    def __init__(self, arguments: Any):
        self.before = [(t, t.detach().clone(), t._version, t.stride()) for t in tensors(arguments) if is_plain(t)]

    def check(self) -> None:
        for tensor, copy, version, stride in self.before:
            same = torch.equal(tensor.isnan(), copy.isnan())
            if same and tensor.numel():
                same = torch.equal(torch.nan_to_num(tensor.detach()), torch.nan_to_num(copy))
            assert same, "an argument's numbers were changed"
            assert (tensor._version, tensor.stride()) == (version, stride), "an argument was written to"


def said(value: Any) -> Any:
    """A short form of a value: tensors by their shape, strides and type."""

    def short(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf if len(repr(leaf)) < 100 else type(leaf)
        stride = leaf.stride() if leaf.layout is torch.strided else leaf.layout
        return f"<{str(leaf.dtype)[6:]} {list(leaf.shape)} {stride} {leaf.device}>"

    return tree_map(short, value)


def end(total: int, name: str) -> None:
    print(f"{name}: {total} cases", file=sys.stdout, flush=True)
