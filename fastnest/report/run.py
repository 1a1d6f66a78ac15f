"""`fastnest report`: from its options to the two files."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import theory
from .._optional import optional
from ..demo import data as datasets
from ..demo import training
from ..theory.loss import NAMED, targets
from ..training.memory import check_memory
from . import page, saved, words
from .findings import gather


@dataclass(frozen=True)
class Options:
    """As `fastnest report --help` says."""

    data: str
    saved: Path | None = None
    target: str | None = None
    classes: bool | None = None
    regression: bool | None = None
    no_header: bool | None = None
    missing: str | None = None
    loss: str = "squared"
    activation: str = "relu"
    post_activation: bool = False
    kind: str | None = None
    out: Path = Path("out")
    model: str = training.DEFAULTS["model"]
    width: int = training.DEFAULTS["width"]
    blocks: int = training.DEFAULTS["blocks"]
    epochs: int = training.DEFAULTS["epochs"]
    rate: float = training.DEFAULTS["rate"]
    seed: int = training.DEFAULTS["seed"]


def run(options: Options) -> tuple[Path, Path]:
    """Trains or loads the model, writes the page and the JSON, prints a summary; returns where they are."""
    for package in ("matplotlib", "scipy"):  # before the training, not after it
        optional(package, "report")
    data = datasets.load(options.data, **datasets.decisions(options))
    if options.loss == "cross_entropy" and not data.is_classification:
        raise ValueError(f"--loss cross_entropy needs classes, and {data.name} has values to predict")
    print(data)
    if options.saved:
        pre_activation = not options.post_activation
        model = saved.load(
            options.saved, activation=options.activation, pre_activation=pre_activation, kind=options.kind
        )
        _check_sizes(options.saved, model, data)
        _check_memory(model, data)
        name, origin = options.saved.stem, {"file": options.saved.name}
    else:
        model, origin = _trained(data, options)
        name = options.model
    found = gather(model, data, loss=options.loss, origin=origin)
    stem = "-".join(_plain(part) for part in ("report", data.name, name))
    html, numbers = options.out / f"{stem}.html", options.out / f"{stem}.json"
    shown = page.render(found, numbers.name)
    options.out.mkdir(parents=True, exist_ok=True)
    numbers.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    html.write_text(shown, encoding="utf-8")
    verdict = found["verdict"]
    print(f"{words.model(found['model'])}\n\n{verdict['headline']}")
    print(*(f"  {sentence}" for sentence in verdict["sentences"]), f"\npage: {html}\nnumbers: {numbers}", sep="\n")
    return html, numbers


def _plain(name: str) -> str:
    """As a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:80] or "unnamed"


def _trained(data: datasets.Dataset, options: Options) -> tuple[torch.nn.Module, dict[str, Any]]:
    """With the loss that is reported."""
    chosen = NAMED[options.loss]

    def loss(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
        outputs = model(x)
        return chosen.mean(outputs, targets("report", y, chosen, outputs.shape[1]))

    model = training.build(options.model, data, options.width, options.blocks, options.seed)
    _check_memory(model, data)
    settings: dict[str, Any] = {"epochs": options.epochs, "rate": options.rate, "seed": options.seed}
    fit = training.fit(model, data, loss=loss, **settings)
    print(f"trained for {options.epochs} epochs in {fit.seconds:.1f} s")
    return model, {"trained": options.model, **settings}


@torch.no_grad()
def _check_memory(model: torch.nn.Module, data: datasets.Dataset) -> None:
    """The report's triangular factors: of so many columns, in float64, with the rows that wait for the next one."""
    model.eval()
    columns = sum(part.shape[1] for part in theory.features(model, data.x[:2])) + data.outputs
    rows = min(len(data.x), 5 * columns)
    check_memory(f"a report on {columns} features of {len(data.x)} rows", 4 * 8 * rows * columns)


@torch.no_grad()
def _check_sizes(path: Path, model: torch.nn.Module, data: datasets.Dataset) -> None:
    try:
        outputs = model(data.x[:2]).shape[1]
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} does not fit the rows of {data.name}, of size {data.shape}: {reason}") from error
    if outputs != data.outputs:
        what = "classes" if data.is_classification else "values"
        raise ValueError(f"{path} must have as many outputs as {data.name} has {what}, {data.outputs}, got {outputs}")
