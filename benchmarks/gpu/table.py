"""The JSON of a GPU run as Markdown: checks, times, where the time goes, what failed, what was not run."""

import re
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


def line_of(what: str, entry: dict, data: dict) -> str:
    """An entry in a line, as it is found."""
    if what == "rows":
        return _of_row(entry, data)
    if what == "profiles":
        of = [f"{name} {_in_short(one)}" for name, one in entry["of"].items()]
        return f"{entry['name']}: {'; '.join(of)}"
    if what == "convolutions" and not entry["what"]:
        return _of_convolution(entry)
    return f"{entry['name']}: {entry['what']}"


def _of_row(row: dict, data: dict) -> str:
    own, part = row["graph_us"].get("fastnest"), share(row, data["rates"])
    peers = [f"x {SHORT.get(p, p)} {value:.2f} ({WAYS[w]})" for w in WAYS for p, value in row["ratios"][w].items()]
    words = [time_text(own), "-" if part is None else f"{part:.0%} of roofline", *peers, "; ".join(row["runs"])]
    return f"{row['name']}: {', '.join(words)}"


def _of_convolution(entry: dict) -> str:
    own = entry["warm_us"]["fastnest"]
    found = {**entry["warm_us"], "prototype": entry["prototype_us"].get("warm")}
    peers = [f"x {name} {us / own:.2f}" for name, us in found.items() if us and name != "fastnest"]
    return f"{entry['name']}: {', '.join([time_text(own), *peers])}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join([_line(head), _line(["--", *["--:"] * (len(head) - 1)]), *map(_line, lines)])


LEGEND = (
    "Times are medians with a cold L2 cache: `graph / called`, a replay of a CUDA graph on the device alone, and one "
    "call from Python on an idle GPU, launches and all. `x eager` is eager's time over fastnest's, launched the same "
    "way: below 1 fastnest is slower. The roofline is the larger of bytes at the rate of the copy and flops at that of "
    "the product."
)


def machine(data: dict) -> str:
    """Card, versions and days, and what the card reaches."""
    device, rates = data.get("device", {}), data["rates"]
    reached = "rates not measured"
    if rates:
        products = ", ".join(f"{value / 1e12:.0f} TFLOP/s {name}" for name, value in rates["flops_per_second"].items())
        reached = (
            f"copy {rates['copy_bytes_per_second'] / 1e12:.2f} TB/s (read and written), torch's product {products}"
        )
    return (
        f"Measured on one {data['card']}, driver {device.get('driver') or 'unknown'}, torch {data['torch']}, triton "
        f"{data.get('triton') or 'none'}, Python {data['python']}, fastnest {data['fastnest']}, commit "
        f"{data['commit'][:12] or 'unknown'}, {_when(data['runs'])}: {reached}."
    )


def _when(runs: list[dict]) -> str:
    days = list(dict.fromkeys(run["date"][:10] for run in runs))
    if len(runs) == 1:
        return f"{days[0]}. In the same run"
    of = "; ".join(", ".join(run["stages"]) for run in runs)
    return f"{' and '.join(days)}, in {len(runs)} runs ({of}). In them"


def heading(data: dict) -> str:
    """The machine, and what every column means."""
    return (
        f"{machine(data)}\n\n{LEGEND} `compile`, `max-autotune` and `autotuned` are `torch.compile`: as it comes, "
        "tuned with CUDA graphs of its own, and tuned without them, captured as the others are. Memory is what torch's "
        "allocator holds at the peak of a training step beyond what it held before, its gradients counted."
    )


def checks(data: dict) -> str:
    """Per op and check: cases done of all, by dtype, and the verdict; then the checks that were not reached."""
    groups: dict[tuple, list[dict]] = {}
    for test in sorted(data["tests"], key=lambda test: (test["op"], test["backend"])):
        groups.setdefault((test["op"], test["backend"], test["check"], test["dtype"]), []).append(test)
    lines, late = [], {}
    for (op, backend, check, dtype), tests in groups.items():
        if all(test["verdict"] == "not run" for test in tests):
            late.setdefault(check, []).append(f"{op} {backend} {dtype}")
            continue
        done, of, failed = (sum(test[key] for test in tests) for key in ("done", "of", "failed"))
        verdicts = Counter(test["verdict"] for test in tests)
        said = ", ".join(f"{verdict} {count}" for verdict, count in verdicts.items()) if len(verdicts) > 1 else ""
        lines.append([op, backend, check, dtype, f"{done}/{of}", str(failed), said or next(iter(verdicts))])
    for one in data["sanitizers"]:
        tool = f"compute-sanitizer {one['tool']}"
        lines.append([one["op"], one["backend"], tool, one["dtype"], "", "", one["verdict"]])
    found = _table(["op", "backend", "check", "dtype", "cases", "failed", "verdict"], lines)
    left = [f"{check} ({', '.join(of)})" for check, of in late.items()]
    return f"{found}\n\nChecks that were not reached: {'; '.join(left)}." if left else found


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


