"""The findings in plain words."""

import re
from typing import Any

INDEX = re.compile(r"\b([WHvx])_(\([A-Zi0-9+-]+\)|\w+)")  # W_(L+1), x_i: what stands below the line
NOTHING = 1e-9  # of a risk, relative to the other it is compared with: rounding
ROUNDING = 1e-15  # a number this small; targets are of size 1
LITTLE = 0.1  # of an average block's share: next to nothing
OTHER_LOSS = "Left out: it is about the squared loss."


def number(value: float | None, digits: int = 4) -> str:
    """To so many digits; a dash for none."""
    if value is None:
        return "–"
    return "0 to rounding" if 0 < abs(value) < ROUNDING else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g} %" if abs(value) < 0.1 else f"{value:.3g} %"


def model(about: dict[str, Any]) -> str:
    """ResNEst, 8 blocks, width 128, 41,984 parameters."""
    width = "" if about["width"] is None else f", width {about['width']}"
    return f"{about['name']}, {about['blocks']} blocks{width}, {about['parameters']:,} parameters"


def reading(about: dict[str, Any]) -> dict[str, str]:
    """What was decided about a file, by headings."""
    facts = {"Read from the file": "; ".join((f"{about['rows']:,} rows", *about["notes"]))}
    if about["dropped"]:
        facts["Dropped"] = f"{about['dropped']:,} rows, where a value was missing"
    return facts | {"Target in the file": f"{about['target']}, {about['target_is']}"}


def no_gap(family: str) -> str | None:
    """Why a model has no gap; None for one that has."""
    return {
        "bn_resnest": "The batch norm before the head stands between W_L and W_(L+1), and (P_phi) knows of none.",
        "a_resnest": "An A-ResNEst has no coupling of W_L and W_(L+1): every feature has a linear map of its own.",
        "densenest": "A DenseNEst has no coupling of W_L and W_(L+1): its stream holds every feature side by side.",
        "other": "The output is not linear in the features: of images, in their averages over space.",
    }.get(family)


def verdict(found: dict[str, Any]) -> dict[str, Any]:
    """Whether the guarantees hold, a headline, and the sentences behind it."""
    family, risks = found["model"]["family"], found["risks"]
    holds, headline, sentences = {"resnest": _resnest, "a_resnest": _a_resnest, "densenest": _densenest}.get(
        family, _other
    )(found)
    linear = "v_0" if risks["linear_of"] == "v_0" else "x"
    best = found["bounds"][0]
    sign, says = ("≤", "holds") if best["holds"] else (">", "does not hold")
    sentences.append(
        f"Risk ≤ that of the best linear predictor from {linear}: {number(best['risk'])} {sign} "
        f"{number(best['linear'])} {says} for {best['of']}" + (f" ({best['paper']})." if best["paper"] else ".")
    )
    own = found["bounds"][-1]
    place = "below" if own["holds"] else "above"
    why = ": the bound is one on minima, and training has not come to one" if own["paper"] and not own["holds"] else ""
    sentences.append(f"As it is, the model has a risk of {number(own['risk'])}, {place} that predictor's{why}.")
    features, rows = sum(found["model"]["features"]), found["data"]["rows"]
    if features >= rows:
        sentences.append(f"{features} features are enough to fit any {rows} rows: here a least risk of 0 says little.")
    if not risks["attained"]:
        sentences.append(
            "Some classes can be separated by a linear map of the features, so some least risks are only approached."
        )
    sentences.append(f"On {found['data']['rows_held_out']} rows held out: {score(found['held_out']['model'])}.")
    return {"holds": holds, "headline": headline, "sentences": sentences}


def score(one: dict[str, float]) -> str:
    if "accuracy" in one:
        return f"accuracy {100 * one['accuracy']:.2f} %"
    r2 = "undefined (one target in all of them)" if one["r2"] is None else f"{one['r2']:.3f}"
    return f"R² {r2}, root mean square error {number(one['rmse'])}"


def _resnest(found: dict[str, Any]) -> tuple[bool, str, list[str]]:
    third, fourth, risks = found["assumptions"]["3"], found["assumptions"]["4"], found["risks"]
    if third["holds"] and fourth["holds"]:
        headline = "Every guarantee of a wide ResNEst holds for this model and data."
        first = f"Assumptions 3 and 4 hold: the width of {fourth['numbers']['width']} keeps all "
        first += (
            f"{fourth['numbers']['columns']} features before the last block apart, so the coupling of the last two "
        )
        first += f"linear maps costs nothing (Theorem 1; measured: {number(risks['gap'], 2)})."
        sentences = [first]
        if not found["assumptions"]["1"]["holds"]:
            headline = "The guarantees about the risk of a wide ResNEst hold for this model and data."
            sentences.append(f"Assumption 1, about its landscape, does not: {found['assumptions']['1']['says']}.")
        return True, headline, sentences
    heads: list[str] = []
    sentences = []
    if not third["holds"]:
        numbers = third["numbers"]
        heads.append(f"Assumption 3 does not hold: width {numbers['width']} for {numbers['outputs']} outputs.")
    if not fourth["holds"]:
        numbers = fourth["numbers"]
        columns, width = numbers["columns"], numbers["width"]
        if columns > width:
            heads.append(f"Assumption 4 does not hold: a stream of width {width} for {columns} features.")
            sentences.append(f"With these bottlenecks the stream would have to be {columns} wide.")
        else:
            heads.append(f"Assumption 4 does not hold: the maps have rank {numbers['rank']} of {columns}.")
    return False, " ".join(heads), [_cost(risks), *sentences]


