"""A small network with every op of the library in it, for promises about whole models."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastnest import nn
from fastnest.functional import batch_stats

SIZE = (3, 6, 5)  # of an image


class EveryOp(torch.nn.Module):
    """Images [n, 3, 6, 5] -> [n, 4]: blocks of every kind, each channel normalised by its own statistics between them.

    Args:
        normalise: whether batch_stats is among them, by which images of a batch depend on one another.
    """

    def __init__(self, *, normalise: bool = True, dtype: torch.dtype | None = None):
        super().__init__()
        self.normalise = normalise
        self.bottleneck = nn.Bottleneck2d(3, 4, dtype=dtype)
        self.basic = nn.BasicBlock2d(3, 4, 5, stride=2, dtype=dtype)
        self.dense = nn.DenseBlock2d(5, 4, 2, dtype=dtype)
        self.residual_chain = nn.ResidualChain(13, 6, 3, dtype=dtype)
        self.dense_chain = nn.DenseChain(13, 5, 2, dtype=dtype)
        self.head = torch.nn.Linear(23, 4, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(self.basic(self.bottleneck(x)))
        if self.normalise:
            mean, var = (t[:, None, None].to(x.dtype) for t in batch_stats(x))
            x = (x - mean) * torch.rsqrt(var + 1e-3)
        return self.head(self.dense_chain(self.residual_chain(F.silu(x).mean((2, 3)))))


def every_op(*, training: bool = False, dtype: torch.dtype | None = None, **options) -> EveryOp:
    """The same weights and statistics every time."""
    generator = torch.Generator().manual_seed(0)
    model = EveryOp(dtype=dtype, **options)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            drawn = torch.randn(value.shape, generator=generator).to(value.dtype)
            if name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
                value.copy_(1 + 0.1 * drawn.abs())
            else:
                value.copy_(drawn * (0.3 if value.dim() == 1 else value[0].numel() ** -0.5))
    return model.train(training)


def images(n: int, dtype: torch.dtype | None = None) -> Tensor:
    """[n, 3, 6, 5] in channels-last memory; more of them begin with the same."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack([torch.randn(SIZE, generator=generator) for _ in range(n)])
    return drawn.to(dtype).contiguous(memory_format=torch.channels_last)


def gradients(model: torch.nn.Module, y: Tensor) -> list[Tensor]:
    """Of sum(sin(y)) with respect to every parameter."""
    return list(torch.autograd.grad(y.sin().sum(), list(model.parameters())))
