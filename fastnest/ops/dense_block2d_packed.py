"""dense_block2d: the weights of all layers as one packed tensor, made once for every version of them.

Kernels that read packed weights get them cast, in the order in which they read them, and with the batch norms folded
into scale and shift. What was packed is kept by the first layer's first weight, and dies with it. It serves as long as
the tensors are the same ones, were not changed in place (torch counts that), and lie where they lay.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .. import _backend
from ..reference.dense_block2d import Weights, empty_image
from ..reference.flops import forward_flops
from .arguments import autocast_dtype, cast, need_grad
from .image import in_format_of, is_rows_of_channels, widened
from .library import ABSENT_OR_LIST, compiled_kernels

LISTS = Weights._fields[:10]  # what is packed: all but dropout
MOST_PACKS, MOST_CALLS = 4, 32  # of one version: by stream, dtype and eps; and kinds of calls that a pack has served
PACKED = (torch.float32, torch.bfloat16, torch.float16)
PLAIN = (Tensor, torch.nn.Parameter)
LISTED = {list, tuple}
CHANGES, POINTER, ELEMENTS = attrgetter("_version"), Tensor.data_ptr, Tensor.numel


def dense_block2d_pack_fake(
    like: Tensor,
    conv1: Sequence[Tensor],
    conv2: Sequence[Tensor],
    norm1_weight: Sequence[Tensor],
    norm1_bias: Sequence[Tensor],
    norm1_mean: Sequence[Tensor],
    norm1_var: Sequence[Tensor],
    norm2_weight: Sequence[Tensor],
    norm2_bias: Sequence[Tensor],
    norm2_mean: Sequence[Tensor],
    norm2_var: Sequence[Tensor],
    eps: float,
) -> Tensor:
    """Bytes, of which only the kernel knows how many there are."""
    return like.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


def dense_block2d_packed_forward_fake(
    x: Tensor, packed: Tensor, hidden: Sequence[int], growth: Sequence[int], dropout: ABSENT_OR_LIST
) -> Tensor:
    """Shape and dtype of the kernels' y."""
    return empty_image(x, x.shape[1] + sum(growth))


def _no_flops(*arguments: Any, out_shape: Any = None) -> int:
    return 0


def _flops(x: Any, packed: Any, hidden: Any, growth: Any, dropout: Any, out_shape: Any = None) -> int:
    """As of the forward, whose weights have these shapes."""
    reads = accumulate(growth, initial=x[1])
    conv1 = [(b, c, 1, 1) for b, c in zip(hidden, reads, strict=False)]
    conv2 = [(d, b, 3, 3) for d, b in zip(growth, hidden, strict=True)]
    return forward_flops("dense_block2d", {"x": x, "conv1": conv1, "conv2": conv2})


pack_kernels = compiled_kernels("dense_block2d_pack", dense_block2d_pack_fake, _no_flops)
forward_kernels = compiled_kernels("dense_block2d_packed_forward", dense_block2d_packed_forward_fake, _flops)


class _Pack(NamedTuple):
    """Packed weights, and the kinds of calls that were checked and given to the kernels as they came."""

    backend: str
    packed: Tensor
    calls: set[Any]


class _Version(NamedTuple):
    """A version of the weights: what tells it from others, and its packs by stream, dtype and eps.

    others: the tensors but the first, which would else live as long as what is kept by it. changes: how often all were
    changed in place, which grows with each. pointers, elements: where they lie, and how many numbers the convolutions
    have, which tell of a new `.data`. memory: keeps anything else from lying there.
    """

    others: list[Tensor]
    changes: int
    pointers: list[int]
    elements: list[int]
    memory: list[torch.UntypedStorage]
    hidden: list[int]
    growth: list[int]
    packs: dict[Any, _Pack]

    def is_of(self, tensors: list[Tensor]) -> bool:
        return (
            all(map(is_, tensors[1:], self.others))
            and sum(map(CHANGES, tensors)) == self.changes
            and list(map(POINTER, tensors)) == self.pointers
            and _elements(tensors) == self.elements
        )

    def run(self, pack: _Pack, x: Tensor, dropout: Sequence[Tensor] | None = None) -> Tensor:
        y: Tensor = forward_kernels[pack.backend](x, pack.packed, self.hidden, self.growth, dropout)
        return y


# By every block's first weight. Threads may look up and replace entries at once: whoever finds none packs.
_versions = WeakIdKeyDictionary()


