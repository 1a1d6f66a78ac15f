"""The report's pictures as inline SVG: their text and axes take the colour of the page, in the dark too."""

import io
import re
from typing import Any

from .._optional import optional

INK = "#010203"  # stands for the colour of the page's text
BLUE, ORANGE = "#3b82c4", "#d97a1f"  # told apart by the colour-blind, on white and on black
SIZE = (4.4, 3.0)  # inches: text of 9 points stays readable where the picture is 330 pixels wide
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def _axis(name: str) -> tuple[Any, Any]:
    """A figure of its own: no backend is chosen and no global figure made."""
    figure = optional("matplotlib.figure", "report").Figure(figsize=SIZE, layout="constrained")
    axis = figure.add_subplot()
    axis.xaxis.set_major_locator(optional("matplotlib.ticker", "report").MaxNLocator(integer=True))
    return figure, axis


def curves(rows: list[dict[str, Any]], own: float) -> str:
    """Risks of the best heads and of the best linear predictors from the stream, block by block."""
    with optional("matplotlib", "report").rc_context({**STYLE, "svg.hashsalt": "curves"}):
        figure, axis = _axis("curves")
        stream = [row for row in rows if row["stream_risk"] is not None]
        heads = [row["head_risk"] for row in rows]
        axis.plot(
            [row["block"] for row in rows],
            heads,
            "o-",
            color=BLUE,
            markersize=4,
            label="best head on the features so far",
        )
        places, risks = [row["block"] for row in stream], [row["stream_risk"] for row in stream]
        axis.plot(
            places,
            risks,
            "s--",
            color=ORANGE,
            markersize=7,
            markerfacecolor="none",
            label="best linear predictor from the stream",
        )
        values = heads + risks
        if own <= 2 * max(values):
            axis.axhline(own, color=INK, linestyle=":", linewidth=1, label="the model as it is")
            values.append(own)
        if 10 < max(values) / max(min(values), 1e-300) < 1e9:  # decades, but not down to rounding
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.set(xlabel="block i", ylabel="risk")
        axis.legend(fontsize=8)
        return _svg(figure, "curves", curves_in_words(rows))


def curves_in_words(rows: list[dict[str, Any]]) -> str:
    first, last = rows[0]["head_risk"], rows[-1]["head_risk"]
    return f"Risk by block: the best head falls from {first:.3g} to {last:.3g} over {len(rows) - 1} blocks."


def bars(rows: list[dict[str, Any]]) -> str:
    """The share of every block's features that no linear map of the earlier ones predicts."""
    with optional("matplotlib", "report").rc_context({**STYLE, "svg.hashsalt": "bars"}):
        figure, axis = _axis("bars")
        shares = [100 * row["unpredictability"] for row in rows[1:]]
        axis.bar([row["block"] for row in rows[1:]], shares, color=BLUE, width=0.7)
        axis.set(xlabel="block i", ylabel="not linear, % of variance", ylim=(0, 1.1 * max(*shares, 1.0)))
        said = f"Share of each block's features that is new: from {min(shares):.3g} to {max(shares):.3g} percent."
        return _svg(figure, "bars", said)


def _svg(figure: Any, name: str, said: str) -> str:
    """Scales with the page; without ids that two pictures share."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    head, text = file.getvalue().partition("<svg")[2].split(">", 1)
    (box,) = re.findall(r'viewBox="[^"]*"', head)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL).replace(INK, "currentColor")
    text = re.sub(r'(id="|href="#|url\(#)', rf"\1{name}-", text).replace("xlink:href", "href").strip()
    return f'<svg {box} role="img" aria-label="{said}">{text}'
