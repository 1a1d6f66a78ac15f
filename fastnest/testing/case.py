"""One call of an op, made from numbers only."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import functional

# Tensor arguments that have no gradient.
GIVEN = ("norm_mean", "norm_var", "norm1_mean", "norm1_var", "norm2_mean", "norm2_var", "dropout")


@dataclass(frozen=True)
class Case:
    """One call of an op, from numbers only, so that its repr is all one needs to repeat it.

    sizes: n m k l for residual_chain; n m d h for dense_chain, d and h tuples with one size per block (h may be ());
    n c h w for batch_stats; n c h w d b for dense_block2d, d and b tuples with one size per layer (b may be ());
    n c h w k m for bottleneck2d and basic_block2d.
    absent: tensor arguments left out. options: passed on as they are. layout: how x, or the weights, lie in memory.
    """

    op: str
    sizes: dict[str, Any]
    absent: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    layout: str = "contiguous"
    last_up: bool = True

    def __str__(self) -> str:
        sizes = " ".join(f"{letter}={size}".replace(" ", "") for letter, size in self.sizes.items())
        options = " ".join(f"{name}={value}" for name, value in self.options.items())
        absent = f"without {','.join(self.absent)}" if self.absent else ""
        layout = "" if self.layout == "contiguous" else self.layout
        return " ".join(filter(None, (self.op, sizes, options, absent, layout, "" if self.last_up else "no last up")))

    def shapes(self) -> dict[str, tuple[Any, ...] | list[tuple[Any, ...]]]:
        """Every tensor argument's shape by name; a list of them where the op takes one tensor per block."""
        return {name: shape for name, shape in SHAPES[self.op](self).items() if name not in self.absent}

    @property
    def is_contiguous(self) -> bool:
        """Whether x and the weights lie as a kernel reads them."""
        return self.layout in ("contiguous", "channels last")

    @property
    def x_shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = tuple(SHAPES[self.op](self)["x"])
        return shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Of the first output."""
        n, width, *image = self.x_shape
        if self.op == "batch_stats":
            return (width,)
        image = [(size - 1) // self.options.get("stride", 1) + 1 for size in image]
        return (n, self.sizes.get("m", width) + sum(self.sizes.get("d", ())), *image)

    def tensors(
        self, dtype: torch.dtype, compute: torch.dtype | None = None, nudge: int = 0, device: str = "cpu"
    ) -> dict[str, Any]:
        """Random arguments that are exact in dtype, held in `compute` (by default dtype too), all needing gradients.

        (But statistics and dropout masks, which have none.) Sizes keep the stream near 1. Some of x is exactly 0 (but
        see below), where relu has its kink. A nudge other than 0 draws which numbers are `nudged`. They are drawn on
        the CPU: every device gets the same.
        """
        generator, rounding = (torch.Generator().manual_seed(seed) for seed in (0, nudge))

        def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
            values = self._values(name, torch.randn(shape, generator=generator)).to(dtype)
            if nudge:
                values = nudged(values, rounding)
            # Laid out where they are used: a move packs what has gaps.
            return self._laid_out(name, values.to(device, compute or dtype)).requires_grad_(name not in GIVEN)

        return {
            name: [tensor(name, one) for one in shape] if isinstance(shape, list) else tensor(name, shape)
            for name, shape in self.shapes().items()
        }

    def _values(self, name: str, values: Tensor) -> Tensor:
        if name == "x":
            if self._all_rows_live():
                values[1::3, ::2] = 0
            return values
        if name == "dropout":
            return 1.25 * (values > -0.8)
        if name.endswith("var"):
            return 0.5 + values.abs()
        if values.dim() > 1 and name != "scale" and not name.endswith(("bias", "shift")):
            fan_in = math.prod(values.shape[1:]) if values.dim() == 4 else values.shape[-1]
            return values * (1.4 / math.sqrt(fan_in * (self.sizes["l"] if name == "up" else 1)))
        is_scale = name == "scale" or (name.startswith("norm") and name.endswith("weight"))
        return values * 0.3 + is_scale

    def _all_rows_live(self) -> bool:
        """Whether no block's features are likely to be all 0 in any row.

        Where they are, a 0 in x is a 0 in the stream behind that block too. A backward that steps back from the end of
        the stream finds it only up to rounding, hence some other one of relu's subgradients there than torch's 0.
        """
        return self.op != "residual_chain" or self.sizes["l"] == 1 or self.sizes["k"] >= 16

    def _laid_out(self, name: str, values: Tensor) -> Tensor:
        return LAYOUTS[self.layout](values) if (name == "x") != self.layout.startswith("weights") else values

    def call(self, tensors: dict[str, Any]) -> Any:
        """The public function on these tensors."""
        return getattr(functional, self.op)(**tensors, **self.options)


def nudged(values: Tensor, generator: torch.Generator) -> Tensor:
    """The values times 1 and up to half an ulp, rounded: they stay, or move to a neighbour, in their dtype.

    Rounded, so that plain torch in that dtype and in float64 see the same numbers: their difference is its error.
    """
    factors = 1 + torch.finfo(values.dtype).eps * (torch.rand(values.shape, generator=generator) - 0.5).double()
    return (values.double() * factors).to(values.dtype)


def _pad_channels(values: Tensor) -> Tensor:
    wide = torch.nn.functional.pad(values.movedim(1, -1), (2, 3)).contiguous()
    return wide[..., 2:-3].movedim(-1, 1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda values: values,
    "wide rows": lambda values: torch.nn.functional.pad(values, (0, 3))[:, : values.shape[1]],
    "every second row": lambda values: values.repeat_interleave(2, 0)[::2],
    "transposed": lambda values: values.t().contiguous().t(),
    "one row expanded": lambda values: values[:1].expand(values.shape),
    "weights transposed": lambda values: values.transpose(0, -1).contiguous().transpose(0, -1),
    "channels last": lambda values: values.movedim(1, -1).contiguous().movedim(-1, 1),
    "channels of a wider image": _pad_channels,
    "every second pixel": lambda values: values.repeat_interleave(2, 3)[..., ::2],
    "weights channels last": lambda values: (
        values.movedim(1, -1).contiguous().movedim(-1, 1) if values.dim() == 4 else values
    ),
}


def _residual_chain_shapes(case: Case) -> dict[str, Any]:
    n, m, k, l = (case.sizes[size] for size in "nmkl")
    vectors = {"down_bias": (l, k), "mid_bias": (l, k), "scale": (l, m), "shift": (l, m)}
    return {"x": (n, m), "down": (l, k, m), "mid": (l, k, k), "up": (l if case.last_up else l - 1, m, k)} | vectors


def _vectors(names: Iterable[str], sizes: Iterable[int]) -> dict[str, list[tuple[Any, ...]]]:
    sizes = list(sizes)
    return {name: [(size,) for size in sizes] for name in names}


def _dense_chain_shapes(case: Case) -> dict[str, Any]:
    n, m, d, h = (case.sizes[size] for size in "nmdh")
    reads = [m + sum(d[:i]) for i in range(len(d))]
    shapes = {"x": (n, m), "weight": list(zip(d, h or reads, strict=True)), **_vectors(["bias"], d)}
    if h:
        shapes |= {"hidden_weight": list(zip(h, reads, strict=True)), **_vectors(["hidden_bias"], h)}
    return shapes | _vectors(("scale", "shift"), reads)


def _batch_stats_shapes(case: Case) -> dict[str, Any]:
    return {"x": tuple(case.sizes.values())}


NORM = ("weight", "bias", "mean", "var")


def _dense_block2d_shapes(case: Case) -> dict[str, Any]:
    n, c, h, w, d, b = (case.sizes[size] for size in "nchwdb")
    reads = [c + sum(d[:i]) for i in range(len(d))]
    shapes = {"x": (n, c, h, w), "conv1": [(o, i, 1, 1) for o, i in zip(b, reads, strict=False)] or ()}
    shapes |= {"conv2": [(o, i, 3, 3) for o, i in zip(d, b or reads, strict=True)]}
    shapes |= _vectors([f"norm1_{name}" for name in NORM], reads) | _vectors([f"norm2_{name}" for name in NORM], b)
    return {name: shape for name, shape in shapes.items() if shape} | {"dropout": [(n, o, h, w) for o in d]}


def _residual_block2d_shapes(case: Case, kernels: tuple[int, ...]) -> dict[str, Any]:
    n, c, h, w, k, m = (case.sizes[size] for size in "nchwkm")
    reads = [c] + [k] * (len(kernels) - 1)
    writes = [*reads[1:], m]
    conv = [(o, i, kernel, kernel) for o, i, kernel in zip(writes, reads, kernels, strict=True)]
    shapes = {"x": (n, c, h, w), "conv": conv, **_vectors(["conv_bias"], writes)}
    shapes |= _vectors([f"norm_{name}" for name in NORM], reads)
    return shapes | {"projection": (m, c, 1, 1), "projection_bias": (m,)}


SHAPES: dict[str, Callable[["Case"], dict[str, Any]]] = {
    "residual_chain": _residual_chain_shapes,
    "dense_chain": _dense_chain_shapes,
    "batch_stats": _batch_stats_shapes,
    "dense_block2d": _dense_block2d_shapes,
    "bottleneck2d": partial(_residual_block2d_shapes, kernels=(1, 3, 1)),
    "basic_block2d": partial(_residual_block2d_shapes, kernels=(3, 3)),
}
