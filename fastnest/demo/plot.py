"""The demo's picture: losses of every training, speed and memory of every step."""

from pathlib import Path
from typing import Any

from .._optional import optional


def draw(trained: list[Any], rows: list[dict[str, Any]], path: Path) -> Path:
    """Losses by data set (fused as a line, reference as dots on it), and bars against eager and compile."""
    optional("matplotlib", "plot").use("Agg")
    pyplot = optional("matplotlib.pyplot", "plot")
    lines = 2 if rows else 1
    figure, axes = pyplot.subplots(lines, 2, figsize=(12, 4 * lines), squeeze=False, constrained_layout=True)
    for axis, name in zip(axes[0], dict.fromkeys(one.data.name for one in trained), strict=False):
        for color, one in enumerate(one for one in trained if one.data.name == name):
            for backend, fit in one.fits.items():
                style = (
                    {"linestyle": "-", "linewidth": 1}
                    if backend == "cpp"
                    else {"linestyle": "", "marker": ".", "markersize": 4}
                )
                axis.plot(fit.losses, color=f"C{color}", label=f"{one.kind}, {backend}", **style)
        axis.set(title=f"loss on {name}", xlabel="batch", yscale="log")
        axis.legend(fontsize=7)
    if rows:
        _bars(axes[1, 0], rows, "median_us", 1e-3, "time of a step, ms")
        _bars(
            axes[1, 1], [row for row in rows if row["memory"]], "memory", 2**-20, "peak memory of a training step, MiB"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _bars(axis: Any, rows: list[dict[str, Any]], key: str, unit: float, title: str) -> None:
    places = range(len(rows))
    for offset, name in enumerate(("fastnest", "eager", "compile")):
        axis.bar([i + 0.27 * offset for i in places], [row[key][name] * unit for row in rows], 0.27, label=name)
    axis.set_xticks([i + 0.27 for i in places], [f"{row['subject']}\n{row['mode']}" for row in rows], fontsize=7)
    axis.set(title=title)
    axis.legend()