def _in_short(profile: dict) -> str:
    """Of a contestant's profile, a call."""
    kernels, host = time_text(profile["kernels_us"]), time_text(profile["host_us"])
    return (
        f"{kernels} of kernels in {profile['launches']:.0f} launches, host {host}, both {time_text(profile['wall_us'])}"
    )


def profiles(data: dict, kernels: int = 6) -> list[str]:
    """Where the time goes: of every case the kernels that take the most, of fastnest and of eager."""
    measured = {row["name"] for row in data["rows"]}
    parts = []
    for one in data["profiles"]:
        said = ". ".join(f"{name}: {_in_short(profile)}" for name, profile in one["of"].items())
        doubt = "" if one["name"] in measured else " Its results were not compared in this run, or were wrong."
        lines = [line for name, profile in one["of"].items() for line in _by_kernel(name, profile, kernels)]
        found = _table(["", "kernel", "launches", "time", "share"], lines)
        parts.append(f"**{one['name']}**\n\n{said}.{doubt}\n\n{found}")
    return parts


def _by_kernel(contestant: str, profile: dict, most: int) -> list[list[str]]:
    """Lines of so many kernels, and one of all others."""

    def line(kernel: str, launches: float, us: float) -> list[str]:
        return [contestant, kernel, f"{launches:.0f}", time_text(us), f"{us / profile['kernels_us']:.0%}"]

    told = profile["kernels"][:most]
    lines = [line(f"`{_shorter(one['name'])}`", one["count"], one["us"]) for one in told]
    others = [
        profile[whole] - sum(one[part] for one in told) for whole, part in (("launches", "count"), ("kernels_us", "us"))
    ]
    return [*lines, line("all others", *others)] if others[0] > 0.5 else lines


def _shorter(kernel: str) -> str:
    """A kernel's name as a cell has room for it: without what C++ puts around it."""
    name = re.sub(r"^void |\(anonymous namespace\)::|at::native::|std::", "", kernel)
    name = name.replace("|", "\\|").replace("`", "'")
    return name if len(name) <= 72 else f"{name[:69]}..."


CONVOLUTIONS = (
    "Each convolution of `dense_block2d`'s CUDA C++ kernels for compute capability 9.0, and the four dense blocks of "
    "DenseNet-121 in evaluation as one CUDA graph, bfloat16. `warm` is one of ten calls in a CUDA graph, `cold` one "
    "call with a cold L2 cache. `library` is torch's convolution alone, without the norms and relus that ours "
    "includes. The prototype ran on an H200. `x` is the other's warm time over ours: above 1 ours is faster. `of "
    "roofline` is of the cold time."
)


def convolutions(data: dict) -> list[str]:
    """Whole blocks, and each convolution: as the kernels cut it, and cut in every other way."""
    entries = [one for one in data.get("convolutions", []) if not one["what"]]
    by_kind: dict[str, list[dict]] = {}
    for one in entries:
        by_kind.setdefault(one["kind"], []).append(one)
    tables = [_blocks_table(found) if kind == "dense blocks" else _convolutions_table(kind, found, data["rates"])
              for kind, found in by_kind.items()]  # fmt: skip
    return [CONVOLUTIONS, *tables] if tables else []


def _blocks_table(entries: list[dict]) -> str:
    head = ["N", "fastnest", "with packing", "cold", "eager", "x eager", "prototype", "x prototype", "goal"]
    lines = []
    for one in sorted(entries, key=lambda one: -one["sizes"]["n"]):
        warm, prototype = one["warm_us"], one["prototype_us"].get("warm")
        cells = [str(one["sizes"]["n"]), *(time_text(warm.get(who)) for who in ("fastnest", "fastnest, packing"))]
        cells += [time_text(one["cold_us"].get("fastnest")), time_text(warm.get("eager")), _over(one, warm["eager"])]
        lines.append([*cells, time_text(prototype), _over(one, prototype), time_text(one["goal_us"])])
    return f"**all dense blocks of DenseNet-121**\n\n{_table(head, lines)}"


