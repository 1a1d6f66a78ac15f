"""The roofline: what forward passes reach against what the machine can, by how often they use a byte."""

import math

from fastnest._optional import optional

from . import look, report

ALT = "Roofline of forward passes"
MARKERS = "osD^vP*X"
HEIGHT = 4.3  # inches
GUIDES = (1, 10, 100, 1000)  # GB/s


def shown(result: dict) -> dict:
    """{"condition", "bandwidth": GB/s or None, "panels": {dtype: {"peak", "points": [...]}}}, or {}.

    A point is {"subject", "intensity", "fastnest", "eager"}: flops per byte of arguments and result, and flops per
    second. What a training step must move is not counted in the JSON. Cases in which no kernel ran are left out.
    """
    # With two conditions the last is the fair one, which says what the kernels do; images are measured as shipped only.
    name, condition = list(result["conditions"].items())[-1]
    panels = {}
    for group in report.groups_of(result):
        of_group = [report.rows_of(c, *group) for c in result["conditions"].values()]
        for row in report.of_kernels([rows for rows in of_group if rows][-1]):
            if row["mode"] == "forward":
                peak = round(condition["peak_gflops"][row["dtype"]], 1)
                panels.setdefault(row["dtype"], {"peak": peak, "points": []})["points"].append(_point(row))
    bandwidth = condition.get("copy_gbytes_per_second")
    return {"condition": name, "bandwidth": bandwidth and round(bandwidth, 1), "panels": panels} if panels else {}


def _point(row: dict) -> dict:
    reached = {who: row["flops"] / row["median_us"][who] * 1e-3 for who in ("fastnest", "eager")}
    numbers = {"intensity": row["flops"] / row["bytes"], **reached}
    return {"subject": row["subject"], **{key: round(value, 3) for key, value in numbers.items()}}


def said(data: dict) -> str:
    """The picture in words."""
    measured = "the slopes what a copy's bandwidth would allow"
    guides = "the slopes are for orientation, what 1, 10 and 100 GB/s would allow: bandwidth was not measured"
    return (
        f"Forward passes, {data['condition'].replace('_', ' ')} where that was measured, fastnest joined with eager: "
        "flops per second by flops per byte of arguments and result. The horizontal line is the measured peak of "
        f"multiply-adds, {measured if data['bandwidth'] else guides}."
    )


def figure(data: dict, theme: look.Theme):
    """A panel per dtype: every forward pass of fastnest joined with eager's, below the measured peak."""
    title = f"Roofline of forward passes, {data['condition'].replace('_', ' ')}"
    drawn = look.page(HEIGHT, title, data["machine"], theme)
    panels = data["panels"]
    subjects = list(dict.fromkeys(point["subject"] for panel in panels.values() for point in panel["points"]))
    limits = _limits(data)
    axes = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (dtype, panel) in zip(axes, panels.items(), strict=True):
        axis.set(xscale="log", yscale="log", **limits)
        _scale(axis, theme)
        _roof(axis, panel["peak"], data["bandwidth"], _steepness(axis, len(panels)), theme)
        _points(axis, panel["points"], subjects, theme)
        axis.set_title(dtype, loc="left", fontsize=10, fontweight="bold")
        axis.set_xlabel("flops per byte of arguments and result")
    axes[0].set_ylabel("GFLOP/s")
    _legend(drawn, subjects, theme)
    return drawn


def _limits(data: dict) -> dict[str, tuple[float, float]]:
    """Around all points, with some of the slope and of the peak in view where the bandwidth is known."""
    points = [point for panel in data["panels"].values() for point in panel["points"]]
    peaks = [panel["peak"] for panel in data["panels"].values()]
    x = [point["intensity"] for point in points]
    y = [point[who] for point in points for who in ("fastnest", "eager")]
    left, right, low, high = min(x) / 3, max(x) * 1.6, min(y) / 1.6, max(peaks) * 1.6
    if data["bandwidth"]:
        ridges = [peak / data["bandwidth"] for peak in peaks]
        left, right, low = min(left, min(ridges) / 6), max(right, max(ridges) * 4), min(low, min(peaks) / 6)
    return {"xlim": (left, right), "ylim": (low, high)}


def _scale(axis, theme: look.Theme) -> None:
    ticker = optional("matplotlib.ticker", "plot")
    for one, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        one.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
        one.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.minorticks_off()
    axis.tick_params(length=0)
    axis.grid(color=theme.line, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)


def _steepness(axis, panels: int) -> float:
    """Degrees at which a decade of flops per byte is a decade of flops per second; about, since nothing is laid out."""
    width, height = (look.WIDTH - 0.7) / panels, HEIGHT - 0.65
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    return math.degrees(math.atan2(height / math.log(high / low), width / math.log(right / left)))


def _roof(axis, peak: float, bandwidth: float | None, angle: float, theme: look.Theme) -> None:
    """The peak, and the memory's slope where it was measured; else slopes to read by."""
    (left, right), low = axis.get_xlim(), axis.get_ylim()[0]
    ridge = peak / bandwidth if bandwidth else left
    axis.plot([max(left, ridge), right], [peak, peak], color=theme.ink, linewidth=1.4, zorder=2)
    beside = {"textcoords": "offset points", "fontsize": 8.5}
    axis.annotate(f"peak {peak:.0f} GFLOP/s", (right, peak), (-2, 4), ha="right", **beside)
    guide = {"color": theme.soft, "linewidth": 0.8, "linestyle": ":"}
    line = {"color": theme.ink, "linewidth": 1.4} if bandwidth else guide
    for slope in [bandwidth] if bandwidth else GUIDES:
        start, end = max(left, low / slope), min(right, peak / slope)
        if end < 4 * start:  # nothing of it, or no room for its label
            continue
        axis.plot([start, end], [slope * start, slope * end], zorder=2, **line)
        along = {"rotation": angle, "rotation_mode": "anchor", "color": theme.soft}
        axis.annotate(f"{slope:.3g} GB/s", (1.2 * start, 1.2 * slope * start), (0, 5), **along, **beside)


def _points(axis, points: list[dict], subjects: list[str], theme: look.Theme) -> None:
    for point in points:
        x, marker = point["intensity"], MARKERS[subjects.index(point["subject"]) % len(MARKERS)]
        axis.plot([x, x], [point["eager"], point["fastnest"]], color=theme.soft, linewidth=0.8, alpha=0.5, zorder=3)
        axis.plot([x], [point["eager"]], marker, zorder=4, **_ring())
        axis.plot([x], [point["fastnest"]], marker, markersize=4.5, color=look.COLOURS[0], zorder=5)


def _ring() -> dict:
    """Larger than what it may lie behind."""
    return {"markersize": 6.5, "markerfacecolor": "none", "color": look.COLOURS[1]}


def _legend(figure, subjects: list[str], theme: look.Theme) -> None:
    line = optional("matplotlib.lines", "plot").Line2D

    def mark(marker: str, **look) -> object:
        return line([], [], linestyle="", marker=marker, **look)

    handles = [mark("o", color=look.COLOURS[0], markersize=4.5), mark("o", **_ring())]
    handles += [mark(MARKERS[i % len(MARKERS)], color=theme.soft, markersize=4.5) for i in range(len(subjects))]
    look.legend(figure, handles, ["fastnest", "eager", *subjects])
