"""Building, fitting and scoring a model on a Dataset."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import models
from .._optional import optional
from ..training.memory import check_memory
from .data import Dataset

# What `fastnest train` and `report` build and fit where nothing is asked for.
BATCH = 128
LOWER = "try a lower --rate"
DEFAULTS: dict[str, Any] = {"model": "resnest", "width": 128, "blocks": 8, "epochs": 30, "rate": 2e-3, "seed": 0}
KINDS: dict[str, Any] = {"resnest": models.ResNEst, "aresnest": models.AResNEst, "densenest": models.DenseNEst}


@dataclass(frozen=True)
class Fit:
    """The loss of every batch, and how long they all took."""

    losses: list[float]
    seconds: float


@dataclass(frozen=True)
class Score:
    """Share of classes found, or R^2 (NaN where it has no meaning) and the root mean square error in the target's own
    unit."""

    value: float
    rmse: float | None = None

    def __str__(self) -> str:
        if self.rmse is None:
            return f"accuracy {self.value:.2%}"
        r2 = "undefined (one target in all held-out rows)" if math.isnan(self.value) else f"{self.value:.3f}"
        return f"R^2 {r2}, RMSE {self.rmse:.2f}"


def build(kind: str, data: Dataset, width: int, blocks: int, seed: int) -> torch.nn.Module:
    """A stream of `width` with bottlenecks of width / 8, or dense growths that sum to `width` with DenseNet's hidden
    layers of 4 growths.

    Raises ValueError for images, and for sizes whose training needs more memory than there is.
    """
    if data.x.dim() != 2:
        raise ValueError(f"{kind}: data must be rows of features, got images of {data.shape}")
    sizes = data.x.shape[1], data.outputs
    growth, bottleneck = max(1, width // blocks), max(1, width // 8)
    if kind == "densenest":
        stream = sizes[0] + blocks * growth
        weights = 4 * growth * (blocks * (sizes[0] + growth) + growth * blocks * (blocks - 1) // 2)
        values = stream + 4 * growth * blocks
    else:
        stream = width
        weights = 2 * blocks * width * bottleneck + sizes[0] * width
        values = blocks * (width + bottleneck)
    # Weights, their gradients and AdamW's two moments; of a batch what the backward reads, and its gradients.
    needed = 16 * (weights + stream * sizes[1]) + 8 * BATCH * values
    check_memory(f"{kind}: a training with --width {width} and --blocks {blocks}", needed)
    torch.manual_seed(seed)
    if kind == "densenest":
        return models.DenseNEst(*sizes, growth=growth, hidden=4 * growth, blocks=blocks)
    model: torch.nn.Module = KINDS[kind](*sizes, width=width, bottleneck=bottleneck, blocks=blocks)
    return model


def loss(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy for classes, else the mean square of the standardised error."""
    output = model(x)
    return F.mse_loss(output, y) if y.is_floating_point() else F.cross_entropy(output, y)


def fit(
    model: torch.nn.Module,
    data: Dataset,
    *,
    epochs: int,
    rate: float,
    seed: int = 0,
    batch: int = BATCH,
    decay: float = 1e-2,
    label: str = "training",
    loss: Callable[[torch.nn.Module, Tensor, Tensor], Tensor] = loss,
    every_epoch: Callable[[int], None] | None = None,
) -> Fit:
    """AdamW on shuffled batches with a rate that falls to zero; the same seed gives the same batches.

    Raises ValueError once the loss is no longer finite.
    """
    tqdm = optional("tqdm", "demo").tqdm
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses, spent = [], 0.0
    model.train()
    with tqdm(range(epochs), desc=label, unit="epoch", dynamic_ncols=True, leave=False) as progress:
        for epoch in progress:
            start = time.perf_counter()
            for rows in torch.randperm(len(data.x), generator=order).split(batch):
                optimizer.zero_grad()
                value = loss(model, data.x[rows], data.y[rows])
                value.backward()
                optimizer.step()
                losses.append(value.item())
                if not math.isfinite(losses[-1]):
                    raise ValueError(f"the loss must stay finite, got {losses[-1]} in epoch {epoch + 1}: {LOWER}")
            schedule.step()
            spent += time.perf_counter() - start
            progress.set_postfix(loss=f"{losses[-1]:.4f}")
            if every_epoch:
                every_epoch(epoch)
    return Fit(losses, spent)


@torch.no_grad()
def score(model: torch.nn.Module, data: Dataset) -> Score:
    """On the held-out rows. Raises ValueError where outputs are not finite."""
    model.eval()
    output = torch.cat([model(rows) for rows in data.x_held_out.split(1024)])
    if not output.isfinite().all():  # the last step has no loss after it
        raise ValueError(f"the model's outputs must be finite, got NaN or Inf after the training: {LOWER}")
    return score_of(output, data)


def score_of(output: Tensor, data: Dataset) -> Score:
    """Of outputs for the held-out rows."""
    if data.scale is None:
        return Score(float((output.argmax(1) == data.y_held_out).double().mean()))
    error = (output - data.y_held_out).double().square()
    spread = float((data.y_held_out - data.y_held_out.mean(0)).double().square().sum())
    r2 = 1 - float(error.sum()) / spread if spread else math.nan
    return Score(r2, float((error.mean(0) * data.scale.square()).mean().sqrt()))
