"""`fastnest train` on images: from its options to a trained model."""

import argparse
from pathlib import Path

import torch

from ..models import cifar, densenest
from ..models.cifar import ARCHS as RESIDUAL
from ..models.cifar import KINDS as RESIDUAL_KINDS
from ..models.densenet import ARCHS as DENSE
from . import images
from .fit import Epoch, Recipe, Training
from .processes import Processes, processes

# The kinds of every architecture; the paper's own, which is the default, first.
KINDS = {
    **dict.fromkeys(RESIDUAL, ("resnest", *(kind for kind in RESIDUAL_KINDS if kind != "resnest"))),
    **dict.fromkeys(DENSE, ("densenest", "standard")),
}


def kind_of(arch: str, kind: str | None) -> str:
    """The kind, or the default one of this arch. Raises ValueError for names that do not go together."""
    if arch not in KINDS:
        raise ValueError(f"--arch must be one of {', '.join(KINDS)}, got {arch}")
    if kind is not None and kind not in KINDS[arch]:
        raise ValueError(f"--kind of {arch} must be one of {', '.join(KINDS[arch])}, got {kind}")
    return kind or KINDS[arch][0]


def build(arch: str, kind: str, classes: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    if arch in RESIDUAL:
        return cifar(arch, kind, classes)
    return densenest(arch, classes, head_norm_act=kind == "standard")


def _images(source: str | None, root: Path, synthetic: int | None, seed: int) -> images.Images:
    if synthetic is not None:
        if source not in (None, *images.FORMATS):
            raise ValueError(f"--synthetic takes its classes from --data {' or '.join(images.FORMATS)}, got {source}")
        return images.synthetic(synthetic, images.FORMATS[source or "cifar10"].classes, seed)
    if source is None:
        raise ValueError("--data must name images where --synthetic is not given, got neither")
    return images.load(source, root)


def run(source: str | None, arguments: argparse.Namespace) -> None:
    """Trains as the options say; with several processes the first one prints and writes."""
    with processes() as several:
        _run(source, arguments, several)


def _run(source: str | None, arguments: argparse.Namespace, several: Processes) -> None:
    arch = arguments.arch or "wrn_16_8"
    kind = kind_of(arch, arguments.kind)
    path = arguments.checkpoint
    if path is None and (arguments.resume or arguments.checkpoint_every):
        raise ValueError("--resume and --checkpoint-every need --checkpoint FILE")
    if path and path.exists() and not arguments.resume:
        raise ValueError(f"{path} is there already: --resume goes on from it, another --checkpoint begins anew")
    options = {name: getattr(arguments, name) for name in ("epochs", "batch", "rate", "seed", "amp")}
    recipe = Recipe(**{name: value for name, value in options.items() if value is not None})
    dataset = _images(source, arguments.root or Path("data"), arguments.synthetic, recipe.seed)
    model = build(arch, kind, dataset.classes, recipe.seed)
    training = Training(
        model,
        dataset,
        recipe,
        processes=several,
        settings={"arch": arch, "kind": kind},
        compile=bool(arguments.compile),
    )

    def say(line: object) -> None:
        if several.first:
            print(line, flush=True)

    say(dataset)
    size = sum(p.numel() for p in model.parameters())
    work = f"{recipe.epochs} epochs in batches of {recipe.batch}, processes: {several.number}"
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
