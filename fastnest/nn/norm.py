"""The batch norms of a chain, one per block, in one set of tensors so that evaluation folds them all at once."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.types import Device

from .children import has_hooks, run_child


class ChainNorm(torch.nn.Module):
    """Batch norm i of a chain: y = (x - mean) / sqrt(var + eps) * weight_i + bias_i, over the rows of x [n, sizes[i]].

    Parameters and running statistics are those of one torch.nn.BatchNorm1d per block, end to end in [sum(sizes)].
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.sizes, self.eps, self.momentum = tuple(sizes), eps, momentum
        self.begins = (0, *accumulate(self.sizes))
        total = self.begins[-1]
        self.weight = torch.nn.Parameter(torch.empty(total, device=device, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.empty(total, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.empty(total, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.empty(total, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device, dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.ones_(self.weight)
        torch.nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor, i: int) -> Tensor:
        """x [n, sizes[i]] by the running statistics; in training by these rows' own, towards which the others move."""
        begin, end = self.begins[i], self.begins[i + 1]
        weight, bias, mean, var = (t[begin:end] for t in (self.weight, self.bias, self.running_mean, self.running_var))
        y = F.batch_norm(x, mean, var, weight, bias, self.training, momentum=self.momentum, eps=self.eps)
        if i == 0 and self.training:  # and torch has taken x
            self.num_batches_tracked.add_(1)
        return y

    def fold(self) -> tuple[Tensor, Tensor]:
        """scale and shift [sum(sizes)] of y = scale * x + shift by the running statistics, at least in float32."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        scale = self.weight.to(wide) * torch.rsqrt(self.running_var.to(wide) + self.eps)
        return scale, self.bias.to(wide) - self.running_mean.to(wide) * scale

    def extra_repr(self) -> str:
        each = self.sizes[0] if len(set(self.sizes)) == 1 else list(self.sizes)
        return f"{len(self.sizes)} blocks, features={each}, eps={self.eps}, momentum={self.momentum}"


def why_not_folded(norms: Iterable[tuple[str, torch.nn.Module | None]]) -> str | None:
    """Why a chain's norms (or None), with their names, cannot be folded into its weights; None where they can."""
    for name, norm in norms:
        if norm is None:
            continue
        if type(norm) is not ChainNorm:
            return f"{name} is {type(norm).__name__}, not ChainNorm"
        if norm.training:
            return "batch norm in training needs each block's batch statistics; eval() folds it and runs the op"
        if has_hooks(norm):
            return f"hooks on {name}, which folding would not call"
    return "hooks on all modules, which folding would not call" if _has_any_global_hook() else None


def run_norm(name: str, norm: torch.nn.Module | None, x: Tensor, i: int) -> Tensor:
    """Norm i of a chain, x itself where it has none; errors name the norm."""
    return x if norm is None else run_child(name, norm, x, i)
