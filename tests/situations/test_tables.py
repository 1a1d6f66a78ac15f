"""Tables as people have them: every one is read rightly, or refused with a line that says where and what to do."""

import datetime
import decimal
import re

import numpy
import pytest

from fastnest.demo import data

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS = 20
REALS = [f"{i * i % 7 + i / 8}" for i in range(ROWS - 1)] + ["0.5"]


def table(targets, head="a,y", separator=",", end="\n", before=""):
    """Text with the targets, over and over, behind a feature."""
    targets = [targets[i % len(targets)] for i in range(max(ROWS, len(targets)))]
    lines = [head, *(f"{i}.5,{target}" for i, target in enumerate(targets))]
    return before + "".join(line.replace(",", separator) + end for line in lines)


def one(value, others=REALS, **form):
    """One such value among others, in line 8."""
    return table([*others[:6], value, *others[7:]], **form)


DROP = {"missing": "drop"}
WORDS, WHOLE = ["u", "v"] * 10, ["1", "2", "3", "1"] * 5
SEVERAL = "line 1: names must differ, got 'y' for columns 2 and 3"
CHOOSE = "--regression if they are values, --classes if they are classes"
CLASSES2, VALUES = "20 rows read;|target y, 2 classes: u, v", "target y, regression: numbers with a fraction"
# name: (file's content, options, what is said of it); each part between | is in it, of an error where it begins with !
TEXT = {
    # targets
    "numbers with a fraction": (table(REALS), {}, VALUES),
    "signs and exponents": (table(["+1.5", "-.5", "2.", "1e3", "1E-3"]), {}, VALUES),
    "words": (table(WORDS), {}, CLASSES2),
    "truth values": (table(["true", "False"]), {}, "2 classes: False, True (truth values)"),
    "truth values in different cases": (table(["true", "TRUE", "False"]), {}, "2 classes: False, True"),
    "truth values as numbers": (table(["true", "False"]), {"regression": True}, "regression: truth values, by"),
    "few whole numbers": (table(WHOLE), {}, "target y, 3 classes: 1, 2, 3 (whole numbers)"),
    "whole numbers as values": (table(WHOLE), {"regression": True}, "regression: whole numbers, by --regression"),
    "many whole numbers": (table([str(i) for i in range(25)]), {}, f"!25 different whole numbers in 25 rows: {CHOOSE}"),
    "many classes": (table([str(i) for i in range(25)]), {"classes": True}, "25 classes: 0, 1, 2|and 15 more (by"),
    "a class of one row": (one("7", WHOLE), {}, f"!7 in one row only (line 8): {CHOOSE}"),
    "whole numbers with a point": (table(["1.0", "2.0"]), {}, f"!whole numbers written as 1.0: {CHOOSE}"),
    "too many digits": (table([str(10**20), str(10**20 + 1)]), {}, "!numbers of more than 15 digits"),
    "a word per row": (table([f"n{i}" for i in range(20)]), {}, "!words, 20 different ones in 20 rows: --classes if"),
    "a class per row": (table([f"n{i}" for i in range(20)]), {"classes": True}, "20 classes: n0, n1|(by --classes)"),
    "words as values": (table(WORDS), {"regression": True}, "!line 2, column y: --regression needs numbers|got 'u'"),
    "one value": (table(["3"]), {}, "!target y has one value in every row, 3: there is nothing to learn"),
    "one number": (table(["3.5"]), {"regression": True}, "!target y has one value in every row, 3.5"),
    "one word": (table(["u"]), {"classes": True}, "!target y has one value in every row, u"),
    "dates": (table(["2020-01-01", "2020-01-02"]), {}, "!line 2, target y: got '2020-01-01': a date has to be written"),
    "dates as classes": (table(["2020-01-01", "2020-01-02"]), {"classes": True}, "2 classes: 2020-01-01, 2020-01-02"),
    "a word among numbers": (one("many"), {}, "!line 8, target y: got 'many' in a column of numbers: correct it, or"),
    "a number among words": (one("7", WORDS), {}, "!line 8, target y: got '7' in a column of words"),
    "marks between thousands": (one('"1,234"'), {}, "!line 8, target y: got '1,234' in a column of numbers"),
    "only such": (table(['"1,234"', '"5,678"']), {}, "!line 2, target y: got '1,234': write numbers with a decimal"),
    "per cent": (one("5%"), {}, "!line 8, target y: got '5%' in a column of numbers"),
    "only per cent": (table(["5 %", "6 %"]), {}, "!line 2, target y: got '5 %': write numbers with a decimal point"),
    "per cent as values": (one("5%"), {"regression": True}, "!line 8, column y|got '5%': write numbers with a decimal"),
    "inf": (one("inf"), {}, "!line 8, column y: numbers must be finite, got inf"),
    "both options": (table(REALS), {"classes": True, "regression": True}, "!--classes and --regression exclude each"),
    "another column": (table(WORDS, head="y,c"), {"target": "c"}, "target c, 2 classes|features y"),
    "an unknown column": (table(WORDS), {"target": "z"}, "!target must be one of a, y, got 'z'"),
    # missing values
    **{f"missing: {v}": (one(v), {}, f"!line 8, column y: a value must be there, got '{v}': --missing drop leaves out")
       for v in ("NA", "n/a", "NaN", "null", "None", "", "?", "-", "#N/A")},
    "blanks for a value": (one("  "), {}, "!line 8, column y: a value must be there, got ''"),
    "a class is missing": (one("", WORDS), {}, "!line 8, column y: a value must be there, got ''|1 of 20"),
    "missing among features": (table(WORDS).replace("3.5", "?"), {}, "!line 5, column a: a value must be there"),
    "dropped": (one("NA"), DROP, f"{VALUES}|1 of 20 rows dropped|15 training and 4 held-out"),
    "dropped for a feature": (table(WORDS).replace("\n3.5", "\n?"), DROP, "1 of 20 rows dropped"),
    "too many to drop": (table(["NA", "NA", "1.5"]), DROP, "!at least 8 rows, got 20, 6 of them without a missing"),
    "nothing in a column": (table(["NA"]), DROP, "!every column must have values, got none in y"),
    "what is dropped counts no more": (table(WORDS).replace("\n3.5,v", "\n?,7"), DROP, "2 classes: u, v|1 of 20 rows"),
    "empty rows at the end": (table(WORDS) + ",\n,\n", {}, "!line 22, column a: a value must be there, got ''|2 of 22"),
    "no such choice": (table(WORDS), {"missing": "fill"}, "!--missing must be error or drop, got 'fill'"),
    # features
    "text in a feature": (table(WORDS).replace("\n3.5", "\nred"), {}, "!line 5, column a|must hold numbers, got 'red'"),
    "a date in a feature": (table(WORDS).replace("\n3.5", "\n1.2.2020"), {}, "!line 5, column a|'1.2.2020': a date"),
    "decimal commas": (table(WORDS, separator=";").replace(".5", ",5"), {}, "!line 2, column a|'0,5': write numbers"),
    "truth values in a feature": (re.sub(r"\n\d+\.5", "\ntrue", table(WORDS), count=9), {}, "!column a|got 'true'"),
    "a column of truth values": (re.sub(r"\n\d+\.5", "\nTrue", table(WORDS)), {}, CLASSES2),
    "a constant feature": (re.sub(r"\n\d+\.5", "\n1", table(WORDS)), {}, CLASSES2),
    "a number too large": (table(WORDS).replace("3.5", "1e999"), {}, "!line 5, column a: numbers must be finite"),
    "a variance too large": (table(WORDS).replace("3.5", "1e200"), {}, "!x must hold smaller numbers"),
    "a very long number": (table(WORDS).replace("\n3.5", "\n" + "1" * 200_000), {}, "!row 4, column a: numbers must"),
    # names
    "no header": ("".join(table(WORDS).splitlines(True)[1:]), {}, "!line 1 must hold the columns' names, got '0.5'"),
    "no header, and it is said": (table(WORDS, head="9.5,u"), {"header": False}, "target c2|features c1|21 rows"),
    "a header of years": (table(WORDS, head="2020,y"), {}, "!line 1 must hold the columns' names, got '2020'"),
    "blanks around names": (table(WORDS, head="  a , y "), {"target": " y"}, CLASSES2),
    "quoted names": (table(WORDS, head='"a","y"'), {}, CLASSES2),
    "two of a name": (table(REALS, head="a,y,y").replace(".5,", ".5,1,"), {"target": "y"}, f"!{SEVERAL}"),
    "two of a name, by blanks": (table(REALS, head="a,y, y").replace(".5,", ".5,1,"), {}, f"!{SEVERAL}"),
    "a column without name": (table(WORDS, head=",y"), {}, "!line 1: column 1 must have a name, as it has values"),
    "a comma at every end": (table(WORDS).replace("\n", ",\n"), {}, f"{CLASSES2}|column 3 left out: it has neither"),
    "a comma at the rows' ends": (table(WORDS).replace("\n", ",\n").replace("y,", "y"), {}, "!line 2: every row must"),
    # separators, encodings, comments
    "semicolons": (table(WORDS, separator=";"), {}, f"{CLASSES2}|separated by semicolons"),
    "tabs": (table(WORDS, separator="\t"), {}, f"{CLASSES2}|separated by tabs"),
    "bars": (table(WORDS, separator="|"), {}, "!at least two columns, got 1 in line 1"),
    "two separators": (table(["1;2"], head="a,y;z"), {}, "!the separator is in doubt, comma and semicolon both stand"),
    "rows of different lengths": (table(WORDS) + "1,2,3\n", {}, "!line 22: every row must have 2 values|got 3"),
    "a blank line in the midst": (table(WORDS).replace("\n3.5", "\n\n3.5"), {}, CLASSES2),
    "a mark at the beginning": ("\ufeff" + table(WORDS), {}, CLASSES2),
    "two marks at the beginning": ("\ufeff\ufeff" + table(WORDS), {"target": "y"}, f"{CLASSES2}|features a"),
    "a mark, and a comment": (("\ufeff# of x\n" + table(WORDS)), {}, f"{CLASSES2}|1 line beginning with # skipped"),
    "UTF-16": (table(WORDS).encode("utf-16"), {}, CLASSES2),
    "UTF-16 without a mark": (table(WORDS).encode("utf-16-le"), {}, "!got a byte of 0 in line 1"),
    "Latin-1": (one("ä", WORDS).encode("latin-1"), {}, "!text in UTF-8, got byte|(0xe4, line 8)|iconv -f latin1"),
    "names in UTF-8": (table(WORDS, head="größe,y"), {}, "features größe"),
    "comments": (table(WORDS, before="# by a program\n\n# version 1\n"), {}, f"{CLASSES2}|2 lines beginning with #"),
    "a comment below": (table(WORDS) + "# the end\n", {}, "!line 22: every row must have 2 values"),
    "lines of Windows": (table(WORDS, end="\r\n"), {}, CLASSES2),
    "lines of an old Mac": (table(WORDS, end="\r"), {}, CLASSES2),
    "commas and lines in quotes": (table(['"u,1"', '"v\n2"', '"say ""w"""']), {}, '3 classes: say "w", u,1, v\n2'),
    "lines in quotes are counted": (table(['"v\n2"', "u"]) + "1,2,3\n", {}, "!line 32: every row must have 2 values"),
    "a quote without end": (one('"u', WORDS), {}, "!unexpected end of data, in the row that begins in line 8"),
    "a blank before a quote": (one(' "u"', WORDS), {}, "!a blank before a quote, in the row that begins in line 8"),
    "nothing": ("", {}, "!must hold a table, got no rows"),
    "blank lines": ("\n \n", {}, "!must hold a table, got no rows"),
    "a header alone": ("a,y\n", {}, "!at least 8 rows, got 0"),
    "few rows": ("a,y\n1,2\n3,4\n", {}, "!at least 8 rows, got 2"),
    "one column": ("y\n" + "1\n" * 20, {}, "!at least two columns, got 1 in line 1"),
}  # fmt: skip


