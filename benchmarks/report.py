"""Tables from a benchmark JSON; the README's figures are these, between its marks."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from .gpu import table as gpu_table

RESULTS = Path(__file__).parent / "results"
PEERS = ("eager", "nchw", "in-place", "memory-efficient", "compile", "max-autotune", "frozen")
TITLES = {"forward": "forward, no grad", "train": "training step (forward, backward, every gradient)"}
MOVED = 0.25  # by which a ratio to the fastest peer may differ between conditions before it is measured again


# What must be in a result, of which type; of a list's and of a dict's entries where a pair says so.
ROW = {"name": str, "subject": str, "mode": str, "dtype": str, "sizes": dict, "ran": dict, "memory": dict}
ROW |= {"rounds": int, "processes": int, "flops": (int, float), "median_us": dict, "quartiles_us": dict}
CONDITION = {"rows": (list, ROW), "failures": list, "died": list, "not_run": list, "threads": int, "peak_gflops": dict}
OF_CPU = {"machine": dict, "versions": dict, "date": str, "conditions": (dict, CONDITION), "not_begun": list}
OF_GPU = dict.fromkeys(("runs", "tests", "sanitizers", "rows", "profiles", "failures", "not_measured"), list)
OF_GPU |= {"card": str, "torch": str, "python": str, "fastnest": str, "commit": str, "rates": dict}


def load(paths: Sequence[Path] | None = None) -> dict[Path, dict]:
    """The JSONs at paths; without any, all that are shipped, the oldest first. ValueError for one that is no result."""
    results = {Path(path): _read(Path(path)) for path in paths or RESULTS.glob("*.json")}
    if not results:
        raise FileNotFoundError("no results are shipped; `fastnest bench --full` makes them")
    return results if paths else dict(sorted(results.items(), key=lambda entry: entry[1]["date"]))


def _read(path: Path) -> dict:
    try:
        result = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    wrong = _wrong(result, OF_GPU if isinstance(result, dict) and is_of_gpu(result) else OF_CPU, "")
    if wrong:
        raise ValueError(f"{path} must be what `fastnest bench` or `make gpu` has written, but {wrong}")
    return result


def _wrong(found: object, fields: dict, place: str) -> str:
    """The first thing that is absent or of another type; nothing where all is as it must be."""
    if not isinstance(found, dict):
        return f"{place or 'it'} is no object"
    for name, kind in fields.items():
        kind, inside = kind if isinstance(kind, tuple) and isinstance(kind[1], dict) else (kind, None)
        where = f"{place}.{name}".lstrip(".")
        if not isinstance(found.get(name), kind):
            return f"{where} is absent or of another type"
        entries = found[name].items() if isinstance(found[name], dict) else enumerate(found[name]) if inside else ()
        wrong = [_wrong(one, inside, f"{where}.{key}") for key, one in entries] if inside else []
        if any(wrong):
            return next(filter(None, wrong))
    return ""


def is_of_gpu(result: dict) -> bool:
    """Whether `make gpu` has written it, not `fastnest bench`."""
    return "card" in result


def groups_of(result: dict) -> list[tuple[str, str, str]]:
    """(subject, mode, dtype) of every table, in the order of the run."""
    rows = [row for condition in result["conditions"].values() for row in condition["rows"]]
    return list(dict.fromkeys((row["subject"], row["mode"], row["dtype"]) for row in rows))


def rows_of(condition: dict, subject: str, mode: str, dtype: str) -> list[dict]:
    """A condition's rows of one table."""
    return [row for row in condition["rows"] if (row["subject"], row["mode"], row["dtype"]) == (subject, mode, dtype)]


def ratios(row: dict) -> dict[str, float]:
    """peer -> its median over fastnest's; above 1, fastnest is faster. "best" is the least of them."""
    own = row["median_us"]["fastnest"]
    found = {peer: row["median_us"][peer] / own for peer in PEERS if peer in row["median_us"]}
    return {**found, "best": min(found.values())}


def moved(rows: Sequence[dict]) -> bool:
    """Whether a case's ratio to the fastest peer differs between conditions by more than MOVED."""
    best = [ratios(row)["best"] for row in rows]
    return max(best) > (1 + MOVED) * min(best)


def is_of_torch(row: dict) -> bool:
    """Whether no kernel of fastnest ran in fastnest's step: its ops took the reference, its blocks their own forward.

    The row then compares torch with torch; it stays in its table and counts nowhere else.
    """
    return not set(row["ran"]["ops"]) - {"reference"}


def of_kernels(rows: Iterable[dict]) -> list[dict]:
    """The rows in which kernels ran."""
    return [row for row in rows if not is_of_torch(row)]


def share(row: dict, condition: dict) -> float:
    """Share of the measured multiply-add peak of all threads."""
    return row["flops"] / row["median_us"]["fastnest"] * 1e-3 / condition["peak_gflops"][row["dtype"]]


# Peers that a training step's memory is compared with, in the order of the columns.
MEMORY_PEERS = ("eager", "memory-efficient", "compile")


