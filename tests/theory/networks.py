"""Networks and data that the tests of fastnest.theory share, in float64, and the paper's formulas written out plainly.

What `build` returns is shared by all tests: change copies (`with_prediction`) only.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy
import pytest
import torch
from torch import Tensor

from fastnest import models

datasets = pytest.importorskip("sklearn.datasets")
pytest.importorskip("scipy")

EXACT = 1e-9  # relative, of a risk: what fastnest.theory promises of all that is solved by factorisation


class Shape(NamedTuple):
    """Sizes of a ResNEst: N_in, N_o, M, K, L."""

    inputs: int
    outputs: int
    width: int
    bottleneck: int
    blocks: int

    def resnest(self, **options) -> models.ResNEst:
        sizes = {"width": self.width, "bottleneck": self.bottleneck, "blocks": self.blocks}
        model = models.ResNEst(self.inputs, self.outputs, **sizes, dtype=torch.float64, activation="gelu", **options)
        torch.nn.init.normal_(model.chain.down_bias, std=0.5)
        return model


class Random(NamedTuple):
    """Random weights, on random inputs and noisy targets that no linear map yields."""

    shape: Shape
    seed: int = 0

    def __str__(self) -> str:
        return f"random {'-'.join(map(str, self.shape))} seed {self.seed}"


class Trained(NamedTuple):
    """Trained on a data set of scikit-learn."""

    dataset: str
    shape: Shape

    def __str__(self) -> str:
        return f"trained on {self.dataset} {'-'.join(map(str, self.shape))}"


# Assumption 4 takes M >= N_in + (L - 1) K, assumption 3 M >= N_o; the second is just wide enough.
WIDE_SHAPES = [Shape(4, 2, 16, 3, 4), Shape(3, 3, 9, 2, 4), Shape(5, 1, 7, 3, 1), Shape(2, 4, 12, 4, 3)]
NARROW_SHAPES = [Shape(6, 2, 4, 3, 3), Shape(4, 2, 3, 2, 4), Shape(5, 1, 2, 2, 2)]
FEW_SHAPES = [Shape(3, 4, 2, 3, 2), Shape(2, 5, 3, 4, 3)]  # M < N_o
RANDOM_WIDE = [Random(shape, seed) for shape in WIDE_SHAPES for seed in (0, 1)]
RANDOM_NARROW = [Random(shape, seed) for shape in NARROW_SHAPES for seed in (0, 1)]
RANDOM_FEW = [Random(shape) for shape in FEW_SHAPES]
WIDE = [*RANDOM_WIDE, Trained("diabetes", Shape(10, 1, 20, 3, 4)), Trained("digits", Shape(64, 10, 80, 5, 4))]
NARROW = [*RANDOM_NARROW, Trained("diabetes", Shape(10, 1, 4, 3, 4)), Trained("digits", Shape(64, 10, 12, 5, 4))]


def over(*cases):
    """Runs a test with `case` for each."""
    return pytest.mark.parametrize("case", cases, ids=str)


class Problem(NamedTuple):
    model: models.ResNEst
    x: Tensor  # [n, N_in]
    y: Tensor  # [n, N_o]


def random_data(inputs: int, outputs: int, n: int = 120) -> tuple[Tensor, Tensor]:
    """From the global generator."""
    x, noise = torch.randn(n, inputs, dtype=torch.float64), torch.randn(n, outputs, dtype=torch.float64)
    A, B, C = (torch.randn(sizes, dtype=torch.float64) for sizes in ((inputs, 6), (6, outputs), (inputs, outputs)))
    return x, (x @ A).tanh() @ B + x.square() @ C / inputs + 0.3 * noise


def dataset(name: str, n: int = 300) -> tuple[Tensor, Tensor]:
    """Standardised inputs and targets; classes [n] as vectors of zeros and a one."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x, y = torch.from_numpy(x)[:n].double(), torch.from_numpy(y)[:n]
    x = (x - x.mean(0)) / (x.std(0) + 1e-3)
    if not y.is_floating_point():
        return x, torch.nn.functional.one_hot(y.long()).double()
    return x, ((y - y.mean()) / y.std())[:, None]


def train(model: torch.nn.Module, x: Tensor, y: Tensor, steps: int = 200) -> torch.nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().sum(1).mean().backward()
        optimizer.step()
    return model


