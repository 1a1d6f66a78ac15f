"""What the examples share: the digits as a regression, trained networks, and how a picture is drawn."""

import argparse
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from fastnest._optional import optional
from fastnest.demo import data, training

HERE = Path(__file__).parent
SEED = 0


@contextmanager
def one_thread():
    """Networks this small gain nothing from a second thread, and rounding that depends on none keeps numbers equal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def digits() -> data.Dataset:
    """scikit-learn's digits, 8 x 8 pixels, with targets of nine zeros and a one: y = 0 has a squared risk of 1."""
    digits = data.load("digits")
    y, apart = (F.one_hot(y, digits.outputs).float() for y in (digits.y, digits.y_held_out))
    return replace(digits, y=y, y_held_out=apart, scale=torch.ones(digits.outputs))


def trained(
    make: Callable[..., torch.nn.Module],
    digits: data.Dataset,
    epochs: int,
    every_epoch: Callable[[torch.nn.Module, int], None] | None = None,
    **sizes,
) -> torch.nn.Module:
    """make(64, 10, **sizes) after so many epochs of AdamW on the squared loss; `every_epoch` gets it, and the epoch."""
    torch.manual_seed(SEED)
    model = make(digits.x.shape[1], digits.outputs, **sizes)
    listen = every_epoch and (lambda epoch: every_epoch(model, epoch))
    training.fit(model, digits, epochs=epochs, rate=2e-3, label=make.__name__, every_epoch=listen)
    return model


def options(doc: str, arguments: list[str] | None, **defaults: int) -> argparse.Namespace:
    """--out, and an option for every default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "pictures", help="folder of the picture (%(default)s)")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="(%(default)s)")
    return parser.parse_args(arguments)


def axes(columns: int, **options):
    """A figure as wide as a README, and its axes side by side."""
    optional("matplotlib", "plot").use("Agg")
    pyplot = optional("matplotlib.pyplot", "plot")
    figure, axes = pyplot.subplots(1, columns, figsize=(8.4, 3.5), constrained_layout=True, **options)
    for axis in axes:
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure, out: Path, name: str) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    figure.savefig(path, dpi=110)
    optional("matplotlib.pyplot", "plot").close(figure)
    print(f"\npicture: {path}")
    return path
