"""Text files with separators: encoding, comments, header and separator, and columns of text by pyarrow's reader."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._optional import optional
from .columns import MISSING, NUMBER, TRUTH

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
ENCODINGS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # by their first bytes
LOOKED_AT = 100  # rows that have to agree on the separator


@dataclass(frozen=True)
class Text:
    """Names and columns (pyarrow's, of strings), where a row stands in the file, and what was noticed."""

    names: list[str]
    columns: list[Any]
    place: Callable[[int], str]
    notes: tuple[str, ...]


def read(path: Path, *, header: bool = True) -> Text:
    """A table from a file of text: separated by comma, semicolon or (.tsv: always) tab.

    Lines that begin with # before the table, and columns without name and values, are left out, and noted.

    Raises ValueError, naming the line but not the file, for what is not UTF-8 (or UTF-16 that says so), rows of
    different lengths, names that are absent, double or numbers, and where the separator is in doubt.
    """
    text = _decoded(path)
    start, comments = _table_start(text)
    text, first = text[start:], 1 + len(_lines(text[:start]))
    separator = _separator(path, text)
    if '"' in text:
        _check_quotes(text, separator, first)
    rows = _records(text, separator)
    try:
        _, head = next(rows)
    except (StopIteration, csv.Error) as error:
        raise ValueError(f"must hold a table, got {'no rows' if not text.strip() else error}") from error
    names = [name.strip() for name in head] if header else [f"c{i + 1}" for i in range(len(head))]
    if len(names) < 2:
        tried = "tab" if path.suffix.lower() == ".tsv" else "comma, semicolon or tab"
        raise ValueError(f"must have at least two columns, got 1 in line {first} by {tried}")

    def place(row: int) -> str:
        try:
            line = next(line for i, (line, _) in enumerate(_records(text, separator)) if i == row + header)
        except csv.Error:  # a value longer than the csv module takes
            return f"row {row + 1}"
        return f"line {first - 1 + line}"

    columns = _columns(text, separator, len(names), header, place)
    notes = [f"separated by {SEPARATORS[separator]}s"]
    if comments:
        notes.append(f"{comments} line{'s' * (comments > 1)} beginning with # skipped")
    if not header:
        notes.append(f"no header: columns are named {names[0]} to {names[-1]}")
    else:
        names, columns, empty = _named(names, columns)
        notes += [f"column {i} left out: it has neither name nor values" for i in empty]
        _check_names(f"line {first}", names)
    return Text(names, columns, place, tuple(notes))


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    encoding = next((name for mark, name in ENCODINGS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} (0x{content[error.start]:02x}, line {content.count(10, 0, error.start) + 1})"
        raise ValueError(
            f"must be text in UTF-8, got {where}: convert it, if it is Latin-1 by `iconv -f latin1 -t utf-8 FILE > NEW`"
        ) from error
    text = text.lstrip("\ufeff")  # written twice by programs that add one to a file that has it
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"must be text, got a byte of 0 in line {line}: binary, or UTF-16 without its mark")
    return text


def _lines(text: str) -> list[str]:
    return io.StringIO(text, newline="").readlines()


def _table_start(text: str) -> tuple[int, int]:
    """Where the first line begins that is neither blank nor a comment, and how many comments came before."""
    start = comments = 0
    for line in io.StringIO(text, newline=""):
        if line.strip() and not line.startswith("#"):
            break
        start, comments = start + len(line), comments + line.startswith("#")
    return start, comments


def _records(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of every row that is not blank, as pyarrow counts them."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    line = 1
    for fields in reader:
        if fields:
            yield line, fields
        line = reader.line_num + 1


def _separator(path: Path, text: str) -> str:
    """The one that gives the first rows as many fields as the header, and more than one."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    sizes = {separator: _sizes(text, separator) for separator in SEPARATORS}
    several = [separator for separator, found in sizes.items() if found and found[0] > 1]
    even = [separator for separator in several if len(set(sizes[separator])) == 1]
    chosen = even or several or [","]
    if len(chosen) > 1:
        said = " and ".join(SEPARATORS[separator] for separator in chosen)
        raise ValueError(
            f"the separator is in doubt, {said} both stand in the header: quote the names that hold one of them"
        )
    return chosen[0]


def _sizes(text: str, separator: str) -> list[int]:
    try:
        return [len(fields) for _, (_, fields) in zip(range(LOOKED_AT), _records(text, separator), strict=False)]
    except csv.Error:
        return []


def _check_quotes(text: str, separator: str, first: int) -> None:
    """A quote that nothing closes would take the rest of the file for one value."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    begun = 0
    try:
        for fields in reader:
            begun = reader.line_num
            if any(field != field.lstrip() and field.lstrip().startswith('"') for field in fields):
                raise csv.Error("a blank before a quote")
    except csv.Error as error:
        begun -= "blank" in str(error)
        raise ValueError(f"cannot be read: {error}, in the row that begins in line {first + begun}") from error


def _columns(text: str, separator: str, width: int, header: bool, place: Callable[[int], str]) -> list[Any]:
    """By pyarrow's reader, which does without numbers in the header's place: names are given to it."""
    arrow, reader = optional("pyarrow", "demo"), optional("pyarrow.csv", "demo")
    content, names = text.encode(), [str(i) for i in range(width)]
    uneven: list[Any] = []

    def keep(row: Any) -> str:
        uneven.append(row)
        return "skip"

    try:
        table = reader.read_csv(
            arrow.BufferReader(content),
            # One block, so that a row of any length fits in; one thread, so that rows are counted.
            read_options=reader.ReadOptions(
                use_threads=False, column_names=names, block_size=min(len(content) + 1, 2**31 - 1)
            ),
            parse_options=reader.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=keep),
            convert_options=reader.ConvertOptions(
                column_types=dict.fromkeys(names, arrow.string()), strings_can_be_null=False
            ),
        )
    except arrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{place(-1 if header else 0)} and after cannot be read: {reason}") from error
    if uneven:
        row, shown = uneven[0], uneven[0].text[:60]
        like = "as the header has names" if header else "as in the first row"
        raise ValueError(
            f"{place(row.number - 1 - header)}: every row must have {width} values, {like}, "
            f"got {row.actual_columns}: {shown!r}"
        )
    return [column.slice(1) if header else column for column in table.columns]


def _named(names: list[str], columns: list[Any]) -> tuple[list[str], list[Any], list[int]]:
    """Without the columns that have neither name nor values, whose numbers come last."""
    compute = optional("pyarrow.compute", "demo")
    kept, empty = [], []
    for i, (name, column) in enumerate(zip(names, columns, strict=True)):
        if name or compute.any(compute.not_equal(compute.utf8_trim_whitespace(column), "")).as_py():
            kept.append((name, column))
        else:
            empty.append(i + 1)
    return [name for name, _ in kept], [column for _, column in kept], empty


def _check_names(where: str, names: list[str]) -> None:
    for i, name in enumerate(names):
        if not name:
            raise ValueError(f"{where}: column {i + 1} must have a name, as it has values: name or remove it")
        if re.match(NUMBER, name) or re.match(TRUTH, name) or name.lower() in MISSING:
            raise ValueError(
                f"{where} must hold the columns' names, got {name!r}: --no-header if the file begins with its first "
                "row; a name must not be a number"
            )
        if name in names[:i]:
            places = [str(j + 1) for j, other in enumerate(names) if other == name]
            raise ValueError(f"{where}: names must differ, got {name!r} for columns {' and '.join(places)}")
