"""Concatenating growths on rows: the fused chain, and [x, Q(x)] for any module Q."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.types import Device

from ..functional import dense_chain
from ..reference.activation import activate, second_moment
from .norm import ChainNorm, run_norm, why_not_folded
from .scripting import NotScriptable
from .sizes import check_features, check_kind, check_options, check_rows, check_size, check_sizes


class DenseChain(NotScriptable):
    """L dense growths, x_i = [x_{i-1}, q_i] with q_i = weight_i f(x_{i-1}) + bias_i, as one op in one buffer.

    See `fastnest.functional.dense_chain`. With norm="batch" a batch norm stands before every activation (over x_{i-1}
    and over the hidden layer where pre_activation, else after every linear map) and replaces the bias of a linear map
    right before it. Training then runs block by block in torch, with the exact statistics of the batch; evaluation
    folds all of them into the weights and runs the op.

    Args:
        in_features: features m_0 of x.
        growth: features d_i that a block adds: an int, or one per block.
        blocks: their number l.
        hidden: size of a hidden layer in every block: None, an int, or one per block.
        activation: relu, gelu, gelu_tanh, silu, tanh, leaky_relu or identity.
        pre_activation: whether f comes before or after every linear map.
        norm: None or "batch".
        bias: whether the linear maps have one.

    Parameters, one per block each: weight [d_i, m_{i-1}] or [d_i, h_i], bias [d_i], hidden_weight [h_i, m_{i-1}],
    hidden_bias [h_i]; and input_norm, hidden_norm, growth_norm.

    Called with x [n, m_0] it returns [n, m_L], whose columns are x, q_1, ..., q_L; out_features is m_L.
    """

    def __init__(
        self,
        in_features: int,
        growth: int | Sequence[int],
        blocks: int,
        *,
        hidden: int | Sequence[int] | None = None,
        activation: str = "relu",
        pre_activation: bool = True,
        norm: str | None = None,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_options("DenseChain", activation, norm, pre_activation=pre_activation, bias=bias)
        self.in_features = check_size("DenseChain", "in_features", in_features)
        self.blocks = check_size("DenseChain", "blocks", blocks)
        self.growth = check_sizes("DenseChain", "growth", growth, blocks)
        self.hidden = None if hidden is None else check_sizes("DenseChain", "hidden", hidden, blocks)
        self.activation, self.pre_activation, self.norm = activation, pre_activation, norm
        *self.widths, self.out_features = accumulate(self.growth, initial=in_features)
        self._keys = [str(i) for i in range(blocks)]  # of the parameter lists

        def parameters(*sizes: list[int], present: bool = True) -> torch.nn.ParameterList | None:
            if not present:
                return None
            return torch.nn.ParameterList(
                torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) for shape in zip(*sizes, strict=True)
            )

        def batch_norm(sizes: list[int], present: bool) -> ChainNorm | None:
            return ChainNorm(sizes, device=device, dtype=dtype) if present and norm == "batch" else None

        has_hidden, hides = self.hidden is not None, self.hidden or []
        self.weight = parameters(self.growth, self.hidden or self.widths)
        self.bias = parameters(self.growth, present=bias and (pre_activation or norm is None))
        self.hidden_weight = parameters(hides, self.widths) if has_hidden else None
        self.hidden_bias = parameters(hides) if has_hidden and bias and norm is None else None
        self.input_norm = batch_norm(self.widths, present=pre_activation)
        self.hidden_norm = batch_norm(hides, present=has_hidden)
        self.growth_norm = batch_norm(self.growth, present=not pre_activation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He's initialisation: every q_i has about the mean square of what it is computed from, so x_L that of x."""
        gain = second_moment(self.activation) ** -0.5
        for weights in (self.weight, self.hidden_weight):
            for weight in weights or ():
                torch.nn.init.normal_(weight, std=gain * weight.shape[1] ** -0.5)
        for biases in (self.bias, self.hidden_bias):
            for bias in biases or ():
                torch.nn.init.zeros_(bias)
        for norm in (self.input_norm, self.hidden_norm, self.growth_norm):
            if norm is not None:
                norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        if self.norm == "batch" and self.why_block_by_block() is not None:
            return self._block_by_block(x)
        hidden_weight, hidden_bias = self._folded(self.hidden_weight, self.hidden_bias, self.hidden_norm)
        weight, bias = self._folded(self.weight, self.bias, self.growth_norm)
        scale = shift = None
        if self.input_norm is not None:
            scale, shift = (t.to(weight[0].dtype).split(self.widths) for t in self.input_norm.fold())
        return dense_chain(
            x,
            weight,
            bias=bias,
            hidden_weight=hidden_weight,
            hidden_bias=hidden_bias,
            scale=scale,
            shift=shift,
            activation=self.activation,
            pre_activation=self.pre_activation,
        )

    def _tensors(self, parameters: torch.nn.ParameterList | None) -> list[Tensor]:
        if parameters is None:
            return []
        # The dict behind the list, which takes 1 us for every entry it looks up. What is not in there is an attribute:
        # computed anew by pruning or a parametrization, or in a replica of nn.DataParallel.
        own: dict[str, Any] = parameters._parameters
        return [own[key] if key in own else getattr(parameters, key) for key in self._keys]

    def _folded(
        self, weight: torch.nn.ParameterList | None, bias: torch.nn.ParameterList | None, norm: ChainNorm | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The weights and biases of the linear maps with the batch norms after them."""
        weights, biases = self._tensors(weight), self._tensors(bias)
        if norm is None:
            return weights, biases
        scale, shift = (t.split(norm.sizes) for t in norm.fold())
        folded = [(w * s[:, None]).to(w.dtype) for w, s in zip(weights, scale, strict=True)]
        return folded, [t.to(weights[0].dtype) for t in shift]

    def why_block_by_block(self) -> str | None:
        """Why a chain with norms runs block by block in torch; None where these are folded and the op runs."""
        norms = ("input_norm", self.input_norm), ("hidden_norm", self.hidden_norm), ("growth_norm", self.growth_norm)
        return why_not_folded(norms)

    def _block_by_block(self, x: Tensor) -> Tensor:
        check_rows("DenseChain", x, self.in_features)
        check_kind("DenseChain", x, self._tensors(self.weight)[0])

        def activated(values: Tensor, norm: str, i: int) -> Tensor:
            return activate(self.activation, run_norm(f"DenseChain: {norm}", getattr(self, norm), values, i))

        weight, hidden_weight, bias = map(self._tensors, (self.weight, self.hidden_weight, self.bias))

        for i in range(self.blocks):
            h = activated(x, "input_norm", i) if self.pre_activation else x
            if hidden_weight:
                h = activated(F.linear(h, hidden_weight[i]), "hidden_norm", i)
            q = F.linear(h, weight[i], bias[i] if bias else None)
            if not self.pre_activation:
                q = activated(q, "growth_norm", i)
            x = torch.cat([x, q], 1)
        return x

    def extra_repr(self) -> str:
        def short(sizes: list[int] | None) -> int | list[int] | None:
            return sizes[0] if sizes and len(set(sizes)) == 1 else sizes

        return (
            f"in_features={self.in_features}, growth={short(self.growth)}, blocks={self.blocks}, "
            f"hidden={short(self.hidden)}, activation={self.activation!r}, pre_activation={self.pre_activation}, "
            f"norm={self.norm!r}, bias={self.bias is not None or self.hidden_bias is not None}"
        )


class DenseGrowth(torch.nn.Module):
    """[x, Q(x)] for any module Q, the block of arXiv 2111.05496, equation 9.

    Args:
        Q: any module from [n, in_features] to [n, growth].
        in_features: features m of x.
        growth: features d of Q(x).

    Called with x [n, m] it returns [n, m + d]; out_features is m + d.
    """

    def __init__(self, Q: torch.nn.Module, in_features: int, growth: int):
        super().__init__()
        if not isinstance(Q, torch.nn.Module):
            raise TypeError(f"DenseGrowth: Q must be a torch.nn.Module, got {type(Q).__name__}")
        self.in_features = check_size("DenseGrowth", "in_features", in_features)
        self.growth = check_size("DenseGrowth", "growth", growth)
        self.out_features = in_features + growth
        self.block = Q

    def forward(self, x: Tensor) -> Tensor:
        check_rows("DenseGrowth", x, self.in_features)
        q = self.block(x)
        check_features("DenseGrowth", "Q", q, x.shape[0], self.growth)
        return torch.cat([x, q], 1)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, growth={self.growth}"
