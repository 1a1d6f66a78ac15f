"""The table that `fastnest bench` prints: a line per case, for a terminal of 100 columns."""

from . import report

FIRST = 31  # characters, and of the other columns:
COLUMNS = {"fastnest": 9, "of peak": 9, "x eager": 9, "x compile": 11, "x best": 8, "memory": 11, "of eager's": 12}
NOTE = (
    "x eager, x compile: eager's and torch.compile's time over fastnest's; below 1, fastnest is slower. x best: the\n"
    "fastest peer, {peers}. of peak: of the measured multiply-add peak; torch's: no kernel of fastnest ran.\n"
    "memory: what torch's allocator holds at the peak of a training step beyond weights, gradients and input."
)


def table(result: dict) -> str:
    """Machine, rates, a line per case of every condition, what failed and what there was no time for."""
    parts = [report.machine(result)]
    for name, condition in result["conditions"].items():
        parts.append(f"{name.replace('_', ' ')}: {_rates(condition)}")
        parts.append("\n".join([_line("", COLUMNS), *_lines({**result, "conditions": {name: condition}}, condition)]))
        parts += [f"FAILED, no speed reported: {failure}" for failure in condition["failures"]]
        parts += [f"DIED: {what}" for what in condition["died"]]
        if condition["not_run"]:
            parts.append(_not_run(condition))
    rows = [row for condition in result["conditions"].values() for row in condition["rows"]]
    peers = [peer for peer in report.PEERS if any(peer in row["median_us"] for row in rows)]
    return "\n\n".join([*parts, *([NOTE.format(peers=", ".join(peers))] if peers else [])])


def _not_run(condition: dict) -> str:
    names = condition["not_run"]
    of = len(condition["rows"]) + len(condition["failures"]) + len(names)
    more = " (--seconds N gives more time)" if condition["stopped"] == "time is up" else ""
    shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
    return f"{condition['stopped'] or 'a process died'}{more}, {len(names)} of {of} cases not run: {shown}"


def _rates(condition: dict) -> str:
    found = [f"peak {value:.0f} GFLOP/s {dtype}" for dtype, value in condition["peak_gflops"].items()]
    found += [f"torch's matrix product {condition['matmul_gflops']:.0f} GFLOP/s"]
    found += [f"memory copied at {condition['copy_gbytes_per_second']:.0f} GB/s (read and written)"]
    return ", ".join(found)


def _lines(result: dict, condition: dict) -> list[str]:
    lines = []
    for group in report.groups_of(result):
        lines.append(" ".join(group))
        lines += [_case(row, condition) for row in report.rows_of(condition, *group)]
    return lines


def _case(row: dict, condition: dict) -> str:
    sizes = " ".join(f"{letter}{value}" for letter, value in row["sizes"].items())
    ratios = report.ratios(row)
    memory = row["memory"].get("fastnest")
    share = report.memory_ratio(row, "eager") if memory is not None else None
    cells = [report.time_text(row["median_us"]["fastnest"]), _share(row, condition)]
    cells += [f"{ratios[peer]:.2f}" if peer in ratios else "-" for peer in ("eager", "compile", "best")]
    cells += ["-" if memory is None else f"{memory / 2**20:.1f} MiB", "-" if share is None else f"{share:.2f}"]
    return _line(f"  {sizes}", cells)


def _share(row: dict, condition: dict) -> str:
    return "torch's" if report.is_of_torch(row) else f"{report.share(row, condition):.0%}"


def _line(first: str, cells) -> str:
    return first.ljust(FIRST) + "".join(cell.rjust(n) for cell, n in zip(cells, COLUMNS.values(), strict=True))