def memory_ratio(row: dict, peer: str) -> float | None:
    """Share of what a peer allocates in a training step that fastnest does; None where that was not measured."""
    return row["memory"]["fastnest"] / row["memory"][peer] if row["memory"].get(peer) else None


def time_text(microseconds: float) -> str:
    return f"{microseconds:.0f} us" if microseconds < 1e3 else f"{microseconds / 1e3:.3g} ms"


def time_with_quartiles(row: dict) -> str:
    """fastnest's time, and between which values half of the rounds lie, in the same unit."""
    unit, form = (1, ".0f") if row["median_us"]["fastnest"] < 1e3 else (1e-3, ".3g")
    low, high = (format(unit * value, form) for value in row["quartiles_us"]["fastnest"])
    return f"{time_text(row['median_us']['fastnest'])} [{low}, {high}]"


def _shares(rows: list[dict], conditions: list[dict]) -> str:
    """Shares of the peak, with what ran torch's own forward."""
    if any(map(is_of_torch, rows)):
        return "torch's own"
    shares = _both([share(row, c) for row, c in zip(rows, conditions, strict=True)], ".0%")
    blocks, own = rows[0]["ran"]["blocks"], sum(rows[0]["ran"]["own"].values())
    return f"{shares} ({blocks - own} of {blocks} blocks)" if own else shares


def _both(values: list, form: str) -> str:
    return " / ".join("-" if value is None else format(value, form) for value in values)


def table(result: dict, subject: str, mode: str, dtype: str) -> str:
    """One Markdown table; a cell holds as shipped / fair, or what was measured of the two."""
    measured = {name: c for name, c in result["conditions"].items() if rows_of(c, subject, mode, dtype)}
    conditions = list(measured.values())
    by_name = [{row["name"]: row for row in rows_of(c, subject, mode, dtype)} for c in conditions]
    # A case that failed its comparison under one condition has no speed under either.
    names = [name for name in by_name[0] if all(name in rows for rows in by_name)]
    if not names:
        return ""
    letters = list(by_name[0][names[0]]["sizes"])
    peers = [peer for peer in PEERS if any(peer in rows[name]["median_us"] for rows in by_name for name in names)]
    held = [peer for peer in MEMORY_PEERS if any(peer in by_name[0][name]["memory"] for name in names)]
    memory = ["memory", *(f"of {peer}'s" for peer in held)] if mode == "train" else []
    head = [
        *(letter.upper() for letter in letters),
        "fastnest",
        "share of peak",
        *(f"x {p}" for p in peers),
        "**x best**",
    ]
    alone = f", {_spaced(next(iter(measured)))} only" if len(measured) < len(result["conditions"]) else ""
    title = f"**{subject}, {TITLES[mode]}, {dtype}{alone}**"
    lines = [title, "", _line(head + memory), _line(["--:"] * len(head + memory))]
    for name in names:
        rows = [rows[name] for rows in by_name]
        faster = [ratios(row) for row in rows]
        cells = [str(rows[0]["sizes"][letter]) for letter in letters]
        cells.append(" / ".join(map(time_with_quartiles, rows)))
        cells.append(_shares(rows, conditions))
        cells += [_both([one.get(peer) for one in faster], ".2f") for peer in peers]
        cells.append(f"**{_both([one['best'] for one in faster], '.2f')}**{' †' if moved(rows) else ''}")
        if memory:
            cells.append(f"{rows[0]['memory']['fastnest'] / 2**20:.2f} MiB")
            cells += [_both([memory_ratio(rows[0], peer)], ".2f") for peer in held]
        lines.append(_line(cells))
    return "\n".join(lines)


def _spaced(condition: str) -> str:
    return condition.replace("_", " ")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def machine(result: dict, caches: bool = False) -> str:
    """What was measured: the machine, the versions and the day."""
    facts, versions = result["machine"], result["versions"]
    found = "; " + ", ".join(f"{name} {size}" for name, size in facts["caches"].items()) if caches else ""
    threads = next(iter(result["conditions"].values()))["threads"]
    return (
        f"{facts['cpu']} (family {facts['family']}, model {facts['model']}{found}), {threads} threads, torch "
        f"{versions['torch']}, kernels {versions['instruction_set']}, commit {versions['commit'][:12] or 'unknown'}"
        f"{'+changes' if versions['commit'].endswith('+changes') else ''}, {result['date'][:10]}"
    )


