"""One network as another with the same outputs: a ResNEst as an A-ResNEst, a DenseNEst as a wide ResNEst."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..models import AResNEst, DenseNEst, ResNEst
from ..nn import DenseChain, ResidualChain
from ..nn.norm import ChainNorm
from .features import linear_maps
from .model_samples import check_prediction_problem


class PrefixBlock(torch.nn.Module):
    """G(x) = Q(x[:, :in_features]): a dense block on the part of a wide stream that is filled when it comes.

    `block` is Q, or a DenseChain of one growth whose output is [x, Q(x)].
    """

    def __init__(self, block: torch.nn.Module, in_features: int):
        super().__init__()
        self.block, self.in_features = block, in_features

    def forward(self, x: Tensor) -> Tensor:
        q: Tensor = self.block(x[:, : self.in_features])
        return q[:, self.in_features :] if isinstance(self.block, DenseChain) else q

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}"


@torch.no_grad()
def _copy_norm(source: ChainNorm | None, target: ChainNorm | None, i: int) -> None:
    """Norm i of `source` into the first of `target`."""
    if source is None or target is None:
        return
    begin, end = source.begins[i], source.begins[i + 1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(target, name).copy_(getattr(source, name)[begin:end])
    target.num_batches_tracked.copy_(source.num_batches_tracked)


@torch.no_grad()
def _one_growth(chain: DenseChain, i: int) -> DenseChain:
    """Growth i of a chain, as a chain of its own with copies of its parameters."""
    hidden = None if chain.hidden is None else chain.hidden[i]
    bias = chain.bias is not None or chain.hidden_bias is not None
    like = next(chain.parameters())
    options: dict[str, Any] = {"activation": chain.activation, "pre_activation": chain.pre_activation}
    options |= {"norm": chain.norm, "bias": bias}
    factory: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    one = DenseChain(chain.widths[i], chain.growth[i], 1, hidden=hidden, **options, **factory)
    for name in ("weight", "bias", "hidden_weight", "hidden_bias"):
        if getattr(one, name) is not None:
            getattr(one, name)[0].copy_(getattr(chain, name)[i])
    for name in ("input_norm", "hidden_norm", "growth_norm"):
        _copy_norm(getattr(chain, name), getattr(one, name), i)
    return one.train(chain.training)


@torch.no_grad()
def to_resnest(densenest: torch.nn.Module) -> ResNEst:
    """A DenseNEst as a wide ResNEst with bottleneck blocks and equal outputs: Proposition 4 of arXiv 2111.05496.

    The stream has the width M_L of [v_0, ..., v_L]. W_0 = [I; 0] places x at its head, W_i block i's growth behind what
    is there, and G_i reads what was there: the first M_{i-1} columns. So [W_0, ..., W_L] is the identity, assumption 4
    holds with condition number 1, and the DenseNEst has every guarantee of a wide ResNEst.

    Args:
        densenest: a models.DenseNEst. It is not changed; the result has copies of its parameters.

    Returns a models.ResNEst in the same mode, on the same device; its blocks run one by one.
    """
    if not isinstance(densenest, DenseNEst):
        raise TypeError(f"to_resnest: densenest must be a fastnest.models.DenseNEst, got {type(densenest).__name__}")
    sizes, head = densenest.feature_sizes, densenest.head
    chain: Any = densenest.chain
    blocks, width = [], sizes[0]
    for i, growth in enumerate(sizes[1:]):
        block = _one_growth(chain, i) if isinstance(chain, DenseChain) else copy.deepcopy(chain[i].block)
        blocks.append(PrefixBlock(block, width))
        width += growth
    factory: dict[str, Any] = {"device": head.weight.device, "dtype": head.weight.dtype}
    resnest = ResNEst(sizes[0], head.out_features, width=width, bottleneck=sizes[1:], blocks=blocks, **factory)
    W_0, *ups = linear_maps(densenest)
    _copy([(resnest.expand.weight, W_0), (resnest.head.weight, head.weight)])
    residuals: Any = resnest.chain
    _copy(zip((block.up for block in residuals), ups, strict=True))
    return resnest.train(densenest.training)


@torch.no_grad()
def augment(resnest: torch.nn.Module) -> AResNEst:
    """A ResNEst as an A-ResNEst with equal features and outputs, H_i = W_{L+1} W_i: section 2.4 of arXiv 2111.05496.

    Its heads can only gain from being fitted further: min (PA_phi) <= min (P_phi) (Proposition 2).

    Args:
        resnest: a models.ResNEst without head_norm. It is not changed; the result has copies of its parameters.

    Returns a models.AResNEst in the same mode, on the same device.
    """
    source = check_prediction_problem("augment", resnest)
    maps, W_Lp1 = linear_maps(source), source.head.weight
    chain: Any = source.chain
    N_o, M = W_Lp1.shape
    factory: dict[str, Any] = {"device": W_Lp1.device, "dtype": W_Lp1.dtype}
    options: dict[str, Any] = {}
    sizes: dict[str, Any] = {"width": M, "bottleneck": [W.shape[1] for W in maps[1:]], "blocks": len(maps) - 1}
    if isinstance(chain, ResidualChain):
        sizes["bottleneck"] = chain.bottleneck
        options = {"mid": chain.mid is not None, "activation": chain.activation, "norm": chain.norm}
        options |= {"pre_activation": chain.pre_activation, "bias": chain.down_bias is not None}
    else:
        sizes["blocks"] = [copy.deepcopy(block.block) for block in chain]
    augmented = AResNEst(maps[0].shape[1], N_o, **sizes, **options, **factory)
    result: Any = augmented.chain
    if isinstance(chain, ResidualChain):
        state = chain.state_dict()
        state["up"] = state["up"][:-1]
        result.load_state_dict(state)
    else:
        _copy((to.up, block.up) for to, block in zip(list(result)[:-1], chain, strict=False))
    H_0, *H = (W_Lp1.double() @ W.double() for W in maps)
    _copy(
        [
            (augmented.expand.weight, maps[0]),
            (augmented.head_input.weight, H_0),
            (augmented.head.weight, torch.cat(H, 1)),
        ]
    )
    return augmented.train(resnest.training)


def _copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for target, source in pairs:
        target.copy_(source)
