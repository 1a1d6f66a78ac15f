"""Tables from files: features, target, and what was decided about them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from .._optional import optional
from . import delimited
from .columns import Column, Place, column, floats, missing, plain
from .targets import decide, listed

TEXT = (".csv", ".tsv", ".txt")
FORMATS = (*TEXT, ".parquet")
HOW_MISSING = ("error", "drop")
LEAST_ROWS = 8
INDEX = re.compile(r"__index_level_[0-9]+__")  # a column that pandas adds behind all others


@dataclass(frozen=True)
class Reading:
    """What was read from a file, and what was decided about it."""

    target: str
    target_is: str  # in words: classes, which, and why
    features: tuple[str, ...]  # their names; none of a .npz
    rows: int  # read
    dropped: int = 0  # of them, for a missing value
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        dropped = f"{self.dropped} of {self.rows} rows dropped, where a value was missing"
        lines = [
            f"target {self.target}, {self.target_is}",
            f"features {listed(self.features)}" if self.features else None,
            "; ".join([f"{self.rows} rows read", *self.notes]),
            dropped if self.dropped else None,
        ]
        return "\n".join(f"  {line}" for line in lines if line)


def read(
    path: Path,
    *,
    target: str | None = None,
    classes: bool = False,
    regression: bool = False,
    header: bool = True,
    how_missing: str = "error",
) -> tuple[numpy.ndarray, numpy.ndarray, Reading]:
    """Features x [rows, features] (float64), target y (see `targets.decide`), and what was decided.

    Args:
        path: a .csv, .tsv, .txt or .parquet.
        target: the column to predict (default: the last).
        classes, regression: what the target is, where its values leave it in doubt.
        header: whether the first line of a text file holds the names; else they are c1, c2, ...
        how_missing: "error" or "drop", the rows with a missing value.

    Raises ValueError, naming line (of a .parquet: row), column and value, but not the file.
    """
    names, arrays, place, notes = _source(path, header)
    if target is not None and target.strip() not in names:
        raise ValueError(f"target must be one of {', '.join(names)}, got {target!r}")
    if len(names) < 2:
        raise ValueError(f"must have at least two columns, got {len(names)}")
    arrays = [plain(name, array) for name, array in zip(names, arrays, strict=True)]
    rows = len(arrays[0])
    kept = _kept(names, arrays, place, how_missing) if rows else numpy.arange(0)
    if len(kept) < LEAST_ROWS:
        without = f", {len(kept)} of them without a missing value" if len(kept) < rows else ""
        raise ValueError(f"must hold at least {LEAST_ROWS} rows, got {rows}{without}")
    columns = [column(name, array.take(kept)) for name, array in zip(names, arrays, strict=True)]

    def place_of(row: int) -> str:
        return place(int(kept[row]))

    predicted = len(names) - 1 if target is None else names.index(target.strip())
    wanted = "every column but the target must hold numbers"
    others = [one for i, one in enumerate(columns) if i != predicted]
    x = numpy.stack([floats(one, place_of, wanted=wanted) for one in others], axis=1)
    found = decide(columns[predicted], place_of, classes=classes, regression=regression)
    features = tuple(one.name for one in others)
    return x, found.y, Reading(names[predicted], found.words, features, rows, rows - len(kept), notes)


def _source(path: Path, header: bool) -> tuple[list[str], list[Any], Place, tuple[str, ...]]:
    """Names, pyarrow's columns, where a row stands, and notes."""
    if path.suffix.lower() in TEXT:
        text = delimited.read(path, header=header)
        return text.names, text.columns, text.place, text.notes
    names, columns, notes = _parquet(path)
    return names, columns, lambda row: f"row {row + 1}", notes


def _parquet(path: Path) -> tuple[list[str], list[Any], tuple[str, ...]]:
    parquet, arrow = optional("pyarrow.parquet", "demo"), optional("pyarrow", "demo")
    with path.open("rb") as file:
        try:
            table = parquet.ParquetFile(file).read()
        except (arrow.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"cannot be read as a .parquet: {reason}") from error
    index = [name for name in table.column_names if INDEX.fullmatch(name)]
    table = table.drop_columns(index)
    names = [name.strip() for name in table.column_names]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"names of columns must differ, got {', '.join(double)} more than once")
    return names, table.columns, (f"pandas's index left out: {', '.join(index)}",) if index else ()


def _kept(names: list[str], arrays: list[Any], place: Place, how: str) -> numpy.ndarray:
    """Numbers of the rows in which every column has a value."""
    absent = numpy.stack([missing(array) for array in arrays], axis=1)
    empty = [name for name, all_absent in zip(names, absent.all(axis=0), strict=True) if all_absent]
    if empty:
        raise ValueError(f"every column must have values, got none in {listed(empty)}: remove the column")
    rows = absent.any(axis=1)
    if how == "error" and rows.any():
        row = int(numpy.argmax(rows))
        i = int(numpy.argmax(absent[row]))
        raise ValueError(
            f"{place(row)}, column {names[i]}: a value must be there, got {arrays[i][row].as_py()!r}: "
            f"--missing drop leaves out such rows, {rows.sum()} of {len(rows)}"
        )
    return numpy.flatnonzero(~rows)


def read_target(y: numpy.ndarray, *, classes: bool = False, regression: bool = False) -> tuple[numpy.ndarray, Reading]:
    """y of a .npz by the same rules: [rows], or values [rows, outputs]; and what was decided."""
    if y.ndim == 2:
        if classes:
            raise ValueError(f"--classes needs y [rows], got y {list(y.shape)}")
        if y.dtype.kind in "iub" and not regression:
            raise ValueError(f"whole numbers in y {list(y.shape)} need --regression; classes are y [rows]")
        values = y.astype("float64") if y.dtype.kind in "iub" else y
        return values, Reading("y", f"regression of {y.shape[1]} values", (), len(y))
    if y.dtype.kind not in "iubfUS":
        raise ValueError(f"y must hold numbers, truth values or text, got {y.dtype}")
    if y.dtype.kind in "US":
        arrow = optional("pyarrow", "demo")
        words = [word.decode("utf-8", "backslashreplace") if isinstance(word, bytes) else str(word) for word in y]
        one = column("y", plain("y", arrow.chunked_array([arrow.array(words, arrow.string())])))
    else:
        one = Column("y", y.astype({"f": "float64", "i": "int64"}.get(y.dtype.kind, y.dtype)))
    found = decide(one, lambda row: f"row {row + 1}", classes=classes, regression=regression)
    return found.y, Reading("y", found.words, (), len(y))
