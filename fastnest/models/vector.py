"""ResNEst, A-ResNEst and DenseNEst on vectors (arXiv 2111.05496, equations 1, 6 and 9); no linear map has a bias."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from ..nn import DenseChain, DenseGrowth, Residual, ResidualChain
from ..nn.evaluation import evaluating
from ..nn.sizes import check_size, check_sizes
from ..ops.arguments import check_flags


class _ResidualBlocks(torch.nn.ModuleList):
    """Residual blocks around arbitrary modules, called as `ResidualChain` is; the features are a list."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        features = []
        for block in self:
            x, v = block(x, return_features=True)
            features.append(v)
        return (x, features) if return_features else x


def _check_modules(model: str, blocks: Sequence[Any] | torch.nn.ModuleList, options: dict[str, Any]) -> None:
    if not blocks:
        raise ValueError(f"{model}: blocks must hold at least one module, got none")
    for i, block in enumerate(blocks):
        if not isinstance(block, torch.nn.Module):
            raise TypeError(f"{model}: blocks[{i}] must be a torch.nn.Module, got {type(block).__name__}")
    if options:
        raise ValueError(f"{model}: {', '.join(options)} shape built-in blocks, but blocks are modules of their own")


def _found_size(name: str, block: torch.nn.Module, width: int, device: Device, dtype: torch.dtype | None) -> int:
    """Features that a module returns for `width` features, by calling it once on two rows of zeros in evaluation."""
    for tensor in (*block.parameters(), *block.buffers()):
        if tensor.is_floating_point():
            device, dtype = tensor.device, tensor.dtype
            break
    try:
        with evaluating(block):
            values = block(torch.zeros(2, width, device=device, dtype=dtype))
    except Exception as error:
        raise ValueError(f"{name} must take [n, {width}], but raised {type(error).__name__}: {error}") from error
    if not isinstance(values, Tensor) or values.dim() != 2 or values.shape[0] != 2:
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} must take [n, {width}] to [n, features], but took [2, {width}] to {got}")
    return values.shape[1]


def _residual_blocks(
    model: str,
    width: int,
    bottleneck: Any,
    blocks: Any,
    last_up: bool,
    options: dict[str, Any],
    **factory: Any,
) -> ResidualChain | _ResidualBlocks:
    """A ResidualChain for a number of blocks; Residual blocks for a sequence of modules."""
    if not isinstance(blocks, (Sequence, torch.nn.ModuleList)):
        if bottleneck is None:
            raise ValueError(f"{model}: bottleneck must be an int where blocks is a number, got None")
        return ResidualChain(width, bottleneck, blocks, last_up=last_up, **options, **factory)
    _check_modules(model, blocks, options)
    check_size(model, "width", width)
    if bottleneck is None:
        sizes = [_found_size(f"{model}: blocks[{i}]", G, width, **factory) for i, G in enumerate(blocks)]
    else:
        sizes = check_sizes(model, "bottleneck", bottleneck, len(blocks))
    chain = _ResidualBlocks()
    for i, (G, size) in enumerate(zip(blocks, sizes, strict=True)):
        block = Residual(G, width, size, last_up=last_up or i < len(blocks) - 1, **factory)
        block.reset_parameters(branches=len(blocks))
        chain.append(block)
    return chain


def _linear(inputs: int, outputs: int, fan_in: int | None = None, **factory: Any) -> torch.nn.Linear:
    """A linear map without bias that keeps the mean square of its input (or of fan_in features it is a part of)."""
    linear = torch.nn.Linear(inputs, outputs, bias=False, **factory)
    torch.nn.init.normal_(linear.weight, std=(fan_in or inputs) ** -0.5)
    return linear