def _convolutions_table(kind: str, entries: list[dict], rates: dict) -> str:
    """A line a size; the ways to cut it that were forced are columns."""
    shapes = list(dict.fromkeys(one["shape"] for one in entries if one["shape"]))
    by_size: dict[tuple, dict[str, dict]] = {}
    for one in entries:
        by_size.setdefault(tuple(one["sizes"].values()), {})[one["shape"]] = one
    head = ["N", "PX", "C", "warm", "cold", "of roofline", "prototype", "x prototype", "library", "x library", *shapes]
    lines = []
    for size, found in sorted(by_size.items(), key=lambda item: [-letter for letter in item[0]]):
        cells = ["-"] * 7
        if "" in found:
            one, prototype = found[""], found[""]["prototype_us"].get("warm")
            least, library, cold = least_seconds(one, rates), one["warm_us"]["library"], one["cold_us"]["fastnest"]
            cells = [time_text(one["warm_us"]["fastnest"]), time_text(cold)]
            cells.append("-" if least is None else f"{least / cold * 1e6:.0%}")
            cells += [time_text(prototype), _over(one, prototype), time_text(library), _over(one, library)]
        forced = [time_text(found[shape]["warm_us"]["fastnest"]) if shape in found else "-" for shape in shapes]
        lines.append([*map(str, size), *cells, *forced])
    return f"**{kind}**\n\n{_table(head, lines)}"


def _over(entry: dict, other: float | None) -> str:
    return _number(other, entry["warm_us"]["fastnest"])


def summary(data: dict) -> str:
    """One line a case, of fastnest as it chooses its kernels; those forced on CUDA C++ as a column of it."""
    forced = {(r["subject"], r["mode"], r["dtype"], *r["sizes"].values()): r for r in data["rows"] if r["backend"]}
    lines = []
    for row in data["rows"]:
        if row["backend"]:
            continue
        other = forced.get((row["subject"], row["mode"], row["dtype"], *row["sizes"].values()))
        part = share(row, data["rates"])
        sizes = " ".join(f"{letter.upper()} {size}" for letter, size in row["sizes"].items() if size)
        cells = [f"{row['subject']} {row['mode']} {row['dtype']}, {sizes}"]
        cells += [_both(row, "eager"), _both(row, "fastnest"), _both(other, "fastnest") if other else ""]
        cells.append(" / ".join(_number(row["ratios"][way].get("eager"), 1) for way in ("graph", "call")))
        lines.append([*cells, "-" if part is None else f"{part:.0%}"])
    head = ["", "eager", "fastnest", "its CUDA C++", "**x eager**", "of roofline"]
    return _table(head, lines)


def _both(row: dict, contestant: str) -> str:
    return " / ".join(time_text(row[f"{way}_us"].get(contestant)) for way in ("graph", "call"))


def _peers(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(peer for row in rows for peer in row["call_us"] if peer != "fastnest"))


def _number(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.2f}"


def problems(data: dict) -> list[str]:
    """What failed, and what was not run."""
    found = [*data["tests"], *data["sanitizers"]]
    lines = [
        f"FAILED {one['op']} {one['backend']} {one['dtype']} {one.get('check', one.get('tool'))}: {one['what']}"
        for one in found
        if one["verdict"] == "failed"
    ]
    lines += [f"FAILED {one['name']} ({one['stage']}): {one['what']}" for one in data["failures"]]
    for row in data["rows"]:
        lines += [f"{row['name']}: no CUDA graph of {name}: {what}" for name, what in row["no_graph"].items()]
        lines += [f"{row['name']}: {peer} computes something else: {what}" for peer, what in row["wrong_peers"].items()]
    not_compiled = [one for one in data["compiled"] if one["what"] and one["peer"] == "fastnest"]
    lines += [f"{one['name']}: not compiled in advance: {one['what']}" for one in not_compiled]
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in data["not_measured"]:
        reasons.setdefault((one["stage"], one["what"]), []).append(one["name"])
    return lines + [f"Not run in {stage}, {what}: {', '.join(names)}." for (stage, what), names in reasons.items()]


def markdown(data: dict) -> str:
    """Everything that a run found."""
    groups: dict[tuple, list[dict]] = {}
    for row in data["rows"]:
        key = (row["subject"], row["mode"], row["dtype"], row["backend"], tuple(row["sizes"]))
        groups.setdefault(key, []).append(row)
    times = [rows_table(rows, data["rates"]) for rows in groups.values()]
    sections = {"Times": times, "Convolutions": convolutions(data), "Where the time goes": profiles(data)}
    sections["Checks"] = [checks(data), *problems(data)]
    parts = [f"### {title}\n\n" + "\n\n".join(found) for title, found in sections.items() if found]
    return "\n\n".join([heading(data), *parts]) + "\n"


def _counted(found: list[dict]) -> str:
    count = Counter(one["verdict"] for one in found)
    return ", ".join(
        f"{count[verdict]} {verdict}" for verdict in ("passed", "failed", "unfinished", "not run") if count[verdict]
    )


def short(data: dict) -> str:
    """What a README has room for: the machine, a line a case, and how much was checked."""
    counted = "; ".join(
        f"{name} {_counted(data[what])}"
        for what, name in (("tests", "against float64"), ("sanitizers", "by compute-sanitizer"))
    )
    failed = [f"{one['name']}: {one['what']}" for one in data["failures"]]
    parts = [machine(data), LEGEND, summary(data), f"Checks: {counted}.", *failed]
    return "\n\n".join(parts) + "\n"