def _cost(risks: dict[str, Any]) -> str:
    gap, heads = risks["gap"], risks["heads"]
    if gap is None:
        return str(risks["gap_why_not"])
    if abs(gap) <= NOTHING * max(heads, NOTHING):
        return "The coupling of the last two linear maps costs nothing on these data all the same."
    relative = (
        "" if risks["relative_gap"] is None else f" ({percent(100 * risks['relative_gap'])} above the best heads')"
    )
    return f"The coupling of the last two linear maps costs {number(gap)} of risk{relative}, however they are chosen."


def _a_resnest(found: dict[str, Any]) -> tuple[bool, str, list[str]]:
    first = "With a linear map of its own for every feature, fitting the maps is a convex problem: a minimum of it is "
    first += "never above the best linear predictor, and a block more never raises it (Proposition 2, Corollary 1)."
    return True, "The guarantees of an A-ResNEst hold for any model and data.", [first]


def _densenest(found: dict[str, Any]) -> tuple[bool, str, list[str]]:
    first = (
        "Its stream keeps every feature, so it is a wide ResNEst whatever its weights (Proposition 4), and a growth "
    )
    first += "more never raises the least risk."
    if found["risks"]["linear_of"] == "v_0":
        first += " This is about the last dense block: v_0 is what enters it."
    return True, "The guarantees of a DenseNEst hold for any model and data.", [first]


def _other(found: dict[str, Any]) -> tuple[None, str, list[str]]:
    return None, "The paper guarantees nothing for this model; the numbers are what was measured.", [
        str(no_gap(found["model"]["family"]))
    ]  # fmt: skip


def blocks(rows: list[dict[str, Any]]) -> list[str]:
    """Which blocks help, and which add next to nothing."""
    first, last, every = rows[0], rows[-1], rows[1:]
    sentences = [
        f"The best head on the input alone has a risk of {number(first['head_risk'])}, "
        f"on all features {number(last['head_risk'])}."
    ]
    shares = {row["block"]: row["share"] for row in every if row["share"] is not None}
    if not shares:
        return [*sentences, "No block lowers it."]
    best = sorted(shares, key=shares.__getitem__, reverse=True)[:3]
    sentences.append(
        f"Most of the fall comes from {_listed([f'block {i} ({percent(100 * shares[i])})' for i in best])}."
    )
    idle = [i for i, share in shares.items() if share < LITTLE / len(every)]
    if idle:
        sentences.append(f"Next to nothing comes from block{'s' * (len(idle) > 1)} {_listed([str(i) for i in idle])}.")
    lost = [after["block"] for before, after in zip(rows, every, strict=False) if _rises(before, after)]
    if lost:
        sentences.append(
            f"In block{'s' * (len(lost) > 1)} {_listed([str(i) for i in lost])} the stream loses something it had: the "
            "best linear predictor from x_i is worse than the one from x_(i-1)."
        )
    return sentences


def _rises(before: dict[str, Any], after: dict[str, Any]) -> bool:
    risks = before["stream_risk"], after["stream_risk"]
    return None not in risks and risks[1] > risks[0] * (1 + NOTHING)


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def critical_point(at: dict[str, Any]) -> list[str]:
    """Where the last two maps stand, and what to do about it."""
    risk, least = number(at["risk"]), number(at["least_risk"])
    gradient = f"The gradient of the risk by W_L and W_(L+1) has the norm {number(at['gradient_norm'], 3)}, "
    gradient += f"{number(at['gradient_norm'] / at['gradient_scale'] if at['gradient_scale'] else 0.0, 2)} "
    gradient += "of what it could be."
    meaning = {
        "not critical": f"Training has not come to a critical point of the last two maps: risk {risk}, least {least}.",
        "global minimiser": f"The last two maps are a global minimiser, given the features: risk {risk}.",
        "strict saddle": f"The last two maps stand at a strict saddle: risk {risk}, least {least}; the gradient is "
        "nothing, but there is a way down.",
        "degenerate": f"The last two maps stand at a critical point above the minimum (risk {risk}, least {least}), "
        "without curvature that leads down.",
        "undecided": f"The last two maps stand at a critical point above the minimum: risk {risk}, least {least}.",
    }[at["verdict"]]
    rank = f"W_(L+1) has rank {at['rank']} of {at['outputs']}" + (
        ": full, and a critical point with that is a global minimiser where assumptions 3 and 4 hold (Theorem 1)."
        if at["full_rank"]
        else ": not full, so that a critical point may be a saddle (Theorem 2)."
    )
    sentences = [meaning, gradient, rank]
    if at["least_eigenvalue"] is None:
        return [*sentences, f"The Hessian's eigenvalues are left out: W_L and W_(L+1) have {at['weights']} weights."]
    curvature = f"The least eigenvalue of the Hessian is {number(at['least_eigenvalue'], 3)} (the largest "
    curvature += f"{number(at['largest_eigenvalue'], 3)})"
    if at["escaped_risk"] < at["risk"] * (1 - NOTHING):
        curvature += f"; a step along its direction lowers the risk to {number(at['escaped_risk'], 6)}."
    else:
        curvature += "; no step along its direction lowers the risk."
    return [*sentences, curvature]