class _ResidualModel(torch.nn.Module):
    """What ResNEst and AResNEst share: expand (W_0), the chain of blocks, and the features."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        bottleneck: Any,
        blocks: Any,
        last_up: bool,
        options: dict[str, Any],
        **factory: Any,
    ):
        super().__init__()
        model = type(self).__name__
        check_size(model, "in_features", in_features)
        check_size(model, "out_features", out_features)
        self.chain = _residual_blocks(model, width, bottleneck, blocks, last_up, options, **factory)
        self.expand = _linear(in_features, width, **factory)

    def features(self, x: Tensor) -> list[Tensor]:
        """[v_0, v_1, ..., v_L] with v_0 = x."""
        _, features = self.chain(self.expand(x), return_features=True)
        return [x, *(features.unbind(1) if isinstance(features, Tensor) else features)]


class ResNEst(_ResidualModel):
    """y = W_{L+1} x_L with x_0 = W_0 x and x_i = x_{i-1} + W_i v_i, v_i = G_i(x_{i-1}): linear in the features v_i.

    Args:
        in_features: features N_in of x.
        out_features: features N_o of y.
        width: M, features of every x_i.
        bottleneck: K, features of every v_i. For modules: an int, one per block, or None to find it by calls.
        blocks: the number L of bottleneck blocks, or a sequence of L modules G_i from [n, width] to [n, K_i].
        head_norm: a batch norm before the head (BN-ResNEst).
        options: mid, activation, pre_activation, norm, bias of `nn.ResidualChain`, for a number of blocks.

    Weights: expand [M, N_in] (W_0), chain (an nn.ResidualChain, or nn.Residual blocks), head [N_o, M] (W_{L+1}).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int,
        bottleneck: int | Sequence[int] | None = None,
        blocks: int | Sequence[torch.nn.Module],
        head_norm: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(in_features, out_features, width, bottleneck, blocks, True, options, **factory)
        check_flags("ResNEst", head_norm=head_norm)
        self.head_norm = torch.nn.BatchNorm1d(width, **factory) if head_norm else None
        self.head = _linear(width, out_features, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = self.chain(self.expand(x))
        y: Tensor = self.head(x if self.head_norm is None else self.head_norm(x))
        return y


class AResNEst(_ResidualModel):
    """y = sum_{i=0..L} H_i v_i with the features v_i of a ResNEst, v_0 = x: every feature has a linear map of its own.

    Args: as `ResNEst`, without head_norm.

    Weights: expand [M, N_in] (W_0), chain (its last block has no W_L), head_input [N_o, N_in] (H_0), and
    head [N_o, K_1 + ... + K_L] ([H_1, ..., H_L]); `heads` lists them as H_0, ..., H_L.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int,
        bottleneck: int | Sequence[int] | None = None,
        blocks: int | Sequence[torch.nn.Module],
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(in_features, out_features, width, bottleneck, blocks, False, options, **factory)
        if isinstance(self.chain, ResidualChain):
            self.feature_sizes = [self.chain.bottleneck] * self.chain.blocks
        else:
            blocks_of_its_own: Iterable[Any] = self.chain
            self.feature_sizes = [block.features for block in blocks_of_its_own]
        features = sum(self.feature_sizes)
        self.head_input = _linear(in_features, out_features, in_features + features, **factory)
        self.head = _linear(features, out_features, in_features + features, **factory)

    @property
    def heads(self) -> list[Tensor]:
        """[H_0, H_1, ..., H_L], views of the weights."""
        return [self.head_input.weight, *self.head.weight.split(self.feature_sizes, dim=1)]

    def forward(self, x: Tensor) -> Tensor:
        _, features = self.chain(self.expand(x), return_features=True)
        features = features.flatten(1) if isinstance(features, Tensor) else torch.cat(features, 1)
        y: Tensor = self.head(features) + self.head_input(x)
        return y


class DenseNEst(torch.nn.Module):
    """y = W_{L+1} x_L with x_0 = x and x_i = [x_{i-1}, Q_i(x_{i-1})]: linear in the features v_i = Q_i(x_{i-1}).

    Args:
        in_features: features N_in of x.
        out_features: features N_o of y.
        growth: D_i, features of Q_i: an int, or one per block. For modules also None, to find it by calling them once.
        blocks: the number L of blocks, or a sequence of L modules Q_i from [n, M_{i-1}] to [n, D_i].
        options: hidden, activation, pre_activation, norm, bias of `nn.DenseChain`, for a number of blocks.

    Weights: chain (an nn.DenseChain, or nn.DenseGrowth blocks), head [N_o, M_L] (W_{L+1}).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        growth: int | Sequence[int] | None = None,
        blocks: int | Sequence[torch.nn.Module],
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        super().__init__()
        check_size("DenseNEst", "in_features", in_features)
        check_size("DenseNEst", "out_features", out_features)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.chain: DenseChain | torch.nn.Sequential
        if isinstance(blocks, (Sequence, torch.nn.ModuleList)):
            _check_modules("DenseNEst", blocks, options)
            growths = self._growths(in_features, growth, blocks, factory)
            self.chain = torch.nn.Sequential(*growths)
            self.feature_sizes = [in_features, *(block.growth for block in growths)]
        else:
            if growth is None:
                raise ValueError("DenseNEst: growth must be an int or one per block where blocks is a number, got None")
            chain = DenseChain(in_features, growth, blocks, **options, **factory)
            self.chain = chain
            self.feature_sizes = [in_features, *chain.growth]
        self.head = _linear(sum(self.feature_sizes), out_features, **factory)

    @staticmethod
    def _growths(
        in_features: int,
        growth: int | Sequence[int] | None,
        blocks: Sequence[torch.nn.Module],
        factory: dict[str, Any],
    ) -> list[DenseGrowth]:
        sizes = None if growth is None else check_sizes("DenseNEst", "growth", growth, len(blocks))
        growths = []
        for i, Q in enumerate(blocks):
            size = sizes[i] if sizes else _found_size(f"DenseNEst: blocks[{i}]", Q, in_features, **factory)
            growths.append(DenseGrowth(Q, in_features, size))
            in_features = growths[i].out_features
        return growths

    def features(self, x: Tensor) -> list[Tensor]:
        """[v_0, v_1, ..., v_L] with v_0 = x, views of x_L."""
        return list(self.chain(x).split(self.feature_sizes, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.chain(x))
        return y