def heading(result: dict) -> str:
    """Machine, versions and what every column means."""
    conditions = result["conditions"]
    peaks = "; ".join(
        f"{name.replace('_', ' ')}: peak " + ", ".join(f"{v:.0f} GFLOP/s {d}" for d, v in c["peak_gflops"].items())
        + (f", torch's own matrix product {c['matmul_gflops']:.0f} GFLOP/s" if c["matmul_gflops"] else "")
        for name, c in conditions.items()
    )  # fmt: skip
    return (
        f"{machine(result, caches=True)}. Every cell is "
        f"{' / '.join(name.replace('_', ' ') for name in conditions)}. Measured in the same run: {peaks}.\n\n"
        f"Times are medians of interleaved rounds, {_rounds(result)}, between brackets their quartiles; `x eager` is "
        "eager's time over fastnest's, `best` the fastest peer. "
        "In-place is `addmm_` (residual) or `addmm(out=)` into one buffer (dense). Of images, eager and compile run in "
        "channels-last memory, nchw is eager in the other, memory-efficient is checkpointed, and frozen is "
        "`torch.compile` with frozen weights and max-autotune. Memory is the peak that torch's allocator holds in a "
        "training step beyond weights, gradients and input, and its share of the peers'. Where it says torch's own, "
        "no kernel of fastnest ran: every op or block took plain torch's way, and the row is left out of the summary "
        "and the pictures. `12 of 16 blocks`: the others ran their own forward." + _said_of_moved(conditions)
    )


def _rounds(result: dict) -> str:
    """How many rounds a median is of, and in how many processes."""
    rows = [row for condition in result["conditions"].values() for row in condition["rows"]]
    if not rows:
        return "none"
    spans = []
    for what in ("rounds", "processes"):
        least, most = min(row[what] for row in rows), max(row[what] for row in rows)
        spans.append(str(least) if least == most else f"{least} to {most}")
    return f"{spans[0]} in {spans[1]} process{'' if spans[1] == '1' else 'es'}"


def _said_of_moved(conditions: dict) -> str:
    if len(conditions) < 2:
        return ""
    return (
        f" †: the ratio to the fastest peer differs by more than {MOVED:.0%} between the conditions; a full run "
        "measures such cases in one more process of each, and marks those of which that is still so."
    )


def summary(result: dict) -> str:
    """Per subject and mode: the worst and the median ratio to the best peer, and the median share of peak.

    Only of rows in which kernels ran.
    """
    lines = [_line(["", "cases", "x best peer, least", "median", "share of peak, median"]), _line(["--", *["--:"] * 4])]
    for subject, mode, dtype in groups_of(result):
        conditions = [c for c in result["conditions"].values() if rows_of(c, subject, mode, dtype)]
        groups = [of_kernels(rows_of(c, subject, mode, dtype)) for c in conditions]
        if not all(groups):
            continue
        best = [[ratios(row)["best"] for row in rows] for rows in groups]
        shares = [[share(row, c) for row in rows] for rows, c in zip(groups, conditions, strict=True)]
        cells = [f"{subject} {mode} {dtype}", str(len(groups[0]))]
        cells += [_both(list(map(f, best)), ".2f") for f in (min, median)]
        cells.append(_both(list(map(median, shares)), ".0%"))
        lines.append(_line(cells))
    return "\n".join(lines)


def markdown(result: dict) -> str:
    """Everything: heading, summary, a table per subject, mode and dtype, and what failed, died or was not run."""
    if is_of_gpu(result):
        return gpu_table.markdown(result)
    if not result["conditions"]:
        return "NOT RUN: every case\n"
    conditions = result["conditions"].values()
    parts = [heading(result), summary(result), *(table(result, *group) for group in groups_of(result))]
    parts += [f"FAILED, no speed reported: {failure}" for condition in conditions for failure in condition["failures"]]
    parts += [f"DIED: {what}" for condition in conditions for what in condition["died"]]
    parts += [
        f"NOT RUN ({said.replace('_', ' ')}): {name}"
        for said, condition in result["conditions"].items()
        for name in condition["not_run"]
    ]
    parts += [f"NOT RUN: every case, {said.replace('_', ' ')}" for said in result["not_begun"]]
    return "\n\n".join(part for part in parts if part) + "\n"


def tables(results: Iterable[dict]) -> str:
    """All of them."""
    return "\n".join(map(markdown, results))


def parts(results: Iterable[dict]) -> dict[str, str]:
    """What stands between marks in pages: of CPUs everything, of GPUs a line a case for the README, and everything."""
    results = list(results)
    of_gpus = [one for one in results if is_of_gpu(one)]
    return {
        "benchmarks": tables(one for one in results if not is_of_gpu(one)),
        "gpu": "\n".join(map(gpu_table.short, of_gpus)),
        "gpu tables": tables(of_gpus),
    }


def _marks(what: str) -> tuple[str, str]:
    return f"<!-- {what}: begin -->", f"<!-- {what}: end -->"


def between(text: str, what: str) -> str:
    """What stands between a page's marks `<!-- WHAT: begin -->` and `<!-- WHAT: end -->`."""
    begin, end = _marks(what)
    return text.split(begin, 1)[1].split(end, 1)[0].strip("\n") + "\n"


def rewrite(path: Path, texts: dict[str, str]) -> list[str]:
    """Replaces what stands between those marks that the file has; returns which. ValueError if it has none."""
    text = Path(path).read_text()
    found = [what for what in texts if all(mark in text for mark in _marks(what))]
    if not found:
        raise ValueError(f"{path} must contain {' or '.join(' and '.join(_marks(what)) for what in texts)}")
    for what in found:
        begin, end = _marks(what)
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n\n{texts[what]}\n{end}{rest.split(end, 1)[1]}"
    Path(path).write_text(text)
    return found
