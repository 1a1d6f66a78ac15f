"""Residual blocks on rows: the fused chain of bottlenecks, and x + W G(x) for any module G."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.types import Device

from ..functional import residual_chain
from ..reference.activation import activate, second_moment
from .norm import ChainNorm, run_norm, why_not_folded
from .scripting import NotScriptable
from .sizes import check_features, check_kind, check_options, check_rows, check_size


class ResidualChain(NotScriptable):
    """L bottleneck residual blocks, x_i = x_{i-1} + up_i v_i with v_i = f(down_i f(x_{i-1}) + down_bias_i), as one op.

    See `fastnest.functional.residual_chain`, also for the known limit of its backward at exact zeros. With
    norm="batch" a batch norm stands before every activation: over the width (where pre_activation) and after every
    linear map but up, whose bias it replaces. Training then runs block by block in torch, with the exact statistics of
    the batch; evaluation folds all of them into the weights and runs the op. Norms with hooks, or others in their place
    (called with the rows and the number of the block), run block by block too.

    Args:
        width: features m of x.
        bottleneck: features k of every v_i.
        blocks: their number l.
        mid: whether each block has one more linear map [k, k] and activation.
        activation: relu, gelu, gelu_tanh, silu, tanh, leaky_relu or identity.
        pre_activation: whether f also comes before down.
        norm: None or "batch".
        bias: whether down and mid have one (up never has).
        last_up: False for a chain whose last block yields its features only (A-ResNEst).

    Parameters: down [l, k, m], down_bias [l, k], mid [l, k, k], mid_bias [l, k], up [l, m, k] ([l - 1, m, k] without
    last_up); and width_norm, down_norm, mid_norm.

    Called with x [n, m] it returns y [n, m]; with return_features=True, (y, features [n, l, k]).
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        blocks: int,
        *,
        mid: bool = False,
        activation: str = "relu",
        pre_activation: bool = True,
        norm: str | None = None,
        bias: bool = True,
        last_up: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        name = type(self).__name__
        m, k = check_size(name, "width", width), check_size(name, "bottleneck", bottleneck)
        l = check_size(name, "blocks", blocks)
        check_options(name, activation, norm, mid=mid, pre_activation=pre_activation, bias=bias, last_up=last_up)
        self.width, self.bottleneck, self.blocks, self.last_up = m, k, l, last_up
        self.activation, self.pre_activation, self.norm = activation, pre_activation, norm

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        def batch_norm(features: int, present: bool = True) -> ChainNorm | None:
            return ChainNorm([features] * l, device=device, dtype=dtype) if present and norm == "batch" else None

        bias = bias and norm is None
        self.down = parameter(l, k, m)
        self.down_bias = parameter(l, k) if bias else None
        self.mid = parameter(l, k, k) if mid else None
        self.mid_bias = parameter(l, k) if mid and bias else None
        self.up = parameter(l if last_up else l - 1, m, k)
        self.up.requires_grad_(self.up.numel() > 0)  # DDP waits for the gradient of every parameter that wants one
        self.width_norm = batch_norm(m, present=pre_activation)
        self.down_norm = batch_norm(k)
        self.mid_norm = batch_norm(k, present=mid)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He's initialisation, with up smaller by sqrt(blocks): x_L has about e times the mean square of x.

        Every linear map keeps the mean square of its input if that is symmetric about 0 (He et al. 2015, section 2.2;
        for gelu, silu and tanh if it is about 1 too). Each of `blocks` branches adds 1 / blocks of the stream's mean
        square (Zhang et al. 2019, Fixup, section 2), which then grows by (1 + 1 / blocks)^blocks < e.
        """
        gain = second_moment(self.activation) ** -0.5
        first = gain if self.pre_activation else 1.0
        torch.nn.init.normal_(self.down, std=first * self.width**-0.5)
        torch.nn.init.normal_(self.up, std=gain * (self.bottleneck * self.blocks) ** -0.5)
        if self.mid is not None:
            torch.nn.init.normal_(self.mid, std=gain * self.bottleneck**-0.5)
        for bias in (self.down_bias, self.mid_bias):
            if bias is not None:
                torch.nn.init.zeros_(bias)
        for norm in (self.width_norm, self.down_norm, self.mid_norm):
            if norm is not None:
                norm.reset_parameters()

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        if self.norm == "batch" and self.why_block_by_block() is not None:
            return self._block_by_block(x, return_features)
        down, down_bias = self._folded(self.down, self.down_bias, self.down_norm)
        mid, mid_bias = None, None
        if self.mid is not None:
            mid, mid_bias = self._folded(self.mid, self.mid_bias, self.mid_norm)
        scale = shift = None
        if self.width_norm is not None:
            scale, shift = (t.view(self.blocks, self.width).to(self.down.dtype) for t in self.width_norm.fold())
        # Without the last up the op insists on the features, because without them the last block would do nothing.
        result = residual_chain(
            x,
            down,
            self.up,
            down_bias=down_bias,
            mid=mid,
            mid_bias=mid_bias,
            scale=scale,
            shift=shift,
            activation=self.activation,
            pre_activation=self.pre_activation,
            return_features=return_features or not self.last_up,
        )
        return result if return_features or self.last_up else result[0]

    def _folded(self, weight: Tensor, bias: Tensor | None, norm: ChainNorm | None) -> tuple[Tensor, Tensor | None]:
        """weight [l, k, ...] and bias [l, k] of the linear map with the batch norm after it."""
        if norm is None:
            return weight, bias
        scale, shift = (t.view(self.blocks, self.bottleneck) for t in norm.fold())
        return (weight * scale[:, :, None]).to(weight.dtype), shift.to(weight.dtype)

    def why_block_by_block(self) -> str | None:
        """Why a chain with norms runs block by block in torch; None where these are folded and the op runs."""
        norms = ("width_norm", self.width_norm), ("down_norm", self.down_norm), ("mid_norm", self.mid_norm)
        return why_not_folded(norms)

    def _block_by_block(self, x: Tensor, return_features: bool) -> Tensor | tuple[Tensor, Tensor]:
        check_rows(type(self).__name__, x, self.width)
        check_kind(type(self).__name__, x, self.down)
        downs, ups = self.down.unbind(0), self.up.unbind(0)
        mids = None if self.mid is None else self.mid.unbind(0)
        features = []

        def activated(values: Tensor, norm: str, i: int) -> Tensor:
            return activate(self.activation, run_norm(f"{type(self).__name__}: {norm}", getattr(self, norm), values, i))

        for i in range(self.blocks):
            a = activated(x, "width_norm", i) if self.pre_activation else x
            v = activated(F.linear(a, downs[i]), "down_norm", i)
            if mids is not None:
                v = activated(F.linear(v, mids[i]), "mid_norm", i)
            features.append(v)
            if i < len(ups):
                x = x + F.linear(v, ups[i])
        return (x, torch.stack(features, 1)) if return_features else x

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, bottleneck={self.bottleneck}, blocks={self.blocks}, mid={self.mid is not None}, "
            f"activation={self.activation!r}, pre_activation={self.pre_activation}, norm={self.norm!r}, "
            f"bias={self.down_bias is not None}" + ("" if self.last_up else ", last_up=False")
        )


class Bottleneck(ResidualChain):
    """One bottleneck residual block, x + up f(down f(x) + down_bias): a `ResidualChain` of one, with its arguments."""

    def __init__(self, width: int, bottleneck: int, **options: Any):
        super().__init__(width, bottleneck, 1, **options)


class Residual(torch.nn.Module):
    """x + W G(x) for any module G, the block of arXiv 2111.05496, equation 1.

    Args:
        G: any module from [n, width] to [n, features].
        width: features m of x.
        features: features k of G(x).
        last_up: False for a block that yields its features only (the last one of an A-ResNEst).

    Parameters: up = W [width, features], none without last_up; block = G.

    Called with x [n, m] it returns y [n, m]; with return_features=True, (y, G(x) [n, k]).
    """

    def __init__(
        self,
        G: torch.nn.Module,
        width: int,
        features: int,
        *,
        last_up: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not isinstance(G, torch.nn.Module):
            raise TypeError(f"Residual: G must be a torch.nn.Module, got {type(G).__name__}")
        self.width, self.features = check_size("Residual", "width", width), check_size("Residual", "features", features)
        self.block = G
        self.up = torch.nn.Parameter(torch.empty(width, features, device=device, dtype=dtype)) if last_up else None
        self.reset_parameters()

    def reset_parameters(self, branches: int = 1) -> None:
        """Gives W G(x) the mean square of G(x), over the number of branches that add up; leaves G alone."""
        if self.up is not None:
            torch.nn.init.normal_(self.up, std=(self.features * branches) ** -0.5)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        check_rows("Residual", x, self.width)
        v = self.block(x)
        check_features("Residual", "G", v, x.shape[0], self.features)
        y = x if self.up is None else x + F.linear(v, self.up)
        return (y, v) if return_features else y

    def extra_repr(self) -> str:
        return f"width={self.width}, features={self.features}" + ("" if self.up is not None else ", last_up=False")