@cache
def build(case: Random | Trained) -> Problem:
    shape = case.shape
    torch.manual_seed(0 if isinstance(case, Trained) else 100 * case.seed + sum(shape))
    if isinstance(case, Random):
        return Problem(shape.resnest(), *random_data(shape.inputs, shape.outputs))
    x, y = dataset(case.dataset)
    return Problem(train(shape.resnest(), x, y), x, y)


# The paper's formulas


@torch.no_grad()
def linear_maps(model: models.ResNEst) -> list[Tensor]:
    """[W_0, ..., W_L]."""
    return [model.expand.weight.clone(), *model.chain.up.clone()]


@torch.no_grad()
def before_last(model: models.ResNEst, x: Tensor) -> tuple[Tensor, Tensor]:
    """x_{L-1} [n, m] and v_L [n, k]."""
    *earlier, v = model.features(x)
    return sum(v_i @ W.T for v_i, W in zip(earlier, linear_maps(model)[:-1], strict=True)), v


def prediction_risk(model: models.ResNEst, x: Tensor, y: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The squared risk as a function of (W_L, W_{L+1}), differentiable."""
    X, V = before_last(model, x)
    return lambda W_L, W_Lp1: ((X + V @ W_L.T) @ W_Lp1.T - y).square().sum(1).mean()


def point(model: models.ResNEst) -> tuple[Tensor, Tensor]:
    return model.chain.up.detach()[-1].clone(), model.head.weight.detach().clone()


def with_prediction(model: models.ResNEst, W_L: Tensor, W_Lp1: Tensor) -> models.ResNEst:
    """A copy with other W_L and W_{L+1}."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.chain.up[-1] = W_L
        other.head.weight.copy_(W_Lp1)
    return other


def first_blocks(model: models.ResNEst, blocks: int) -> models.ResNEst:
    """The same network without its later blocks."""
    m, k = model.chain.width, model.chain.bottleneck
    shape = Shape(model.expand.in_features, model.head.out_features, m, k, blocks)
    fewer = shape.resnest()
    state = {name: t[:blocks] if name.startswith("chain.") else t for name, t in model.state_dict().items()}
    fewer.load_state_dict(state)
    return fewer


def least_risk(rows: Tensor | list[Tensor], y: Tensor) -> float:
    """Of a linear predictor, by NumPy's least squares (LAPACK gelsd)."""
    rows = (rows if isinstance(rows, Tensor) else torch.cat(list(rows), 1)).detach().numpy()
    weight = numpy.linalg.lstsq(rows, y.numpy(), rcond=None)[0]
    return float(((rows @ weight - y.numpy()) ** 2).sum(1).mean())


def dense_hessian(model: models.ResNEst, x: Tensor, y: Tensor) -> Tensor:
    """Of the risk in (W_L, W_{L+1}), every entry, by automatic differentiation: [m k + o m, m k + o m]."""
    f, parts = prediction_risk(model, x, y), point(model)
    sizes = [part.numel() for part in parts]
    blocks = torch.autograd.functional.hessian(f, parts)
    return torch.cat([torch.cat([blocks[i][j].reshape(sizes[i], sizes[j]) for j in (0, 1)], 1) for i in (0, 1)])


@torch.no_grad()
def critical(problem: Problem, keep: list[int]) -> models.ResNEst:
    """The network at a critical point of (P_phi) with W_{L+1} of rank len(keep).

    Its outputs are F Q Q^T: the fit F of y by x_{L-1} and v_L, projected on some of its principal directions Q. The
    gradient to W_L vanishes as the error is orthogonal to v_L in the directions Q, the one to W_{L+1} as x_L is made
    orthogonal to the fit's directions that are not kept (which takes K of at least their number).
    """
    model, x, y = problem
    X, V = before_last(model, x)
    fit = torch.linalg.lstsq(torch.cat([X, V], 1), y, driver="gelsd").solution
    F = torch.cat([X, V], 1) @ fit
    directions = torch.linalg.svd(F, full_matrices=False).Vh.T
    Q, others = directions[:, keep], directions[:, [i for i in range(y.shape[1]) if i not in keep]]
    B_x, B_v = (fit @ Q).split([X.shape[1], V.shape[1]])
    W_L = (B_v @ torch.linalg.pinv(B_x)).T
    left = (F @ others).T  # what x_L has to be orthogonal to
    W_L = W_L - (torch.linalg.pinv(left @ V) @ left @ (X + V @ W_L.T)).T
    return with_prediction(model, W_L, Q @ B_x.T)


def huber(outputs: Tensor, y: Tensor) -> Tensor:
    """A convex loss that has no name."""
    return torch.nn.functional.huber_loss(outputs, y)
