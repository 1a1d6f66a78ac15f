"""The activations of every op: the function, its gradient, and what a backward has to remember of it."""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

LEAKY_SLOPE = 0.01


def _relu_backward(df: Tensor, z: Tensor) -> Tensor:
    # As torch has it: 0 at z = 0, even under an infinite gradient, and a NaN in z lets the gradient pass.
    return torch.where(z <= 0, torch.zeros_like(df), df)


def _leaky_relu_backward(df: Tensor, z: Tensor) -> Tensor:
    return torch.where(z > 0, df, df * LEAKY_SLOPE)


def _gelu_backward(df: Tensor, z: Tensor, approximate: str = "none") -> Tensor:
    # Phi(z) + z phi(z), or the derivative of z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2.
    dz: Tensor = torch.ops.aten.gelu_backward(df, z, approximate=approximate)
    return dz


def _silu_backward(df: Tensor, z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return df * (s * (1 + z * (1 - s)))


def _tanh_backward(df: Tensor, z: Tensor) -> Tensor:
    t = torch.tanh(z)
    return df * (1 - t * t)


# name -> (z -> f(z), (df, z) -> f'(z) df)
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (torch.relu, _relu_backward),
    "gelu": (F.gelu, _gelu_backward),
    "gelu_tanh": (partial(F.gelu, approximate="tanh"), partial(_gelu_backward, approximate="tanh")),
    "silu": (F.silu, _silu_backward),
    "tanh": (torch.tanh, _tanh_backward),
    "leaky_relu": (partial(F.leaky_relu, negative_slope=LEAKY_SLOPE), _leaky_relu_backward),
    "identity": (lambda z: z, lambda df, z: df),
}

# f(f(z)) = f(z), and f'(z) can be read off f(z): a kernel keeps the output only.
IDEMPOTENT = frozenset({"relu", "identity"})


def activate(name: str, z: Tensor) -> Tensor:
    return ACTIVATIONS[name][0](z)


def activate_backward(name: str, df: Tensor, z: Tensor) -> Tensor:
    return ACTIVATIONS[name][1](df, z)


@lru_cache
def second_moment(name: str) -> float:
    """E[f(z)^2] for z ~ N(0, 1): what a He initialisation divides by (relu: 1/2, as in He et al. 2015, equation 10)."""
    z = torch.linspace(-10, 10, 20001, dtype=torch.float64, device="cpu")
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return float((activate(name, z) ** 2 * density).sum() * (z[1] - z[0]))
