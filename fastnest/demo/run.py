"""`fastnest demo`: three networks, two data sets, fused against reference, speed and memory against plain torch."""

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import backend, backends
from .._optional import optional
from ..benchmarks import bench_models, contest, gate, pool
from ..benchmarks.problem import Case, Problem
from ..testing import ULPS
from . import data, plot, training

SUBJECTS = {"resnest": "ResNEst", "aresnest": "AResNEst", "densenest": "DenseNEst"}
# width, blocks, epochs, rate and weight decay: diabetes has 332 training rows, most of whose variance is noise.
SETTINGS = {
    "digits": {"width": 256, "blocks": 16, "epochs": 20, "rate": 2e-3, "decay": 1e-2},
    "diabetes": {"width": 64, "blocks": 8, "epochs": 20, "rate": 1e-3, "decay": 1.0},
}

NOTE = """\
Medians of interleaved rounds. Memory: what torch's allocator holds at the peak of a training step beyond weights,
gradients and input. eager: plain torch; compile: torch.compile with its defaults; all on the same tensors."""


@dataclass
class Trained:
    """One model on one data set, by every backend that runs here."""

    kind: str
    data: data.Dataset
    model: torch.nn.Module
    fits: dict[str, training.Fit]
    scores: dict[str, training.Score]
    error: float  # of outputs and gradients of the fused step against float64, in units of the largest value
    plain: float  # the same of the reference in float32

    @property
    def bound(self) -> float:
        """Twice the reference's own error, and a few ulp."""
        return 2 * self.plain + ULPS * torch.finfo(torch.float32).eps


def _step(name: str, model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs on the rows x, and every gradient for random gradients of the outputs.

    (Those of a loss that is nearly 0 are differences of nearly equal numbers, whose error says nothing.)
    """
    with backend(name):
        y = model(x)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype)
        return [y.detach(), *torch.autograd.grad(y, list(model.parameters()), dy)]


def compare(model: torch.nn.Module, dataset: data.Dataset, fused: str) -> tuple[float, float]:
    """Errors of the fused and of the plain step at the model's weights, on training rows away from relu's kinks.

    The truth is the reference in float64.
    """
    wide = copy.deepcopy(model).double()
    with backend("reference"):
        rows = (~gate.near_kinks(wide, dataset.x)).nonzero()[:256, 0]
    exact = _step("reference", wide, dataset.x[rows].double())

    def error(name: str) -> float:
        pairs = zip(_step(name, model, dataset.x[rows]), exact, strict=True)
        return max(float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)

    return error(fused), error("reference")


def train(kind: str, dataset: data.Dataset, epochs: int | None) -> Trained:
    """Trains from one seed with every backend and compares fused with reference after every epoch of the fused one."""
    settings: dict[str, Any] = {**SETTINGS[dataset.name], **({"epochs": epochs} if epochs else {})}
    width, blocks = settings.pop("width"), settings.pop("blocks")
    names = ["cpp", "reference"] if backends()["cpp"] == "available" else ["reference"]
    fits, scores, errors = {}, {}, []
    for name in reversed(names):
        model = training.build(kind, dataset, width, blocks, seed=0)

        def every_epoch(_: int, model: torch.nn.Module = model, name: str = name) -> None:
            if name == names[0]:
                errors.append(compare(model, dataset, name))

        with backend(name):
            label = f"{SUBJECTS[kind]} on {dataset.name}, {name}"
            fits[name] = training.fit(model, dataset, label=label, every_epoch=every_epoch, **settings)
            scores[name] = training.score(model, dataset)
    error, plain = map(max, zip(*errors, strict=True))
    return Trained(kind, dataset, model, fits, scores, error, plain)


def report(trained: Trained) -> bool:
    """Prints one training; whether fused and reference agree."""
    print(f"\n{SUBJECTS[trained.kind]} on {trained.data.name}")
    for name, fit in reversed(trained.fits.items()):
        facts = f"held out: {trained.scores[name]}   last loss {fit.losses[-1]:.6f}   {fit.seconds:.1f} s"
        print(f"  {name:<10} {facts}")
    if "cpp" not in trained.fits:
        return True
    fused, plain = (torch.tensor(trained.fits[name].losses, dtype=torch.float64) for name in ("cpp", "reference"))
    equal = trained.error <= trained.bound
    print(f"  outputs and gradients after every epoch: off by at most {trained.error:.1e} of the largest value,")
    print(f"  bound {trained.bound:.1e} from float64: {'equal to rounding' if equal else 'NOT EQUAL'}")
    print(f"  losses of the two whole trainings from one seed: {float((fused - plain).abs().max()):.1e} apart at most")
    return equal


def speed(trained: Trained) -> list[dict[str, Any]]:
    """Forward and training step on all training rows: fastnest, plain torch, torch.compile."""
    subject, x = SUBJECTS[trained.kind], trained.data.x
    rows = []
    for mode in ("forward", "train"):
        case = Case(subject, mode, "float32", {"n": len(x)}, ("eager", "compile"))
        problem = Problem(bench_models.forms(subject, trained.model, x.clone()))
        row = contest.measure(gate.step_off_kinks(problem), case, budget=1.0)
        rows.append({**row, "median_us": pool.medians(row["seconds"])})
    return rows


def table(rows: list[dict[str, Any]]) -> None:
    """Prints medians, ratios and peak memory."""
    names = ("fastnest", "eager", "compile")
    threads = torch.get_num_threads()
    print(f"\nspeed and peak memory on the {rows[0]['sizes']['n']} training rows of digits, {threads} threads")
    print(f"{'':<20}{'fastnest':>10}{'eager':>18}{'compile':>18}   memory{' / '.join(names):>30}")
    for row in rows:
        median, memory = row["median_us"], row["memory"]
        times = "".join(f"{median[n] / 1e3:>8.2f} ms {median[n] / median['fastnest']:>5.1f}x" for n in names[1:])
        held = " / ".join(f"{memory[name] / 2**20:.1f}" for name in names) + " MiB" if memory else ""
        print(f"{row['subject'] + ' ' + row['mode']:<20}{median['fastnest'] / 1e3:>7.2f} ms{times}{held:>39}")
    print(NOTE)


def run(out: Path, *, epochs: int | None = None) -> int:
    """The whole demo; 0 if every fused training agrees with its reference."""
    start = time.perf_counter()
    optional("matplotlib", "plot")  # before the trainings, not after them
    every = []
    for name in SETTINGS:
        dataset = data.load(name)
        print(f"\n{dataset}")
        every += [train(kind, dataset, epochs) for kind in SUBJECTS]
        agree = [report(trained) for trained in every[-len(SUBJECTS) :]]
        if not all(agree):
            return 1
    rows = []
    if backends()["cpp"] == "available":
        print("\ntiming (torch.compile takes its time) ...", flush=True)
        try:
            rows = [row for trained in every[: len(SUBJECTS)] for row in speed(trained)]
        except AssertionError as error:  # not equal to the reference: no speed to report
            print(f"FAILED {error}")
            return 1
        table(rows)
    else:
        print(f"\nno speed to show: cpp is {backends()['cpp']}")
    print(f"\nplot: {plot.draw(every, rows, out / 'demo.png')}\ndone in {time.perf_counter() - start:.0f} s")
    return 0
