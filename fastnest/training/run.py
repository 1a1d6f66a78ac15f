"""`fastnest train` on images: from its options to a trained model."""

import argparse
from pathlib import Path

import torch

from .. import models
from ..models.cifar import ARCHS as RESIDUAL
from ..models.cifar import KINDS as RESIDUAL_KINDS
from ..models.densenest import ARCHS as DENSE
from . import images
from .fit import Epoch, Recipe, Training
from .processes import Processes, processes

ARCHS = (*RESIDUAL, *DENSE)
DENSE_KINDS = ("densenest", "standard")
KINDS = (*RESIDUAL_KINDS, "densenest")
AMP = ("bfloat16",)
RECIPE = Recipe()


def build(arch: str, kind: str | None, classes: int, seed: int = 0) -> torch.nn.Module:
    """A model by its names; without a kind the paper's own, a ResNEst or a DenseNEst."""
    torch.manual_seed(seed)
    if arch in DENSE:
        if kind not in (None, *DENSE_KINDS):
            raise ValueError(f"--kind of {arch} must be one of {', '.join(DENSE_KINDS)}, got {kind}")
        return models.densenest(arch, classes, head_norm_act=kind == "standard")
    if kind == "densenest":
        raise ValueError(f"--kind of {arch} must be one of {', '.join(RESIDUAL_KINDS)}, got {kind}")
    return models.cifar(arch, kind or "resnest", classes)


def _images(source: str | None, root: Path, synthetic: int | None, seed: int) -> images.Images:
    if synthetic is None:
        return images.load(source, root)
    if source not in (None, *images.FORMATS):
        raise ValueError(f"--synthetic takes its classes from --data {' or '.join(images.FORMATS)}, got {source}")
    return images.synthetic(synthetic, images.FORMATS[source or "cifar10"].classes, seed)


def run(source: str | None, arguments: argparse.Namespace) -> None:
    """Trains as the options say; with several processes the first one prints and writes."""
    with processes() as several:
        _run(source, arguments, several)


def _run(source: str | None, arguments: argparse.Namespace, several: Processes) -> None:
    path = arguments.checkpoint
    if path is None and (arguments.resume or arguments.checkpoint_every):
        raise ValueError("--resume and --checkpoint-every need --checkpoint FILE")
    if path and path.exists() and not arguments.resume:
        raise ValueError(f"{path} is there already: --resume goes on from it, another --checkpoint begins anew")
    options = {name: getattr(arguments, name) for name in ("epochs", "batch", "rate", "seed", "amp")}
    recipe = Recipe(**{name: value for name, value in options.items() if value is not None})
    dataset = _images(source, arguments.root or Path("data"), arguments.synthetic, recipe.seed)
    arch = arguments.arch or "wrn_16_8"
    model = build(arch, arguments.kind, dataset.classes, recipe.seed)
    kind = arguments.kind or ("densenest" if arch in DENSE else "resnest")
    settings = {"arch": arch, "kind": kind}
    compile = bool(arguments.compile)
    training = Training(model, dataset, recipe, processes=several, settings=settings, compile=compile)

    def say(line: str | Epoch) -> None:
        if several.first:
            print(line, flush=True)

    say(dataset)
    size = sum(p.numel() for p in model.parameters())
    work = f"{recipe.epochs} epochs in batches of {recipe.batch}, {several.number} process{'es'[: 2 * (several.number > 1)]}"
    say(f"{arch} {kind}, {size} parameters; {work}")
    if path and path.exists():
        training.restore(path)
        say(f"goes on from {path}: epoch {training.epoch + 1}, batch {training.step + 1}")
    history = training.fit(path=path, every=arguments.checkpoint_every or 0, report=say)
    say(
        f"{arch} {kind} on {dataset.name}, test accuracy {history[-1].accuracy_held_out:.2%}; {_seconds(history):.1f} s"
    )
    if arguments.save and several.first:
        torch.save(model.state_dict(), arguments.save)
        say(f"weights: {arguments.save}; images enter as (x - {_listed(dataset.mean)}) / {_listed(dataset.deviation)}")


def _seconds(history: list[Epoch]) -> float:
    return sum(epoch.seconds for epoch in history)


def _listed(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.2f}" for value in values) + "]"
