"""Losses by name, and what targets have to look like for them."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


def squared(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean over samples of the squared Euclidean norm of outputs [n, o] - y [n, o]."""
    return (outputs - y).square().sum(1).mean()


class Loss(NamedTuple):
    """A loss, convex in its first argument, as the mean over the rows of (outputs [n, o], targets)."""

    name: str
    mean: Callable[[Tensor, Tensor], Tensor]
    one_hot: bool = False  # whether classes are taken as vectors [n, o] of zeros and a one

    @property
    def is_squared(self) -> bool:
        return self.mean is squared


NAMED = {
    "squared": Loss("squared", squared, one_hot=True),
    "cross_entropy": Loss("cross_entropy", F.cross_entropy),
}


def loss_of(function: str, loss: str | Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """The loss that the argument `loss` of a function of this name asks for."""
    if isinstance(loss, str) and loss in NAMED:
        return NAMED[loss]
    if not callable(loss):
        raise ValueError(f"{function}: loss must be {', '.join(NAMED)} or a callable, got {loss!r}")
    return Loss(getattr(loss, "__name__", type(loss).__name__), loss)


def is_classes(y: Tensor) -> bool:
    return y.dim() == 1 and not y.is_floating_point()


def targets(function: str, y: Tensor, loss: Loss, outputs: int) -> Tensor:
    """y as `loss` takes it: classes [n] (int64), or float64 [n, outputs]."""
    if is_classes(y):
        y = y.long()
        if len(y) and not (0 <= int(y.min()) and int(y.max()) < outputs):
            raise ValueError(
                f"{function}: y must hold classes from 0 to {outputs - 1}, got {int(y.min())} to {int(y.max())}"
            )
        return F.one_hot(y, outputs).double() if loss.one_hot else y
    if loss.name == "cross_entropy" and not y.is_floating_point():
        raise ValueError(f"{function}: y must be classes [n] or probabilities [n, {outputs}], got {list(y.shape)}")
    y = y.double().unsqueeze(1) if y.dim() == 1 else y.double()
    if y.dim() != 2 or y.shape[1] != outputs:
        raise ValueError(f"{function}: y must be [n, {outputs}], got {list(y.shape)}")
    return y


def outputs_for(y: Tensor) -> int:
    """How many outputs a predictor of y has: its columns, or its largest class + 1."""
    if is_classes(y):
        return int(y.max()) + 1
    return 1 if y.dim() == 1 else y.shape[1]
