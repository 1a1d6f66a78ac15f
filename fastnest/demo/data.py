"""Data sets as float32 tensors, standardised by their training rows."""

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from .._optional import optional
from . import tables

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
    reading: tables.Reading | None = None  # of a file

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
        return f"{self.name}: {rows}, {kind}" + (f"\n{self.reading}" if self.reading else "")


def _standardised(name: str, values: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """By the mean and deviation of every column; of images, of every channel."""
    std, mean = torch.std_mean(training, (0, 2, 3) if values.dim() == 4 else 0, keepdim=values.dim() == 4)
    if not std.isfinite().all():
        raise ValueError(f"{name} must hold smaller numbers: their variance is more than {values.dtype} holds")
    std = torch.where(std > 0, std, 1.0)  # a constant column stays constant
    return (values - mean) / std, std


def split(name: str, x: numpy.ndarray, y: numpy.ndarray, *, held_out: float = 0.25, seed: int = 0) -> Dataset:
    """Shuffles, keeps a share of the rows apart, and standardises by the others; whole numbers, truth values and words
    y [n] are classes.

    Raises ValueError for shapes that do not fit, and for anything but finite numbers in x or y.
    """
    _check_shapes(name, x, y)
    rows = _numbers(name, "x", x, torch.float32 if x.ndim == 4 else torch.float64)  # images are many
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    cut = len(rows) - int(held_out * len(rows))
    training, apart = order[:cut], order[cut:]
    rows = _standardised(f"{name}: x", rows, rows[training])[0].float()
    scale = None
    if y.dtype.kind in "iubUS" and y.ndim == 1:
        values, places = numpy.unique(y, return_inverse=True)
        target, outputs = torch.from_numpy(places).long(), len(values)
    else:
        target = _numbers(name, "y", y, torch.float64).reshape(len(rows), -1)
        target, scale = _standardised(f"{name}: y", target, target[training])
        target, outputs = target.float(), target.shape[1]
    if (target[training] == target[training[0]]).all():
        raise ValueError(
            f"{name}: y must differ between rows, got one value in all {len(training)} rows for training: there is "
            "nothing to learn"
        )
    return Dataset(name, rows[training], target[training], rows[apart], target[apart], outputs, scale)


def _check_shapes(name: str, x: numpy.ndarray, y: numpy.ndarray) -> None:
    if (
        x.ndim not in (2, 4)
        or y.ndim not in (1, 2)
        or len(x) != len(y)
        or len(x) < tables.LEAST_ROWS
        or 0 in (x.size, y.size)
    ):
        got = f"x {list(x.shape)}, y {list(y.shape)}"
        wanted = (
            f"[rows, features] or [rows, channels, height, width] with at least {tables.LEAST_ROWS} rows and y as long"
        )
        raise ValueError(f"{name}: x must be {wanted}, got {got}")


def _numbers(name: str, what: str, values: numpy.ndarray, dtype: torch.dtype) -> Tensor:
    if values.dtype.kind not in "iubf":
        raise ValueError(f"{name}: {what} must hold numbers, got {values.dtype}")
    found = torch.from_numpy(values.astype(str(dtype).removeprefix("torch.")))
    if not found.isfinite().all():
        raise ValueError(f"{name}: {what} must be finite, got NaN or Inf among its values")
    return found


def decisions(options: Any) -> dict[str, Any]:
    """Keywords of `load` from the command line's options."""
    keywords = {name: getattr(options, name) for name in ("target", "missing")}
    return keywords | {
        "classes": bool(options.classes),
        "regression": bool(options.regression),
        "header": not options.no_header,
    }


USELESS = {
    "": (("--target", "--no-header", "--missing", "--classes", "--regression"), "a data set with a known target"),
    ".npz": (("--target", "--no-header", "--missing"), "a file of arrays x and y"),
    ".parquet": (("--no-header",), "a file whose columns have names"),
}


def _check_useful(source: str, kind: str, given: dict[str, bool]) -> None:
    options, what = USELESS.get(kind, ((), ""))
    said = ", ".join(option for option in options if given[option])
    if said:
        raise ValueError(f"{said}: has no effect on {source}, {what}")


def load(
    source: str,
    *,
    target: str | None = None,
    classes: bool = False,
    regression: bool = False,
    header: bool = True,
    missing: str | None = None,
) -> Dataset:
    """A data set of scikit-learn by name, a table in a .csv, .tsv, .txt or .parquet, or a .npz with arrays x and y.

    Args:
        source: its name, or the file. x of a .npz is [rows, features], or images [rows, channels, height, width], which
            are standardised by channel.
        target: the column of a table to predict (default: the last).
        classes: the target's values are classes, whatever they are.
        regression: they are numbers to predict.
        header: whether a text file begins with the columns' names.
        missing: what becomes of a table's rows with a missing value, "error" (default) or "drop".

    What was decided stands in the result's `reading`: `targets.decide` says by which rules.

    Raises ValueError for a file that cannot be read, is cut short, or holds something else, where it is in doubt what a
    target is, and for options that the source has no use for. Nothing in a file is run.
    """
    if classes and regression:
        raise ValueError("--classes and --regression exclude each other, got both")
    if missing not in (None, *tables.HOW_MISSING):
        raise ValueError(f"--missing must be {' or '.join(tables.HOW_MISSING)}, got {missing!r}")
    path = Path(source)
    kind = path.suffix.lower()
    known = kind in (*tables.FORMATS, ".npz")
    if not known and source not in CLASSIFICATION + REGRESSION:
        names = ", ".join(CLASSIFICATION + REGRESSION)
        raise ValueError(f"data must be a {', '.join(tables.FORMATS)}, .npz or one of {names}, got {source!r}")
    given = {"--target": target is not None, "--no-header": not header, "--missing": missing is not None}
    _check_useful(source, kind, given | {"--classes": classes, "--regression": regression})
    if not known:
        bunch = getattr(optional("sklearn.datasets", "demo"), f"load_{source}")()
        return split(source, bunch.data, bunch.target)
    name = path.stem.encode("utf-8", "backslashreplace").decode()  # a file's name need not be text
    if kind == ".npz":
        x, y = _npz(path)
        _check_shapes(name, x, y)
    try:
        if kind == ".npz":
            y, reading = tables.read_target(y, classes=classes, regression=regression)
        else:
            how = missing or "error"
            x, y, reading = tables.read(
                path, target=target, classes=classes, regression=regression, header=header, how_missing=how
            )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return replace(split(name, x, y), reading=reading)


def _npz(path: Path) -> tuple[numpy.ndarray, numpy.ndarray]:
    try:
        with path.open("rb") as file, numpy.load(file, allow_pickle=False) as arrays:
            if not {"x", "y"} <= set(arrays):
                raise ValueError(f"it must hold arrays x and y, got {', '.join(sorted(arrays))}")
            return arrays["x"], arrays["y"]
    except (ValueError, EOFError, TypeError, AttributeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a .npz: {error}") from error
