"""The findings as one HTML page: nothing is loaded from elsewhere, and every text from outside is escaped."""

from html import escape
from typing import Any

from . import plot, words
from .style import STYLE
from .words import number

PAPER = "https://arxiv.org/abs/2111.05496"
HOLDS = {True: "holds", False: "does not hold", None: "does not apply"}
ABOUT = {
    "1": "The last features v_L and the targets have something to do with each other, and v_L has full rank",
    "2": "The loss is convex in the outputs",
    "3": "The stream is at least as wide as there are outputs",
    "4": "The stream keeps the features before the last block apart",
}


def render(found: dict[str, Any], numbers: str) -> str:
    """The page for what `findings.gather` returns; `numbers` is the name of the JSON beside it."""
    model, data = found["model"], found["data"]
    title = f"{model['name']} on {data['name']}"
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    parts = [
        _verdict(found["verdict"]),
        _section("Model and data", _facts(found)),
        _section("Risks", _risks(found)),
        _section("Never worse than a linear predictor", _bounds(found["bounds"], found["risks"])),
        _section("Assumptions", _assumptions(found["assumptions"])),
        _section("Block by block", _blocks(found)),
        _section("Where the last two linear maps stand", _paragraphs(found["critical_point_words"])),
        _section("On rows held out", _held_out(found)),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}: fastnest report</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>{escape(words.model(model))}. Risks are means of the {escape(found["loss"].replace("_", " "))} loss over
{data["rows"]:,} training rows.</p>
</header>
<main>
{"".join(parts)}</main>
<footer>
<p>Letters and numbers are those of <a href="{PAPER}">arXiv 2111.05496</a>. All figures of this page, unrounded:
{escape(numbers)}. Made with {escape(versions)}.</p>
</footer>
</body>
</html>
"""


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}</section>\n"


def _paragraphs(sentences: list[str]) -> str:
    return "".join(f"<p>{_math(one)}</p>\n" for one in sentences)


def _math(text: str) -> str:
    """Escaped, with W_L, x_(i-1) and (P_phi) as the paper prints them."""
    text = (
        escape(text)
        .replace("P_phi", "P<sub>φ</sub>")
        .replace("PA_phi", "PA<sub>φ</sub>")
        .replace("PD_phi", "PD<sub>φ</sub>")
    )
    return words.INDEX.sub(lambda found: f"{found[1]}<sub>{found[2].strip('()').replace('-', '−')}</sub>", text)


def _verdict(verdict: dict[str, Any]) -> str:
    tone = {True: "good", False: "warn", None: "plain"}[verdict["holds"]]
    items = "".join(f"<li>{_math(one)}</li>\n" for one in verdict["sentences"])
    return f'<section class="verdict {tone}">\n<h2>{_math(verdict["headline"])}</h2>\n<ul>\n{items}</ul>\n</section>\n'


def _facts(found: dict[str, Any]) -> str:
    model, data = found["model"], found["data"]
    sizes = model["features"][1:]
    even = len(set(sizes)) == 1
    features = f"{len(sizes)} × {sizes[0]}" if even else ", ".join(map(str, sizes))
    facts = {
        "Model": model["name"],
        "Inputs, outputs": f"{model['inputs']}, {model['outputs']}",
        "Blocks × their features": features,
        "Width of the stream": "none before the head" if model["width"] is None else str(model["width"]),
        "Parameters": f"{model['parameters']:,}",
        "From": ", ".join(f"{name} {value}" for name, value in model["origin"].items()),
        "Data": data["name"],
        "Rows": f"{data['rows']:,} for training, {data['rows_held_out']:,} held out",
        "Targets": f"{data['outputs']} classes"
        if data["classes"]
        else f"{data['outputs']} standardised: the mean alone has a risk of 1 each",
    }
    if data["reading"]:
        facts |= words.reading(data["reading"])
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>\n" for name, value in facts.items())
    return f"<dl>\n{items}</dl>\n"


def _table(
    label: str, head: list[str], rows: list[list[str]], numbers: tuple[int, ...] = (), stack: bool = False
) -> str:
    """Cells are HTML already; the first of a row is its heading.

    Where the screen is narrow it scrolls inside, or if `stack` shows the cells of a row one below the other.
    """

    def cell(tag: str, i: int, text: str, scope: str = "") -> str:
        kind = ' class="number"' if i in numbers else ""
        named = f' data-label="{head[i]}"' if stack and tag == "td" else ""
        return f"<{tag}{scope}{kind}{named}>{text}</{tag}>"

    def line(row: list[str]) -> str:
        return cell("th", 0, row[0], ' scope="row"') + "".join(cell("td", i, text) for i, text in enumerate(row[1:], 1))

    top = "".join(cell("th", i, text, ' scope="col"') for i, text in enumerate(head))
    lines = "".join(f"<tr>{line(row)}</tr>\n" for row in rows)
    opened = '<table class="stack">' if stack else "<table>"
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">\n{opened}\n'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>\n</div>\n"
    )


def _mark(holds: bool | None) -> str:
    tone = {True: "good", False: "warn", None: "plain"}[holds]
    return f'<span class="mark {tone}">{HOLDS[holds]}</span>'


def _assumptions(found: dict[str, Any]) -> str:
    rows = [
        [
            f"<strong>{name}</strong> {_math(ABOUT[name])}",
            _mark(one["holds"]),
            _math(one["says"]),
            number(one["margin"], 3) if one["holds"] is not None else "–",
        ]
        for name, one in found.items()
    ]
    notes = "Theorem 1 and what follows from it need 2, 3 and 4; 1 is for the landscape of the risk (Proposition 1). "
    notes += "Margins: how far from failing; of 1 and 4 as a share of the largest possible, of 3 in features."
    return _table("Assumptions", ["Assumption", "Status", "Measured", "Margin"], rows, (3,), stack=True) + _paragraphs(
        [notes]
    )


def _risks(found: dict[str, Any]) -> str:
    risks, family = found["risks"], found["model"]["family"]
    rows = [["The model as it is", number(risks["model"]), "all weights as trained (5)"]]
    if risks["last_maps"] is not None:
        rows.append(["Best W_L and W_(L+1)", number(risks["last_maps"]), "all other weights as trained (P_phi)"])
    problem = {"densenest": "(PD_phi)", "other": ""}.get(family, "(PA_phi)")
    rows.append(["Best heads", number(risks["heads"]), f"a linear map of its own for every feature v_i {problem}"])
    if risks["gap"] is not None:
        share = risks["relative_gap"]
        relative = (
            ""
            if share is None or abs(share) < words.NOTHING
            else f", {words.percent(100 * share)} of the best heads' risk"
        )
        rows.append(["Gap", number(risks["gap"], 3), f"what the coupling of W_L and W_(L+1) costs (8){relative}"])
    rows.append(["Best linear predictor", number(risks["linear"]), f"from {risks['linear_of']} alone, no network"])
    table = _table("Risks", ["Of", "Risk", "With"], [[_math(a), b, _math(c)] for a, b, c in rows], (1,))
    return table + (_paragraphs([f"No gap: {risks['gap_why_not']}"]) if risks["gap_why_not"] else "")


def _bounds(bounds: list[dict[str, Any]], risks: dict[str, Any]) -> str:
    rows = [
        [
            _math(one["of"][0].upper() + one["of"][1:]),
            f"{number(one['risk'])} {'≤' if one['holds'] else '&gt;'} {number(one['linear'])}",
            _mark(one["holds"]),
        ]
        for one in bounds
    ]
    paper = bounds[0]["paper"]
    where = "where assumptions 3 and 4 hold, " if paper == "Corollary 2" else ""
    note = (
        f"{paper}: {where}at a minimum the risk is at most that of the best linear predictor from {risks['linear_of']}."
    )
    if paper is None:
        note = "The paper proves no such bound for this model; these are the numbers."
    return _table("Bounds", ["Of", "Risk and bound", "Status"], rows, (1,)) + _paragraphs([note])


def _blocks(found: dict[str, Any]) -> str:
    rows = found["blocks"]
    body = [
        [
            str(row["block"]),
            str(row["features"]),
            number(row["head_risk"]),
            number(row["stream_risk"]),
            "–" if row["share"] is None else words.percent(100 * row["share"]),
            words.percent(100 * row["unpredictability"]),
        ]
        for row in rows
    ]
    head = ["Block i", "Features", "Best head on v_0 … v_i", "Best from x_i", "Share of the fall", "Not linear"]
    table = _table("Blocks", [_math(one) for one in head], body, tuple(range(1, 6)))
    first = (
        "What can be had from the first blocks: the risk of the best head on v_0 … v_i, which never rises, and of the "
    )
    first += "best linear predictor from the stream x_i."
    second = "How much of v_i is new: the share of its variance that no linear map of v_0 … v_(i-1) predicts."
    return f"""{_paragraphs(found["block_words"])}<div class="pictures">
<figure>
{plot.curves(rows, found["risks"]["model"])}
<figcaption>{_math(first)}</figcaption>
</figure>
<figure>
{plot.bars(rows)}
<figcaption>{_math(second)}</figcaption>
</figure>
</div>
<details>
<summary>The numbers</summary>
{table}</details>
"""


def _held_out(found: dict[str, Any]) -> str:
    names = {"model": "The model as it is", "heads": "Best heads", "linear": "Best linear predictor"}
    rows = [[names[name], escape(words.score(one))] for name, one in found["held_out"].items()]
    note = "For context: the guarantees are about the training rows, on which these heads and predictors were fitted."
    return _table("Scores on rows held out", ["Of", "Score"], rows) + _paragraphs([note])
