"""The features v_i that a model's output is linear in, and the stream x_i between its blocks."""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models import AResNEst, DenseNEst, ResNEst
from ..models.cifar import Block, CifarNet
from ..models.densenet import DenseNet
from ..models.image import pooled
from ..nn import BasicBlock2d, Bottleneck2d, DenseBlock2d, DenseChain, DenseGrowth, Residual, ResidualChain

RESIDUAL = (Residual, ResidualChain, Bottleneck2d, BasicBlock2d, Block)
DENSE = (DenseGrowth, DenseChain, DenseBlock2d)


class Record(NamedTuple):
    """Features [v_0, ..., v_L] and stream [x_0, ..., x_L], each [n, size]."""

    features: list[Tensor]
    stream: list[Tensor]


def features(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """[v_0, v_1, ..., v_L]: what enters a model's blocks and what each of them adds (arXiv 2111.05496, section 2).

    Args:
        model: a ResNEst, AResNEst or DenseNEst (v_0 = x); one of models.cifar (v_0 the image) or models.densenest (v_0
            what enters the last dense block); or any module that calls Residual, ResidualChain, DenseGrowth,
            DenseChain, Bottleneck2d, BasicBlock2d or DenseBlock2d of fastnest.nn, in the order in which it calls them
            (v_0 what enters the first). It is called once, in the mode that it is in, and gradients flow through the
            features.
        x: input of the model, [n, features] or [n, channels, height, width].

    Returns tensors [n, size_i]; features that are images are averaged over space, as the heads of models do.

    Raises TypeError for a model without such a block.
    """
    if isinstance(model, (ResNEst, AResNEst, DenseNEst, CifarNet)):
        return model.features(x)
    if isinstance(model, DenseNet):
        return model.block_features(x)
    return record(model, x).features


def record(model: torch.nn.Module, x: Tensor) -> Record:
    """The features and the stream of a model by listening to its blocks."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    blocks = [block for block in modules if isinstance(block, (*RESIDUAL, *DENSE))]
    if not blocks:
        raise TypeError(
            f"features: model must be one of fastnest.models or call blocks of fastnest.nn, got {type(model).__name__}"
        )
    found = Record([], [])
    with ExitStack() as hooks:
        for block in blocks:
            listen = _listen_to_dense if isinstance(block, DENSE) else _listen_to_residual
            for hook in listen(block, found):
                hooks.callback(hook.remove)
        model(x)
    if isinstance(model, CifarNet):
        found.features[0] = pooled(x)  # its first map is linear, so that v_0 is the image
    return found


def _rows(v: Tensor) -> Tensor:
    return pooled(v) if v.dim() == 4 else v


def _begin(found: Record, x: Tensor) -> None:
    if not found.features:
        found.features.append(_rows(x))
    # Also where the block before had no last map, which leaves the stream as it was.
    found.stream.extend([_rows(x)] * (len(found.features) - len(found.stream)))


def _called_with(x: Tensor, return_features: bool = False) -> tuple[Tensor, bool]:
    """A block's arguments, however they were given."""
    return x, return_features


def _listen_to_dense(block: Any, found: Record) -> list[Any]:
    def after(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Tensor) -> None:
        _begin(found, _called_with(*arguments, **keywords)[0])
        growth = block.growth if isinstance(block, DenseChain) else [block.growth]
        growth = growth * len(block) if isinstance(block, DenseBlock2d) else growth
        rows = _rows(result)
        sizes = [rows.shape[1] - sum(growth), *growth]
        found.features.extend(rows.split(sizes, 1)[1:])
        found.stream.extend(rows[:, :end] for end in list(accumulate(sizes))[1:])

    return [block.register_forward_hook(after, with_kwargs=True)]


def _listen_to_residual(block: Any, found: Record) -> list[Any]:
    asked = []  # whether the caller of the block wants its features itself

    def before(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, wants = _called_with(*arguments, **keywords)
        _begin(found, x)
        asked.append(wants)
        return (x,), {"return_features": True}

    def after(
        _: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], result: tuple[Tensor | None, Tensor]
    ) -> Tensor | tuple[Tensor | None, Tensor]:
        y, v = result
        if isinstance(block, ResidualChain):
            found.features.extend(v.unbind(1))
            found.stream.extend(stream(block.up.unbind(0), v.unbind(1), arguments[0]))
        else:
            found.features.append(_rows(v))
            if y is not None:
                found.stream.append(_rows(y))
        return result if asked.pop() or y is None else y

    return [
        block.register_forward_pre_hook(before, with_kwargs=True),
        block.register_forward_hook(after, with_kwargs=True),
    ]


def stream(maps: Sequence[Tensor], v: Sequence[Tensor], x: Tensor | None = None) -> list[Tensor]:
    """[x + W_1 v_1, x + W_1 v_1 + W_2 v_2, ...] for as many maps W_i [m, k_i] as there are; x = 0 where None."""
    terms = [F.linear(v_i, W) for v_i, W in zip(v, maps, strict=False)]
    return list(accumulate(terms, initial=x))[0 if x is None else 1 :]


@overload
def linear_maps(model: ResNEst | AResNEst | DenseNEst) -> list[Tensor]: ...
@overload
def linear_maps(model: torch.nn.Module) -> list[Tensor] | None: ...
def linear_maps(model: torch.nn.Module) -> list[Tensor] | None:
    """[W_0, ..., W_L] with x_i = sum_{j<=i} W_j v_j, each [m, k_j] (an A-ResNEst has no W_L); a dense model places v_i
    below what came before. None where the stream is not linear in the features: images."""
    if isinstance(model, (ResNEst, AResNEst)):
        chain: Any = model.chain
        ups = chain.up.unbind(0) if isinstance(chain, ResidualChain) else [b.up for b in chain if b.up is not None]
        return [model.expand.weight.detach(), *(W.detach() for W in ups)]
    if isinstance(model, DenseNEst):
        weight = model.head.weight
        eye = torch.eye(weight.shape[1], device=weight.device, dtype=weight.dtype)
        return list(eye.split(model.feature_sizes, 1))
    return None
