"""What the pictures of benchmarks have in common: colours by day and by night, a title with the machine, a legend."""

from collections.abc import Sequence
from typing import NamedTuple

from fastnest._optional import optional
from fastnest.report.plot import BLUE, INK, ORANGE, STYLE

COLOURS = (BLUE, ORANGE)


class Theme(NamedTuple):
    """Colours of the text, of what is said softly, of lines, of the side of the losses, and of the paper."""

    ink: str
    soft: str
    line: str
    shade: str
    paper: str


THEMES = {
    "light": Theme("#1c2430", "#5a6675", "#d8dee6", "#f1f3f6", "#ffffff"),
    "dark": Theme("#e6eaf0", "#a3aebd", "#333c48", "#1a212b", "#0d1117"),
}
WIDTH, HEAD, MARGIN = 9.6, 0.92, 0.1  # inches: of the page, of what stands above the axes, around all


def style(theme: Theme) -> dict:
    """Of matplotlib; SVG text as outlines, since what leaves room in this font may not in a reader's."""
    common = {key: theme.ink if value == INK else value for key, value in STYLE.items()}
    faces = dict.fromkeys(("figure.facecolor", "axes.facecolor"), theme.paper)
    return {**common, **faces, "axes.edgecolor": theme.line, "svg.fonttype": "path", "svg.hashsalt": "benchmarks"}


def page(height: float, title: str, machine: str, theme: Theme):
    """A figure of so many inches of axes below a title and the machine's line."""
    height += HEAD
    figure = optional("matplotlib.figure", "plot").Figure(figsize=(WIDTH, height), layout="constrained")
    left, right = MARGIN / WIDTH, 1 - 2 * MARGIN / WIDTH
    figure.get_layout_engine().set(rect=(left, MARGIN / height, right, 1 - (HEAD + MARGIN) / height))
    figure.text(left, 1 - 0.12 / height, title, va="top", fontsize=13, fontweight="bold")
    figure.text(left, 1 - 0.42 / height, machine, va="top", fontsize=8.5, color=theme.soft)
    return figure


def legend(figure, handles: Sequence, labels: Sequence[str]) -> None:
    """In one line below the machine's."""
    height = figure.get_figheight()
    figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(MARGIN / WIDTH, 1 - 0.68 / height), ncols=len(labels),
        borderpad=0, borderaxespad=0, handlelength=1.4, columnspacing=1.6, fontsize=9,
    )  # fmt: skip
