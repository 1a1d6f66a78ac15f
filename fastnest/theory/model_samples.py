"""A model's features with their targets, as samples for every tool of this package."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models import ResNEst
from ..models.cifar import CifarNet
from ..models.densenet import DenseNet
from ..nn.evaluation import evaluating
from .batches import Batches
from .features import features
from .loss import Loss
from .samples import Samples


def outputs_of(model: torch.nn.Module) -> Callable[[Tensor], int]:
    """Finds a model's outputs by calling it on a row."""

    def find(x: Tensor) -> int:
        with evaluating(model):
            outputs = model(x[:1])
        if outputs.dim() != 2:
            raise ValueError(f"model must return [n, outputs], got {list(outputs.shape)} for n = {len(x[:1])}")
        return int(outputs.shape[1])

    return find


def model_samples(
    function: str,
    model: torch.nn.Module,
    x: Tensor | Iterable[Any],
    y: Tensor | None,
    loss: Loss,
    *,
    intercept: bool | None = None,
    progress: bool | None = None,
    features: Callable[[torch.nn.Module, Any], Sequence[Tensor]] = features,
) -> Samples:
    """Features of the model in evaluation. intercept=None: where the model's own head has one."""
    if intercept is None:
        intercept = isinstance(model, (CifarNet, DenseNet))

    def of(x: Tensor) -> Sequence[Tensor]:
        with evaluating(model):
            return features(model, x)

    return Samples(Batches(function, x, y, progress), of, loss, outputs_of(model), intercept)


def check_prediction_problem(function: str, model: torch.nn.Module) -> ResNEst:
    """(P_phi) is about W_L and W_{L+1} of a ResNEst on vectors, whose output is linear in the features."""
    if not isinstance(model, ResNEst):
        raise TypeError(f"{function}: resnest must be a fastnest.models.ResNEst, got {type(model).__name__}")
    if model.head_norm is not None:
        raise ValueError(f"{function}: resnest must have no batch norm before its head, got head_norm=True")
    return model
