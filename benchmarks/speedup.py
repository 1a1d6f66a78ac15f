"""Bars of the speed-up over eager, torch.compile and the fastest peer, a line per subject, mode and dtype."""

from statistics import median

from fastnest._optional import optional

from . import look, report

ALT = "Bars of the speed-up over eager, torch.compile and the fastest peer"
TITLES = {"eager": "over eager", "compile": "over torch.compile", "best": "over the fastest peer"}
TICKS = (1, 2, 4, 0.5, 8, 16, 0.25, 32, 3, 6, 1.5, 0.7, 12, 24)  # the first that have room
LINE = 0.3  # inches
WORDS = {"train": "training", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "as_shipped": "as shipped"}


def shown(result: dict) -> dict:
    """{"conditions": [name], "lines": [{"label", peer: {condition: [ratio of every case]}}]}, best first, or {}.

    Cases in which no kernel ran are left out.
    """
    measured = {name: c for name, c in result["conditions"].items() if report.of_kernels(c["rows"])}
    conditions = list(measured)
    lines = []
    for group in report.groups_of(result):
        rows = {name: report.of_kernels(report.rows_of(c, *group)) for name, c in measured.items()}
        cases = {name: [report.ratios(row) for row in those] for name, those in rows.items()}
        if not any(cases.values()):
            continue
        ratios = {
            peer: {name: [round(one[peer], 3) for one in found if peer in one] for name, found in cases.items()}
            for peer in TITLES
        }
        lines.append({"label": " ".join(WORDS.get(word, word) for word in group), **ratios})
    # With two conditions the last is the fair one, which says what the kernels do.
    lines.sort(key=lambda line: -median(_last(line["best"])))
    return {"conditions": conditions, "lines": lines} if lines else {}


def said(data: dict) -> str:
    """The picture in words."""
    best = [value for line in data["lines"] for value in _last(line["best"])]
    conditions = " and ".join(WORDS.get(name, name) for name in data["conditions"])
    last = f" ({data['conditions'][-1]} where it was measured)" if len(data["conditions"]) > 1 else ""
    return (
        f"Speed-up over eager, torch.compile and the fastest peer of every case, {conditions}, on a logarithmic scale: "
        f"bars are medians, dots cases, and the shaded side is slower. Over the fastest peer from {min(best):.2f} to "
        f"{max(best):.2f}, median {median(best):.2f}{last}."
    )


def _last(ratios: dict[str, list[float]]) -> list[float]:
    """Those of the last condition that has any."""
    return [values for values in ratios.values() if values][-1]


def figure(data: dict, theme: look.Theme):
    """A panel per peer on one logarithmic scale, where half as fast lies as far from 1 as twice as fast."""
    lines, conditions = data["lines"], data["conditions"]
    drawn = look.page(LINE * len(lines) + 0.75, "Speed-up of fastnest", data["machine"], theme)
    every = [value for line in lines for peer in TITLES for values in line[peer].values() for value in values]
    limits = min(0.85, 0.93 * min(every)), max(1.2, 1.07 * max(every))
    axes = drawn.subplots(1, len(TITLES), sharey=True)
    for axis, (peer, title) in zip(axes, TITLES.items(), strict=True):
        _scale(axis, limits, theme)
        _bars(axis, [line[peer] for line in lines], conditions, theme)
        axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes[0].set_yticks(range(len(lines)), [line["label"] for line in lines])
    axes[0].set_ylim(len(lines) - 0.4, -0.6)
    several = any(len(values) > 1 for line in lines for values in line["best"].values())
    _legend(drawn, conditions, several, theme)
    return drawn


def _scale(axis, limits: tuple[float, float], theme: look.Theme) -> None:
    axis.set_xscale("log")
    axis.set_xlim(*limits)
    axis.minorticks_off()
    ticks, room = [], (limits[1] / limits[0]) ** (1 / 6)
    for tick in TICKS:
        if limits[0] <= tick <= limits[1] and all(max(tick / one, one / tick) > room for one in ticks):
            ticks.append(tick)
    axis.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axis.tick_params(length=0)
    axis.grid(axis="x", color=theme.line, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)
    axis.axvspan(limits[0], 1, color=theme.shade, linewidth=0, zorder=0)
    axis.axvline(1, color=theme.ink, linewidth=1.2, zorder=4)


def _bars(axis, lines: list[dict], conditions: list[str], theme: look.Theme) -> None:
    height = 0.78 / len(conditions)
    for place, line in enumerate(lines):
        for i, condition in enumerate(conditions):
            values, middle = line[condition], place + (i - (len(conditions) - 1) / 2) * height
            if values:
                axis.barh(middle, median(values) - 1, 0.88 * height, left=1, color=look.COLOURS[i], zorder=2)
            if len(values) > 1:
                axis.plot(values, [middle] * len(values), ".", color=theme.ink, markersize=3, alpha=0.55, zorder=3)
        medians = [median(values) if values else None for values in line.values()]
        lost = any(value is not None and value < 1 for value in medians)
        numbers = " / ".join("-" if value is None else f"{value:.2f}" for value in medians)
        marked = {"color": theme.ink, "fontweight": "bold"} if lost else {"color": theme.soft}
        axis.text(1.02, place, numbers, transform=axis.get_yaxis_transform(), va="center", fontsize=8, **marked)


def _legend(figure, conditions: list[str], several: bool, theme: look.Theme) -> None:
    patch, line = optional("matplotlib.patches", "plot").Patch, optional("matplotlib.lines", "plot").Line2D
    entries = {f"median, {WORDS.get(name, name)}": patch(color=look.COLOURS[i]) for i, name in enumerate(conditions)}
    if several:
        entries["a case"] = line([], [], linestyle="", marker=".", color=theme.ink, markersize=4, alpha=0.7)
    entries["fastnest is slower"] = patch(facecolor=theme.shade, edgecolor=theme.line)
    look.legend(figure, list(entries.values()), list(entries))
