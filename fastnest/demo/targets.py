"""Whether a target column is classes or values; what is in doubt is an error that names the option to decide it."""

from dataclasses import dataclass

import numpy

from .columns import DATE, HOW_TO_WRITE, NEARLY_NUMBER, NUMBER, Column, Place, floats, matches

MOST_CLASSES = 20  # of whole numbers, where nobody says that they are classes
EXACT = 2.0**53  # from where on neighbouring whole numbers are one float64
SHOWN = 10  # names of classes or columns in one line


@dataclass(frozen=True)
class Target:
    """y: classes 0, 1, ... [rows] (int64), or values [rows] (float64); in words what they were read as."""

    y: numpy.ndarray
    words: str


def listed(names: list[str] | tuple[str, ...]) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def decide(one: Column, place: Place, *, classes: bool = False, regression: bool = False) -> Target:
    """What a column without missing values is as a target.

    Text is classes where there are at most half as many different ones as rows. Truth values are classes. Numbers with
    a fraction are values. Whole numbers are classes where there are at most 20 different ones, each in two rows or
    more. `classes` and `regression` decide the rest, and against these rules.

    Raises ValueError for one value in all rows, for values that are not as asked for, and for what is in doubt: other
    whole numbers, whole numbers of a floating type or with a decimal point, text that nearly every row has its own of,
    numbers and words side by side, dates, and numbers such as 1,234 or 5 %.
    """
    if not one.is_text:
        floats(one, place, wanted="the target must hold numbers")
        if one.values.dtype.kind == "f" and not regression and (abs(one.values) >= EXACT).all():
            raise ValueError(f"target {one.name} holds numbers of more than 15 digits: --regression, or write names")
    found, codes, counts = numpy.unique(one.values, return_inverse=True, return_counts=True)
    if len(found) == 1:
        raise ValueError(f"target {one.name} has one value in every row, {found[0]}: there is nothing to learn")
    if regression:
        wanted = "--regression needs numbers in the target"
        return Target(floats(one, place, wanted=wanted), f"regression: {_kind(one)}, by --regression")
    if not classes:
        if one.is_text:
            _check_text(one, place)
        if one.values.dtype.kind == "f" and (one.values % 1 != 0).any():
            return Target(one.values, "regression: numbers with a fraction")
        _check_classes(one, found, codes, counts, place)
    names = [str(value) for value in found]
    reason = "by --classes" if classes else _kind(one)
    return Target(codes.astype("int64"), f"{len(names)} classes: {listed(names)} ({reason})")


def _kind(one: Column) -> str:
    return {"O": "words", "b": "truth values", "f": "numbers"}.get(one.values.dtype.kind, "whole numbers")


def _check_text(one: Column, place: Place) -> None:
    number = matches(one.values, NUMBER)
    if number.any():  # and not all, or it were a column of numbers
        few = number if number.mean() <= 0.5 else ~number
        row = int(numpy.argmax(few))
        raise ValueError(
            f"{place(row)}, target {one.name}: got {one.values[row]!r} in a column of "
            f"{'words' if number[row] else 'numbers'}: correct it, or give --classes if every different text is a class"
        )
    for pattern, kind in ((DATE, "date"), (NEARLY_NUMBER, "nearly")):
        found = matches(one.values, pattern)
        if found.any():
            row = int(numpy.argmax(found))
            raise ValueError(
                f"{place(row)}, target {one.name}: got {one.values[row]!r}: {HOW_TO_WRITE[kind]}; "
                "or give --classes if every different text is a class"
            )


def _check_classes(
    one: Column, found: numpy.ndarray, codes: numpy.ndarray, counts: numpy.ndarray, place: Place
) -> None:
    kind, rows = one.values.dtype.kind, len(one.values)
    choose = "--regression if they are values, --classes if they are classes"
    if kind == "O" and len(found) > rows / 2:
        raise ValueError(
            f"target {one.name} holds words, {len(found)} different ones in {rows} rows: "
            "--classes if each is a class, --target if another column is to be predicted"
        )
    if kind == "f":
        raise ValueError(f"target {one.name} holds whole numbers written as {one.values[0]}: {choose}")
    if kind in "iu" and len(found) > MOST_CLASSES:
        raise ValueError(f"target {one.name} holds {len(found)} different whole numbers in {rows} rows: {choose}")
    if kind in "iu" and counts.min() < 2:
        row = int(numpy.argmax(counts[codes] < 2))
        raise ValueError(
            f"target {one.name} holds whole numbers, and {one.values[row]} in one row only ({place(row)}): {choose}"
        )
