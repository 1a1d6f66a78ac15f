"""What an op computes of a block: its modules in the op's order, and the call."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import Conv2d, Module

from .image import DenseLayer, run_dense_layers, run_residual_block
from .parts import Parts


class DensePlan(NamedTuple):
    """Layers of one dense block; owners are the modules that know the drop rate of theirs."""

    parts: Parts
    layers: tuple[DenseLayer, ...]
    owners: tuple[Module, ...]

    def run(self, x: Tensor) -> Tensor:
        return run_dense_layers(x, self.layers, self.drop_rates())

    def drop_rates(self) -> list[float]:
        return [getattr(owner, "drop_rate", 0.0) if owner.training else 0.0 for owner in self.owners]

    def __str__(self) -> str:
        return f"dense_block2d, {len(self.layers)} layers"


class ResidualPlan(NamedTuple):
    """Norms and convolutions of one pre-activation block; features: whether it returns (y, v) instead of y."""

    op: str
    parts: Parts
    convs: tuple[Conv2d, ...]
    projection: Conv2d | None
    features: bool = False

    def run(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.run_and_return(x, self.features)

    def run_and_return(self, x: Tensor, features: bool) -> Tensor | tuple[Tensor, Tensor]:
        return run_residual_block(x, self.parts.norms, self.convs, self.projection, features)

    def __str__(self) -> str:
        return self.op


Plan = DensePlan | ResidualPlan