def check(path, options, said):
    if said.startswith("!"):
        with pytest.raises(ValueError, match=r"\A.*\Z") as error:  # one line
            data.load(str(path), **options)
        found = str(error.value)
        assert path.stem in found or found.startswith("--")
    else:
        found = str(data.load(str(path), **options))
    for part in said.removeprefix("!").split("|"):
        assert part in found, found


@pytest.mark.parametrize("name", TEXT)
def test_text(name, tmp_path):
    content, options, said = TEXT[name]
    (tmp_path / "rows.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    check(tmp_path / "rows.csv", options, said)


@pytest.mark.parametrize("file", ["rows.CSV", "rows.txt", "rows.tsv", "rows.Tsv"])
def test_extensions(file, tmp_path):
    separator = "\t" if file.lower().endswith("tsv") else ","
    (tmp_path / file).write_text(table(WORDS, separator=separator))
    check(tmp_path / file, {}, CLASSES2)


def test_tsv_has_tabs(tmp_path):
    (tmp_path / "rows.tsv").write_text(table(WORDS))
    check(tmp_path / "rows.tsv", {}, "!at least two columns, got 1 in line 1 by tab")


A = [i / 2 for i in range(ROWS)]
MORNING = datetime.datetime(2020, 1, 1)
PARQUET = {
    "floats": ({"y": [float(value) for value in REALS]}, {}, VALUES),
    "halves": ({"y": numpy.array(REALS, numpy.float16)}, {}, VALUES),
    "decimals": ({"y": [decimal.Decimal(f"{i}.25") for i in range(ROWS)]}, {}, VALUES),
    "whole decimals": ({"y": [decimal.Decimal(i % 3) for i in range(ROWS)]}, {}, f"!written as 0.0: {CHOOSE}"),
    "whole floats": ({"y": [1.0, 2.0] * 10}, {}, f"!whole numbers written as 1.0: {CHOOSE}"),
    "whole floats as classes": ({"y": [1.0, 2.0] * 10}, {"classes": True}, "2 classes: 1.0, 2.0 (by --classes)"),
    "bytes as numbers": ({"y": numpy.array([1, 2] * 10, numpy.uint8)}, {}, "2 classes: 1, 2 (whole numbers)"),
    "large numbers": ({"y": numpy.array([2**64 - 1, 2**64 - 2] * 10, numpy.uint64)}, {}, "2 classes: 184467440737095"),
    "many whole numbers": ({"y": range(21), "a": [0.5] * 21}, {}, f"!21 different whole numbers in 21 rows: {CHOOSE}"),
    "truth values": ({"y": [True, False] * 10}, {}, "2 classes: False, True (truth values)"),
    "words": ({"y": WORDS}, {}, "2 classes: u, v"),
    "a dictionary": ({"y": arrow.array(WORDS).dictionary_encode()}, {}, "2 classes: u, v"),
    "numbers in words": ({"y": REALS}, {}, VALUES),
    "a word is missing": ({"y": ["u", None] * 10}, {}, "!row 2, column y: a value must be there, got None|10 of 20"),
    "NA among words": ({"y": ["u", "v", "NA", "u"] * 5}, {}, "!row 3, column y: a value must be there, got 'NA'"),
    "NaN": ({"y": [1.5, float("nan")] * 10}, {}, "!row 2, column y: a value must be there, got nan"),
    "a number is missing": ({"b": [1, None] * 10, "y": WORDS}, {}, "!row 2, column b: a value must be there, got None"),
    "dropped": ({"b": [1, None] * 10, "y": ["u", "u", "v", "v"] * 5}, DROP, "10 of 20 rows|2 classes"),
    "nulls alone": ({"b": [None] * ROWS, "y": WORDS}, {}, "!every column must have values, got none in b"),
    "inf": ({"b": [float("inf")] * ROWS, "y": WORDS}, {}, "!row 1, column b: numbers must be finite, got inf"),
    "text in a feature": ({"b": ["x"] * ROWS, "y": WORDS}, {}, "!row 1, column b|must hold numbers, got 'x'"),
    "times in a feature": ({"when": [MORNING] * ROWS, "y": WORDS}, {}, "!column when must hold numbers|a date has"),
    "days as a target": ({"when": [MORNING.date()] * ROWS}, {}, "!column when must hold numbers|got date32[day]"),
    "lists": ({"b": [[1]] * ROWS, "y": WORDS}, {}, "!column b must hold numbers, truth values or text, got list<"),
    "bytes": ({"b": [b"x"] * ROWS, "y": WORDS}, {}, "!column b must hold numbers, truth values or text, got binary"),
    "one value": ({"y": [3] * ROWS}, {}, "!target y has one value in every row, 3"),
    "an unknown column": ({"y": WORDS}, {"target": "z"}, "!target must be one of a, y, got 'z'"),
    "no header": ({"y": WORDS}, {"header": False}, "!--no-header: has no effect on"),
    "an index of pandas": ({"y": WORDS, "__index_level_0__": range(20)}, {}, "features a|pandas's index left out: __"),
    "rows of nothing": ({"a": [], "y": []}, {}, "!at least 8 rows, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARQUET)
@pytest.mark.parametrize("file", ["rows.parquet", "rows.Parquet"])
def test_parquet(name, file, tmp_path):
    columns, options, said = PARQUET[name]
    parquet.write_table(arrow.table({"a": A, **columns}), tmp_path / file)
    check(tmp_path / file, options, said)


def test_parquet_with_one_column(tmp_path):
    parquet.write_table(arrow.table({"y": WORDS}), tmp_path / "rows.parquet")
    check(tmp_path / "rows.parquet", {}, "!at least two columns, got 1")


def test_parquet_with_a_name_twice(tmp_path):
    columns = arrow.Table.from_arrays([arrow.array(A), arrow.array(A), arrow.array(WORDS)], names=["y", "b", "y"])
    parquet.write_table(columns, tmp_path / "rows.parquet")
    check(tmp_path / "rows.parquet", {}, "!names of columns must differ, got y more than once")


Y = numpy.array(REALS, float)
NPZ = {
    "numbers with a fraction": (Y, {}, VALUES),
    "few whole numbers": (numpy.arange(ROWS) % 3, {}, "3 classes: 0, 1, 2 (whole numbers)"),
    "whole floats": (numpy.arange(ROWS) % 3.0, {}, f"!whole numbers written as 0.0: {CHOOSE}"),
    "many whole numbers": (numpy.arange(ROWS), {}, f"!0 in one row only (row 1): {CHOOSE}"),
    "many as values": (numpy.arange(ROWS), {"regression": True}, "regression: whole numbers, by --regression"),
    "words": (numpy.array(WORDS), {}, "2 classes: u, v"),
    "bytes": (numpy.array(WORDS, "S1"), {}, "2 classes: u, v"),
    "a word per row": (numpy.array([f"n{i}" for i in range(ROWS)]), {}, "!words, 20 different ones in 20 rows"),
    "truth values": (numpy.arange(ROWS) % 2 == 0, {}, "2 classes: False, True"),
    "one value": (numpy.ones(ROWS), {}, "!target y has one value in every row, 1.0"),
    "one value, of several outputs": (numpy.ones((ROWS, 2)), {}, "!y must differ between rows"),
    "one value for training": (numpy.eye(ROWS)[0] / 2, {}, "!y must differ between rows, got one value in all 15 rows"),
    "NaN": (Y * numpy.nan, {}, "!row 1, column y: numbers must be finite, got nan"),
    "several values": (numpy.stack([Y, Y], 1), {}, "regression of 2 values"),
    "whole numbers in a column": (numpy.arange(ROWS)[:, None], {}, "!whole numbers in y [20, 1] need --regression"),
    "such as values": (numpy.arange(ROWS)[:, None], {"regression": True}, "regression of 1 values"),
    "such as classes": (numpy.arange(ROWS)[:, None], {"classes": True}, "!--classes needs y [rows], got y [20, 1]"),
    "dates": (numpy.full(ROWS, "2020-01-01", "M8[D]"), {}, "!y must hold numbers, truth values or text, got datetime"),
    "a column's name": (Y, {"target": "y"}, "!--target: has no effect on|a file of arrays x and y"),
    "missing values": (Y, DROP, "!--missing: has no effect on"),
    "a header": (Y, {"header": False}, "!--no-header: has no effect on"),
}  # fmt: skip


@pytest.mark.parametrize("name", NPZ)
@pytest.mark.parametrize("file", ["rows.npz", "rows.NPZ"])
def test_npz(name, file, tmp_path):
    y, options, said = NPZ[name]
    with (tmp_path / file).open("wb") as written:
        numpy.savez(written, x=numpy.random.default_rng(0).normal(size=(ROWS, 2)), y=y)
    check(tmp_path / file, options, said)


@pytest.mark.parametrize(
    "options", [{"target": "y"}, {"classes": True}, {"regression": True}, {"header": False}, {"missing": "error"}]
)
def test_known_data_sets_take_no_options(options):
    with pytest.raises(ValueError, match=r"--[a-z-]+: has no effect on iris, a data set with a known target"):
        data.load("iris", **options)


def test_what_is_read(tmp_path):
    """Numbers as they stand in the file, from every format; classes are numbered in their order."""
    nine = range(9)
    (tmp_path / "rows.csv").write_text("a,b,y\n" + "".join(f"{i}.25, +{i}e-1 ,{i % 3}\n" for i in nine))
    parquet.write_table(
        arrow.table({"a": [i + 0.25 for i in nine], "b": [i / 10 for i in nine], "y": [i % 3 for i in nine]}),
        tmp_path / "rows.parquet",
    )
    for file in ("rows.csv", "rows.parquet"):
        x, y, reading = data.tables.read(tmp_path / file)
        assert x.tolist() == [[i + 0.25, i / 10] for i in range(9)]
        assert y.tolist() == [i % 3 for i in range(9)]
        assert (reading.target, reading.features, reading.rows, reading.dropped) == ("y", ("a", "b"), 9, 0)
