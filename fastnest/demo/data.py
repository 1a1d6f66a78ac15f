"""Data sets as float32 tensors, standardised by their training rows."""

import csv
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from .._optional import optional

CLASSIFICATION = ("digits", "wine", "breast_cancer", "iris")
REGRESSION = ("diabetes",)


@dataclass(frozen=True)
class Dataset:
    """Rows x [n, features], or images [n, channels, height, width], and targets y: classes [n] (int64), or standardised
    values [n, outputs] with their scale."""

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

    @property
    def shape(self) -> str:
        """Of one row, in words: 64, or 3 x 32 x 32."""
        return " x ".join(map(str, self.x.shape[1:]))

    def __str__(self) -> str:
        kind = f"{self.outputs} classes" if self.is_classification else f"regression of {self.outputs} values"
        rows = f"{len(self.x)} training and {len(self.x_held_out)} held-out rows of {self.shape}"
        return f"{self.name}: {rows}, {kind}"


def _standardised(values: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """By the mean and deviation of every column; of images, of every channel."""
    std, mean = torch.std_mean(training, (0, 2, 3) if values.dim() == 4 else 0, keepdim=values.dim() == 4)
    std = torch.where(std > 0, std, 1.0)  # a constant column stays constant
    return (values - mean) / std, std


def split(name: str, x: numpy.ndarray, y: numpy.ndarray, *, held_out: float = 0.25, seed: int = 0) -> Dataset:
    """Shuffles, keeps a share of the rows apart, and standardises by the others; whole numbers, truth values and words
    y [n] are classes.

    Raises ValueError for shapes that do not fit, and for anything but finite numbers in x or y.
    """
    if x.ndim not in (2, 4) or y.ndim not in (1, 2) or len(x) != len(y) or len(x) < 8 or 0 in (x.size, y.size):
        got = f"x {list(x.shape)}, y {list(y.shape)}"
        wanted = "[rows, features] or [rows, channels, height, width] with at least 8 rows and y as long"
        raise ValueError(f"{name}: x must be {wanted}, got {got}")
    rows = _numbers(name, "x", x, torch.float32 if x.ndim == 4 else torch.float64)  # images are many
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    cut = len(rows) - int(held_out * len(rows))
    training, apart = order[:cut], order[cut:]
    rows = _standardised(rows, rows[training])[0].float()
    scale = None
    if y.dtype.kind in "iubUS" and y.ndim == 1:
        values, places = numpy.unique(y, return_inverse=True)
        target, outputs = torch.from_numpy(places).long(), len(values)
    else:
        target = _numbers(name, "y", y, torch.float64).reshape(len(rows), -1)
        target, scale = _standardised(target, target[training])
        target, outputs = target.float(), target.shape[1]
    return Dataset(name, rows[training], target[training], rows[apart], target[apart], outputs, scale)


def _numbers(name: str, what: str, values: numpy.ndarray, dtype: torch.dtype) -> Tensor:
    if values.dtype.kind not in "iubf":
        raise ValueError(f"{name}: {what} must hold numbers, got {values.dtype}")
    found = torch.from_numpy(values.astype(str(dtype).removeprefix("torch.")))
    if not found.isfinite().all():
        raise ValueError(f"{name}: {what} must be finite, got NaN or Inf among its values")
    return found


def load(source: str, *, target: str | None = None, regression: bool = False) -> Dataset:
    """A data set of scikit-learn by name, a .npz with arrays x and y, a .csv with a header line, or a .parquet.

    Args:
        source: its name, or the file. x of a .npz is [rows, features], or images [rows, channels, height, width], which
            are standardised by channel.
        target: the column of a .csv or .parquet to predict (default: the last).
        regression: whether whole numbers are values. Otherwise they are classes, as words are.

    Raises ValueError for a file that cannot be read, is cut short, or holds something else. Nothing in it is run.
    """
    path = Path(source)
    if path.suffix == ".npz":
        x, y = _npz(path)
        return split(path.stem, x, y.astype(float) if regression and y.dtype.kind in "iub" else y)
    if path.suffix in TABLES:
        return split(path.stem, *_table(path, *TABLES[path.suffix](path), target, regression))
    if source not in CLASSIFICATION + REGRESSION:
        names = ", ".join(CLASSIFICATION + REGRESSION)
        raise ValueError(f"data must be a .csv, a .npz, a .parquet or one of {names}, got {source!r}")
    bunch = getattr(optional("sklearn.datasets", "demo"), f"load_{source}")()
    return split(source, bunch.data, bunch.target)


def _npz(path: Path) -> tuple[numpy.ndarray, numpy.ndarray]:
    try:
        with path.open("rb") as file, numpy.load(file, allow_pickle=False) as arrays:
            if not {"x", "y"} <= set(arrays):
                raise ValueError(f"it must hold arrays x and y, got {', '.join(sorted(arrays))}")
            return arrays["x"], arrays["y"]
    except (ValueError, EOFError, TypeError, AttributeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a .npz: {error}") from error


def _csv(path: Path) -> tuple[list[str], list[Sequence[str]]]:
    """Header and columns."""
    try:
        with path.open(newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a .csv: {error}") from error
    widths = {len(line) for line in lines}
    if len(lines) < 2 or len(widths) > 1:
        got = f"lines of {', '.join(map(str, sorted(widths)))} values" if len(widths) > 1 else f"{len(lines)} lines"
        raise ValueError(f"{path} must hold a header and lines as long as it, got {got}")
    return lines[0], list(zip(*lines[1:], strict=True))


def _parquet(path: Path) -> tuple[list[str], list[numpy.ndarray]]:
    """Header and columns."""
    parquet, arrow = optional("pyarrow.parquet", "report"), optional("pyarrow", "report")
    with path.open("rb") as file:
        try:
            table = parquet.read_table(file)
            columns = [column.to_numpy() for column in table.columns]
        except (arrow.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{path} cannot be read as a .parquet: {reason}") from error
    empty = [name for name, column in zip(table.column_names, table.columns, strict=True) if column.null_count]
    if empty:
        raise ValueError(f"{path}: every column must have a value in every row, got nulls in {', '.join(empty)}")
    return table.column_names, columns


TABLES: dict[str, Callable[[Path], tuple[list[str], list[Any]]]] = {".csv": _csv, ".parquet": _parquet}


def _table(
    path: Path, header: list[str], columns: list[Sequence[Any]], target: str | None, regression: bool
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Numbers, and the target column: whole numbers or words (classes) where it holds those, else float."""
    if target is not None and target not in header:
        raise ValueError(f"{path}: target must be one of {', '.join(header)}, got {target!r}")
    if len(header) < 2:
        raise ValueError(f"{path} must have at least two columns, got {len(header)}")
    place = len(header) - 1 if target is None else header.index(target)
    try:
        x = numpy.array([_floats(column) for i, column in enumerate(columns) if i != place]).T
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: every column but the target must hold numbers ({error})") from error
    wanted: Any = columns[place]
    for kind in (float,) if regression else (int, float):
        try:
            if not (isinstance(wanted, numpy.ndarray) and wanted.dtype.kind in "iubf"):
                wanted = numpy.array([kind(value) for value in wanted])
            return x, wanted.astype(float) if regression else wanted
        except (ValueError, TypeError, OverflowError):
            pass
    if regression:
        raise ValueError(f"{path}: {header[place]} must hold numbers to be a regression target, got {wanted[0]!r}")
    words = [str(value) for value in wanted]
    number = {word: i for i, word in enumerate(sorted(set(words)))}
    return x, numpy.array([number[word] for word in words])


def _floats(column: Sequence[Any]) -> numpy.ndarray | list[float]:
    return column.astype(float) if isinstance(column, numpy.ndarray) else [float(value) for value in column]
