"""The batch norms of a chain, one per block, in one set of tensors so that evaluation folds them all at once."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.types import Device


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
        """x [n, sizes[i]] by the statistics of these rows, which move the running ones (training)."""
        begin, end = self.begins[i], self.begins[i + 1]
        weight, bias, mean, var = (t[begin:end] for t in (self.weight, self.bias, self.running_mean, self.running_var))
        y = F.batch_norm(x, mean, var, weight, bias, training=True, momentum=self.momentum, eps=self.eps)
        if i == 0:  # and torch has taken x
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
