"""What a report says, as plain numbers and words: everything on the page, and all of the JSON."""

import math
import platform
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import __version__, theory
from ..demo.data import Dataset
from ..demo.training import score_of
from ..models import AResNEst, DenseNEst, ResNEst
from ..models.cifar import CifarNet
from ..models.densenet import DenseNet
from ..theory.features import linear_maps
from . import words

FORMAT = "fastnest report, 1"
ROWS = 512  # that a model sees at once
HESSIAN = 40_000  # weights in W_L and W_{L+1} up to which its least eigenvalue is looked for: half a minute at most


def gather(model: torch.nn.Module, data: Dataset, *, loss: str = "squared", origin: dict[str, Any]) -> dict[str, Any]:
    """Every number of the report on the training rows, as a dict that JSON can hold (null: not finite or not defined).

    Args:
        model: one of fastnest.models; it is set to evaluation.
        data: with targets and as many features and outputs as the model has.
        loss: "squared" or "cross_entropy", of every risk.
        origin: {"file": name} or how it was trained; it is stored as model.origin.

    Raises ValueError for a model whose features of the data are not finite.

    Returns these keys, always all of them:
        format, loss; versions: fastnest, torch, python.
        model: name, family ("resnest", "bn_resnest", "a_resnest", "densenest" or "other"), inputs, outputs, width (null
            where there is no linear map behind a stream), blocks, features (of each v_i), parameters, origin.
        data: name, rows, rows_held_out, shape (of a row), outputs, classes (whether targets are), reading (null, or of
            a file: target, target_is, features, rows, dropped, notes, as demo.tables.Reading).
        verdict: holds (true, false, or null for a model about which the paper says nothing), headline, sentences.
        assumptions: "1" to "4", each with holds (null: does not apply), margin, numbers, says.
        risks: model, last_maps (P_phi), heads (PA_phi or PD_phi), gap, relative_gap (of heads), gap_why_not, linear,
            linear_of ("x", or "v_0" for images), attained (whether heads and linear have minimisers).
        bounds: a list of paper, of, risk, linear, holds: that risk <= linear.
        held_out: model, heads, linear, each with accuracy, or r2 and rmse in the target's unit.
        blocks: a list over i = 0, ..., L of block, features, head_risk, stream_risk, drop (of head_risk), share (of all
            drops), unpredictability.
        block_words: sentences about them.
        critical_point: null, or the fields of theory.CriticalPoint without the direction, outputs and weights;
            the Hessian's are null above 40,000 weights. critical_point_words: sentences about it, or why there is none.
    """
    model.eval()
    x, y, classes = data.x, data.y, data.outputs if data.is_classification else None
    on_images = isinstance(model, (CifarNet, DenseNet))
    family = _family(model)
    options: dict[str, Any] = {"loss": loss, "intercept": on_images, "classes": classes}
    held = _features(model, data.x_held_out)
    v = _features(model, x)
    if not all(part.isfinite().all() for rows in (*held, *v) for part in rows):
        raise ValueError(
            f"the model's features of {data.name} must be finite, got NaN or Inf: train it at a lower rate"
        )
    head = theory.linear_head(list(zip(v, y.split(ROWS), strict=True)), **options)
    inputs = torch.cat([part[0] for part in v]) if on_images else x
    linear = theory.best_linear_predictor(inputs, y, **options)
    risks = _risks(model, x, y, loss, family, head, linear) | {"linear_of": "v_0" if on_images else "x"}
    profile = theory.block_profile(model, x, y, loss=loss)
    assumptions = _assumptions(theory.check_assumptions(model, x, y), loss)
    scores = {
        "model": torch.cat([_run(model, rows) for rows in data.x_held_out.split(ROWS)]),
        "heads": torch.cat([head(part) for part in held]),
        "linear": torch.cat([linear(part[0]) for part in held]),
    }
    found: dict[str, Any] = {
        "format": FORMAT,
        "loss": loss,
        "versions": {"fastnest": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "model": _model(model, family, v, assumptions["3"]["numbers"].get("width"), data, origin),
        "data": _data(data),
        "assumptions": assumptions,
        "risks": risks,
        "bounds": _bounds(family, risks),
        "held_out": {name: _score(output, data) for name, output in scores.items()},
        "blocks": _blocks(profile),
        "critical_point": None,
    }
    why_not = words.no_gap(family) or (words.OTHER_LOSS if loss != "squared" else None)
    if why_not is None and isinstance(model, ResNEst):
        found["critical_point"] = _critical_point(model, x, y)
    found["critical_point_words"] = [why_not] if why_not else words.critical_point(found["critical_point"])
    found["block_words"] = words.blocks(found["blocks"])
    found["verdict"] = words.verdict(found)
    plain: dict[str, Any] = _plain(found)
    return plain


def _family(model: torch.nn.Module) -> str:
    if isinstance(model, ResNEst):
        return "resnest" if model.head_norm is None else "bn_resnest"
    if isinstance(model, AResNEst) or getattr(model, "kind", None) == "a_resnest":
        return "a_resnest"
    if isinstance(model, DenseNEst) or getattr(model, "head_norm_act", True) is False:
        return "densenest"
    return "other"


@torch.no_grad()
def _run(model: torch.nn.Module, rows: Tensor) -> Tensor:
    outputs: Tensor = model(rows)
    return outputs


@torch.no_grad()
def _features(model: torch.nn.Module, x: Tensor) -> list[list[Tensor]]:
    return [theory.features(model, rows) for rows in x.split(ROWS)]


def _model(
    model: torch.nn.Module, family: str, v: list[Any], width: int | None, data: Dataset, origin: dict[str, Any]
) -> dict[str, Any]:
    name = {"bn_resnest": "BN-ResNEst", "a_resnest": "A-ResNEst"}.get(family, type(model).__name__)
    if isinstance(model, CifarNet):
        name = f"{model.arch} {model.kind}"
    if isinstance(model, DenseNet):
        name = f"{model.arch} {'standard' if model.head_norm_act else 'densenest'}"
    return {
        "name": name,
        "family": family,
        "inputs": math.prod(data.x.shape[1:]),
        "outputs": data.outputs,
        "width": width,
        "blocks": len(v[0]) - 1,
        "features": [part.shape[1] for part in v[0]],
        "parameters": sum(p.numel() for p in model.parameters()),
        "origin": origin,
    }


def _data(data: Dataset) -> dict[str, Any]:
    return {
        "name": data.name,
        "rows": len(data.x),
        "rows_held_out": len(data.x_held_out),
        "shape": list(data.x.shape[1:]),
        "outputs": data.outputs,
        "classes": data.is_classification,
        "reading": None if data.reading is None else asdict(data.reading),
    }


def _assumptions(found: theory.Assumptions, loss: str) -> dict[str, Any]:
    says = f"the {loss.replace('_', ' ')} loss is convex in the outputs"
    second = theory.Condition(True, math.nan, {}, says)
    every = {"1": found.first, "2": second, "3": found.third, "4": found.fourth}
    return {name: asdict(one) for name, one in every.items()}


def _risks(
    model: Any, x: Tensor, y: Tensor, loss: str, family: str, head: theory.Head, linear: theory.Head
) -> dict[str, Any]:
    own = theory.empirical_risk(model, x, y, loss=loss)
    risks: dict[str, Any] = {"model": own, "last_maps": None, "heads": head.infimum}
    risks |= {"gap": None, "relative_gap": None, "gap_why_not": words.no_gap(family)}
    if family == "resnest" and loss != "squared" and model.head.in_features < model.head.out_features:
        risks["gap_why_not"] = "Of other losses than squared the least risk is only known where assumption 3 holds."
    elif family == "resnest":
        found = theory.risk_gap(model, x, y, loss=loss)
        risks |= {"last_maps": found.risk, "heads": found.augmented_risk, "gap": found.gap}
        risks["relative_gap"] = found.gap / found.augmented_risk if found.augmented_risk else None
    return risks | {"linear": linear.infimum, "attained": head.attained and linear.attained}


def _bounds(family: str, risks: dict[str, Any]) -> list[dict[str, Any]]:
    paper = {"resnest": "Corollary 2", "densenest": "Proposition 3", "a_resnest": "Corollary 1"}.get(family)
    of = {"the model with the best W_L and W_(L+1)": "last_maps", "the model with the best heads": "heads"}
    if family == "resnest" and risks["last_maps"] is not None:
        of.pop("the model with the best heads")
    of["the model as it is"] = "model"
    linear = risks["linear"]
    return [
        {"paper": paper, "of": name, "risk": risks[key], "linear": linear, "holds": _at_most(risks[key], linear)}
        for name, key in of.items()
        if risks[key] is not None
    ]


def _at_most(risk: float, bound: float) -> bool:
    return risk <= bound + words.NOTHING * max(bound, words.NOTHING)


def _score(output: Tensor, data: Dataset) -> dict[str, Any]:
    score = score_of(output, data)
    if data.is_classification:
        return {"accuracy": score.value}
    return {"r2": score.value if math.isfinite(score.value) else None, "rmse": score.rmse}


def _blocks(profile: theory.BlockProfile) -> list[dict[str, Any]]:
    risks, every = profile.head_risk, profile.head_risk[0] - profile.head_risk[-1]
    drops = [None, *(before - after for before, after in pairwise(risks))]
    return [
        {
            "block": i,
            "features": profile.sizes[i],
            "head_risk": risks[i],
            "stream_risk": profile.stream_risk[i] if i < len(profile.stream_risk) else None,
            "drop": drop,
            "share": drop / every if drop is not None and every > words.NOTHING * risks[0] else None,
            "unpredictability": profile.unpredictability[i],
        }
        for i, drop in enumerate(drops)
    ]


def _critical_point(resnest: ResNEst, x: Tensor, y: Tensor) -> dict[str, Any]:
    weights = linear_maps(resnest)[-1].numel() + resnest.head.weight.numel()
    found = theory.critical_point(resnest, x, y, hessian=weights <= HESSIAN)
    about = {name: value for name, value in vars(found).items() if name != "direction"}
    return about | {"outputs": resnest.head.out_features, "weights": weights}


def _plain(value: Any) -> Any:
    """Without NaN, Inf and tuples."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
