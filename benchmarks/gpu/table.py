"""The JSON of a GPU run as Markdown: what was checked, what was measured, what failed, what was not run."""

from collections import Counter

SHORT = {"memory-efficient": "checkpointed", "max-autotune-no-cudagraphs": "autotuned"}
WAYS = {"call": "called", "graph": "graph"}
MODES = {"forward": "forward, no grad", "train": "training step (forward, backward, every gradient)"}


def least_seconds(row: dict, rates: dict) -> float | None:
    """The roofline: bytes at the measured copy, or flops at torch's measured product, whichever takes longer."""
    if not rates:
        return None
    return max(row["bytes"] / rates["copy_bytes_per_second"], row["flops"] / rates["flops_per_second"][row["dtype"]])


def share(row: dict, rates: dict) -> float | None:
    """Share of the roofline, of a CUDA graph's time."""
    least, own = least_seconds(row, rates), row["graph_us"].get("fastnest")
    return least / own * 1e6 if least and own else None


def time_text(microseconds: float | None) -> str:
    if microseconds is None:
        return "-"
    return f"{microseconds:.1f} us" if microseconds < 1e3 else f"{microseconds / 1e3:.3g} ms"


def line_of(row: dict, data: dict) -> str:
    """One row in a line, as it is found."""
    own, part = row["graph_us"].get("fastnest"), share(row, data["rates"])
    peers = [f"x {SHORT.get(p, p)} {value:.2f} ({WAYS[w]})" for w in WAYS for p, value in row["ratios"][w].items()]
    words = [time_text(own), "-" if part is None else f"{part:.0%} of roofline", *peers, "; ".join(row["runs"])]
    return f"{row['name']}: {', '.join(words)}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join([_line(head), _line(["--", *["--:"] * (len(head) - 1)]), *map(_line, lines)])


def heading(data: dict) -> str:
    device, rates = data.get("device", {}), data["rates"]
    reached = "rates not measured"
    if rates:
        products = ", ".join(f"{value / 1e12:.0f} TFLOP/s {name}" for name, value in rates["flops_per_second"].items())
        reached = (
            f"copy {rates['copy_bytes_per_second'] / 1e12:.2f} TB/s (read and written), torch's product {products}"
        )
    return (
        f"{data['card']}, driver {device.get('driver') or 'unknown'}, torch {data['torch']}, triton "
        f"{data.get('triton') or 'none'}, Python {data['python']}, commit {data['commit'] or 'unknown'}, "
        f"{data['date'][:10]}. Measured in the same run: {reached}.\n\n"
        "Times are medians, L2 cold. `graph`: a replay of a CUDA graph, on the device alone; `called`: one call from "
        "Python on an idle GPU, launches and all. `x eager` is eager's time over fastnest's, in the same way of "
        'launching. `max-autotune` is `torch.compile(mode="max-autotune")`, which has CUDA graphs of its own; '
        "`autotuned` is max-autotune-no-cudagraphs, captured as the others are. The roofline is the larger of bytes "
        "at the copy's rate and flops at the product's. Memory is what torch's allocator holds at the peak of a "
        "training step beyond what it held before, its gradients counted."
    )


def checks(data: dict) -> str:
    """Per op and check: cases done of all, by dtype, and the verdict."""
    groups: dict[tuple, list[dict]] = {}
    for test in data["tests"]:
        groups.setdefault((test["op"], test["backend"], test["check"], test["dtype"]), []).append(test)
    lines = []
    for (op, backend, check, dtype), tests in groups.items():
        done, of, failed = (sum(test[key] for test in tests) for key in ("done", "of", "failed"))
        verdicts = Counter(test["verdict"] for test in tests)
        said = ", ".join(f"{verdict} {count}" for verdict, count in verdicts.items()) if len(verdicts) > 1 else ""
        lines.append([op, backend, check, dtype, f"{done}/{of}", str(failed), said or next(iter(verdicts))])
    for one in data["sanitizers"]:
        tool = f"compute-sanitizer {one['tool']}"
        lines.append([one["op"], one["backend"], tool, one["dtype"], "", "", one["verdict"]])
    return _table(["op", "backend", "check", "dtype", "cases", "failed", "verdict"], lines)


def rows_table(rows: list[dict], rates: dict) -> str:
    """One table of a subject, mode and dtype."""
    letters = list(rows[0]["sizes"])
    columns = [(p, w) for p in _peers(rows) for w in WAYS if any(p in row["ratios"][w] for row in rows)]
    memory = list(dict.fromkeys(name for row in rows for name in row["memory_bytes"]))
    head = [*map(str.upper, letters), "graph", "called", "of roofline"]
    head += [f"x {SHORT.get(peer, peer)}, {WAYS[way]}" for peer, way in columns]
    head += [f"MiB {SHORT.get(name, name)}" for name in memory] + ["runs"]
    lines = []
    for row in rows:
        part = share(row, rates)
        cells = [str(row["sizes"][letter]) for letter in letters]
        cells += [time_text(row[f"{way}_us"].get("fastnest")) for way in ("graph", "call")]
        cells.append("-" if part is None else f"{part:.0%}")
        cells += [_number(row["ratios"][way].get(peer), 1) for peer, way in columns]
        cells += [_number(row["memory_bytes"].get(name), 2**20) for name in memory]
        lines.append([*cells, "; ".join(row["runs"])])
    title = f"{rows[0]['subject']}, {MODES[rows[0]['mode']]}, {rows[0]['dtype']}"
    if rows[0]["backend"]:
        title += f", forced on {rows[0]['backend']}"
    return f"**{title}**\n\n{_table(head, lines)}"


def _peers(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(peer for row in rows for peer in row["call_us"] if peer != "fastnest"))


def _number(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.2f}"


def markdown(data: dict) -> str:
    """Everything that a run found."""
    groups: dict[tuple, list[dict]] = {}
    for row in data["rows"]:
        key = (row["subject"], row["mode"], row["dtype"], row["backend"], tuple(row["sizes"]))
        groups.setdefault(key, []).append(row)
    parts = [heading(data), checks(data), *(rows_table(rows, data["rates"]) for rows in groups.values())]
    found = [*data["tests"], *data["sanitizers"]]
    failed = [
        f"FAILED {one['op']} {one['backend']} {one.get('check', one.get('tool'))}: {one['what']}"
        for one in found
        if one["verdict"] == "failed"
    ]
    failed += [f"FAILED {one['name']}: {one['what']}" for one in data["failures"]]
    for row in data["rows"]:
        failed += [f"{row['name']}: no CUDA graph of {name}: {what}" for name, what in row["no_graph"].items()]
    missing = [f"{one['name']}: {one['what']}" for one in data["not_measured"]]
    return "\n\n".join([*parts, *failed, *missing]) + "\n"
