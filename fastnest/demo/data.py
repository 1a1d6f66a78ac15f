"""Data sets as float32 tensors, standardised by their training rows."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from .._optional import optional

CLASSIFICATION = ("digits", "wine", "breast_cancer", "iris")
REGRESSION = ("diabetes",)


@dataclass(frozen=True)
class Dataset:
    """Rows x [n, features] and targets y: classes [n] (int64), or standardised values [n, outputs] with their scale."""

    name: str
    x: Tensor
    y: Tensor
    x_held_out: Tensor
    y_held_out: Tensor
    outputs: int
    scale: Tensor | None = None  # [outputs], the unit of a standardised target; None for classes

    @property
    def is_classification(self) -> bool:
        return self.scale is None

    def __str__(self) -> str:
        kind = f"{self.outputs} classes" if self.is_classification else f"regression of {self.outputs} values"
        rows = f"{len(self.x)} training and {len(self.x_held_out)} held-out rows of {self.x.shape[1]}"
        return f"{self.name}: {rows}, {kind}"


def _standardised(values: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    std, mean = torch.std_mean(training, 0)
    std = torch.where(std > 0, std, 1.0)  # a constant column stays constant
    return (values - mean) / std, std


def split(name: str, x: numpy.ndarray, y: numpy.ndarray, *, held_out: float = 0.25, seed: int = 0) -> Dataset:
    """Shuffles, keeps a share of the rows apart, and standardises; integer targets [n] are classes."""
    x = torch.from_numpy(numpy.asarray(x, dtype="float64"))
    classes = numpy.issubdtype(y.dtype, numpy.integer) and y.ndim == 1
    if x.ndim != 2 or len(x) != len(y) or len(x) < 8:
        got = f"x {list(x.shape)}, y {list(y.shape)}"
        raise ValueError(f"{name}: x must be [rows, features] with at least 8 rows and y as long, got {got}")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    cut = len(x) - int(held_out * len(x))
    training, apart = order[:cut], order[cut:]
    x, _ = _standardised(x, x[training])
    if classes:
        values, y = numpy.unique(y, return_inverse=True)
        y, outputs, scale = torch.from_numpy(y).long(), len(values), None
    else:
        y = torch.from_numpy(numpy.asarray(y, dtype="float64")).reshape(len(x), -1)
        y, scale = _standardised(y, y[training])
        y, outputs = y.float(), y.shape[1]
    x = x.float()
    return Dataset(name, x[training], y[training], x[apart], y[apart], outputs, scale)


def load(source: str, *, target: str | None = None, regression: bool = False) -> Dataset:
    """A data set of scikit-learn by name, a .npz with arrays x and y, or a .csv with a header line.

    `target` names the csv's column to predict (default: the last). Whole numbers and words are classes, unless
    `regression` says that they are values.
    """
    path = Path(source)
    if path.suffix == ".npz":
        arrays = numpy.load(path)
        if not {"x", "y"} <= set(arrays):
            raise ValueError(f"{source} must hold arrays x and y, got {', '.join(sorted(arrays))}")
        return split(path.stem, arrays["x"], arrays["y"].astype(float) if regression else arrays["y"])
    if path.suffix == ".csv":
        return split(path.stem, *_csv(path, target, regression))
    if source not in CLASSIFICATION + REGRESSION:
        names = ", ".join(CLASSIFICATION + REGRESSION)
        raise ValueError(f"data must be a .csv, a .npz or one of {names}, got {source!r}")
    bunch = getattr(optional("sklearn.datasets", "demo"), f"load_{source}")()
    return split(source, bunch.data, bunch.target)


def _csv(path: Path, target: str | None, regression: bool) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Numbers, and the target column: int (classes) where it holds whole numbers or words, else float."""
    with path.open(newline="") as file:
        header, *lines = [line for line in csv.reader(file) if line]
    column = header.index(target) if target in header else len(header) - 1
    if target is not None and target not in header:
        raise ValueError(f"{path}: target must be one of {', '.join(header)}, got {target!r}")
    wanted = [line[column] for line in lines]
    try:
        x = numpy.array([[float(v) for i, v in enumerate(line) if i != column] for line in lines])
    except ValueError as error:
        raise ValueError(f"{path}: every column but the target must hold numbers ({error})") from error
    for kind in (float,) if regression else (int, float):
        try:
            return x, numpy.array([kind(value) for value in wanted])
        except ValueError:
            pass
    if regression:
        raise ValueError(f"{path}: {header[column]} must hold numbers to be a regression target, got {wanted[0]!r}")
    return x, numpy.unique(wanted, return_inverse=True)[1]
