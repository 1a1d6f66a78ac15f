"""One column of a table: numbers, truth values or text, and where a value is missing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy

from .._optional import optional

# In any case; blanks around them do not count.
MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none", "?", "-")
WHOLE = r"^[+-]?[0-9]+$"
NUMBER = r"(?i)^[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf|infinity)$"
TRUTH = r"(?i)^(true|false)$"
DATE = (
    r"^([0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{2,4})([T ].*)?$"
    r"|^[0-9]{1,2}:[0-9]{2}(:.*)?$"
)
# 1,234 or 5% or $3: what a person reads as a number, and a program does not.
NEARLY_NUMBER = r"^[+-]?\s*[$€£]?\s*[0-9][0-9.,'’_\s]*(e[+-]?[0-9]+)?\s*[%$€£]?$"
HOW_TO_WRITE = {
    "date": "a date has to be written as a number, such as days since the first",
    "nearly": "write numbers with a decimal point, and without %, units and marks between thousands",
}

Place = Callable[[int], str]  # from the number of a row to "line 7"


@dataclass(frozen=True)
class Column:
    """values [rows]: int64, uint64, float64, bool, or object for text."""

    name: str
    values: numpy.ndarray

    @property
    def is_text(self) -> bool:
        return bool(self.values.dtype == object)


def matches(values: Any, pattern: str) -> numpy.ndarray:
    """Which of the texts [rows], of numpy or pyarrow, a pattern fits."""
    arrow, compute = optional("pyarrow", "demo"), optional("pyarrow.compute", "demo")
    if isinstance(values, numpy.ndarray):
        values = arrow.chunked_array([arrow.array(values, arrow.large_string())])
    found: numpy.ndarray = compute.match_substring_regex(values, pattern).to_numpy()
    return found


def advice(text: str) -> str:
    """How to write a text that is no number, where that is known; with a colon before it."""
    for what, pattern in (("date", DATE), ("nearly", NEARLY_NUMBER)):
        if matches(numpy.array([text], dtype=object), pattern)[0]:
            return f": {HOW_TO_WRITE[what]}"
    return ""


def plain(name: str, array: Any) -> Any:
    """pyarrow's ChunkedArray as one of numbers, truth values, or text without blanks around it.

    Raises ValueError for anything else: dates, lists, bytes.
    """
    arrow, types, compute = (optional(f"pyarrow{part}", "demo") for part in ("", ".types", ".compute"))
    if types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    kind = array.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return compute.utf8_trim_whitespace(array.cast(arrow.large_string()))
    if types.is_decimal(kind) or types.is_floating(kind) or types.is_null(kind):
        return array.cast(arrow.float64())
    if types.is_boolean(kind) or types.is_integer(kind):
        return array
    how = f"; {HOW_TO_WRITE['date']}" if types.is_temporal(kind) else ""
    raise ValueError(f"column {name} must hold numbers, truth values or text, got {kind}{how}")


def missing(array: Any) -> numpy.ndarray:
    """Which values [rows] of a plain array are null, NaN, or text that stands for a missing value."""
    arrow, compute = optional("pyarrow", "demo"), optional("pyarrow.compute", "demo")
    if array.type == arrow.large_string():
        array = compute.utf8_lower(array.fill_null(""))
        found: numpy.ndarray = compute.is_in(array, value_set=arrow.array(MISSING, array.type)).to_numpy()
        return found
    absent: numpy.ndarray = array.is_null(nan_is_null=True).to_numpy()
    return absent


def column(name: str, array: Any) -> Column:
    """From a plain array without missing values: text as numbers or truth values, where every one of it is."""
    arrow, types = optional("pyarrow", "demo"), optional("pyarrow.types", "demo")
    if types.is_integer(array.type):
        return Column(name, array.to_numpy().astype("uint64" if types.is_uint64(array.type) else "int64"))
    if array.type != arrow.large_string():
        return Column(name, array.to_numpy())
    for pattern, kind in ((WHOLE, arrow.int64()), (NUMBER, arrow.float64()), (TRUTH, arrow.bool_())):
        if matches(array, pattern).all():
            try:
                return Column(name, _unsigned(array).cast(kind).to_numpy())
            except arrow.ArrowInvalid:  # more digits than int64 has
                continue
    return Column(name, array.to_numpy())


def _unsigned(array: Any) -> Any:
    """Without the plus before a number, which pyarrow does not read."""
    return optional("pyarrow.compute", "demo").replace_substring_regex(array, r"^\+", "")


def floats(one: Column, place: Place, *, wanted: str) -> numpy.ndarray:
    """The values as float64 [rows], truth values as 0 and 1.

    Raises ValueError, naming the first row, for text and for values that are not finite; `wanted` says who must hold
    numbers.
    """
    if one.is_text:
        row = int(numpy.argmin(matches(one.values, NUMBER)))
        text = str(one.values[row])
        raise ValueError(f"{place(row)}, column {one.name}: {wanted}, got {text!r}{advice(text)}")
    values: numpy.ndarray = one.values.astype("float64")
    if not numpy.isfinite(values).all():
        row = int(numpy.argmin(numpy.isfinite(values)))
        raise ValueError(f"{place(row)}, column {one.name}: numbers must be finite, got {values[row]}")
    return values