def by_layer(lists: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Every layer's tensors, in the order of `LISTS`."""
    return list(chain.from_iterable(zip(*lists, strict=True)))


def _elements(tensors: list[Tensor]) -> list[int]:
    return [*map(ELEMENTS, tensors[:: len(LISTS)]), *map(ELEMENTS, tensors[1 :: len(LISTS)])]


def can_pack(backend: str, x: Tensor, weights: Weights) -> bool:
    """Whether a backend packs these weights as they are: of a dtype that it casts, with memory of their own."""
    if not _backend.packs_weights(backend) or not _backend.keeps() or type(x) is not Tensor:
        return False
    convolutions = (*weights.conv1, *weights.conv2)
    return all(t.dtype in PACKED for t in convolutions) and all(type(t) in PLAIN for t in by_layer(weights[:10]))


def may_serve(x: Any) -> bool:
    """Whether anything is kept that `again` may find, which costs a look at every weight."""
    return _backend.keeps() and bool(_versions.data) and type(x) is Tensor


def again_by_lists(x: Any, lists: Sequence[Any], dropout: Any, eps: Any) -> Tensor | None:
    """As `again`, of a call's lists as they came; for those that are no lists, or none, it finds nothing."""
    if not may_serve(x) or not LISTED.issuperset(map(type, lists)):
        return None
    if dropout is not None and (type(dropout) not in LISTED or dropout):
        return None
    tensors = list(chain.from_iterable(zip(*lists, strict=False)))
    return again(x, tensors, eps) if len(tensors) == sum(map(len, lists)) else None


def again(x: Tensor, tensors: list[Any], eps: Any) -> Tensor | None:
    """y of a call like an earlier one, which was checked: same tensors, unchanged, and such an x; None for any other.

    Args:
        x: images [n, c_0, h, w], of which `may_serve` said yes.
        tensors: every layer's, in the order of `LISTS`.
        eps: added to every variance.
    """
    version: _Version | None = _versions.get(tensors[0]) if tensors and isinstance(tensors[0], Tensor) else None
    if version is None or type(eps) is not float:
        return None
    dtype = autocast_dtype(x) or x.dtype
    pack = version.packs.get((_backend.stream_of(x), dtype, eps))
    if pack is None or _kind(x) not in pack.calls or not version.is_of(tensors):
        return None
    if torch.is_grad_enabled() and need_grad((x, *tensors)):
        return None
    return version.run(pack, cast(x, dtype))


def _kind(x: Tensor) -> Any:
    """What an x shares with all that need the same checks and have the same outcome; None where there are none."""
    situation = _backend.situation(x)
    return situation and (situation, x.dtype, x.shape, x.stride())


def forward(backend: str, x: Tensor, image: Tensor, weights: Weights, eps: float) -> Tensor:
    """The kernels' y for arguments that were checked, by packed weights that are kept where that may be.

    image: x as the kernels read it, cast under autocast. weights: as they came, of any dtype that the kernels cast.
    """
    tensors, stream = by_layer(weights[:10]), _backend.stream_of(image)
    version = _version_of(tensors)
    pack = version.packs.get((stream, image.dtype, eps))
    if pack is None:
        norms = [widened(vectors) for vectors in weights[2:10]]
        packed = pack_kernels[backend](image, weights.conv1, weights.conv2, *norms, eps)
        pack = _Pack(backend, packed, set())
        if stream is not None:  # else a graph's, which has to pack again in every replay
            _keep(tensors, version, (stream, image.dtype, eps), pack)
    y = version.run(pack, image, weights.dropout or None)
    kind = _kind(x)
    if kind is not None and is_rows_of_channels(x) and image.stride() == x.stride() and in_format_of(x, y) is y:
        if len(pack.calls) >= MOST_CALLS:
            pack.calls.clear()
        pack.calls.add(kind)
    return y


def _version_of(tensors: list[Tensor]) -> _Version:
    """The one that is kept, if it is theirs; else a new one."""
    kept: _Version | None = _versions.get(tensors[0])
    if kept is not None and kept.is_of(tensors):
        return kept
    counted = not any(tensor.is_inference() for tensor in tensors)
    convolutions = tensors[:: len(LISTS)], tensors[1 :: len(LISTS)]
    hidden, growth = [[weight.shape[0] for weight in weights] for weights in convolutions]
    return _Version(
        others=tensors[1:],
        changes=sum(map(CHANGES, tensors)) if counted else -1,
        pointers=list(map(POINTER, tensors)),
        elements=_elements(tensors),
        memory=[tensor.untyped_storage() for tensor in tensors],
        hidden=hidden,
        growth=growth,
        packs={},
    )


def _keep(tensors: list[Tensor], version: _Version, key: Any, pack: _Pack) -> None:
    """Keeps a pack, unless torch does not count changes (inference tensors) or the tensors are not there to stay."""
    first, *others = tensors
    if version.changes < 0 or any(tensor.grad_fn is not None for tensor in tensors):
        return
    if any(tensor is first or tensor._base is first for tensor in others):  # which would keep the first alive
        return
    if len(version.packs) >= MOST_PACKS:
        version.packs.clear()
    version.packs[key] = pack
    _versions[first] = version
