"""Training with the recipe of arXiv 2111.05496, interrupted and resumed without a trace."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from .._optional import optional
from . import checkpoint
from .images import Images, augmented
from .processes import Processes

# After so many tenths of all epochs (60, 120 and 160 of 200) the rate is multiplied by FACTOR.
FALLS, FACTOR = (3, 6, 8), 0.2
EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Recipe:
    """The paper's: SGD with Nesterov's momentum on shuffled, augmented batches, at a rate that falls in steps."""

    epochs: int = 200
    batch: int = 128  # over all processes
    rate: float = 0.1
    momentum: float = 0.9
    decay: float = 5e-4
    seed: int = 0
    amp: str | None = None  # "bfloat16": autocast

    def rate_at(self, epoch: int) -> float:
        """The rate in an epoch, of which the first is 0."""
        return self.rate * FACTOR ** sum(10 * epoch >= tenths * self.epochs for tenths in FALLS)


@dataclass(frozen=True)
class Epoch:
    """One epoch's number (the first is 1), rate, mean loss and accuracy in training, accuracy on the test images."""

    number: int
    rate: float
    loss: float
    accuracy: float
    accuracy_held_out: float
    seconds: float

    def __str__(self) -> str:
        facts = f"rate {self.rate:<8.3g} loss {self.loss:.4f}  accuracy {self.accuracy:.2%}"
        return f"epoch {self.number:>3}  {facts}  test accuracy {self.accuracy_held_out:.2%}  {self.seconds:.1f} s"


class Training:
    """A model on its way: what a checkpoint holds, and the steps from one to the next.

    Everything random in a step (its rows, their augmentation, dropout) follows from the seed and the numbers of epoch,
    step and process alone, so that no generator has a state to save. Rows and their augmentation are drawn for all
    processes together: they do not depend on how many there are.

    Args:
        model: any module for images [n, 3, 32, 32] to [n, classes], on the CPU.
        images: what it trains on.
        recipe: how.
        processes: who takes part.
        settings: what else a checkpoint has to agree with (say, the architecture's name).
        compile: whether to compile the model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        images: Images,
        recipe: Recipe,
        *,
        processes: Processes | None = None,
        settings: dict[str, Any] | None = None,
        compile: bool = False,
    ):
        self.model, self.images, self.recipe = model, images, recipe
        self.processes = processes or Processes()
        least = 2 * self.processes.number
        if recipe.batch < least or len(images.x) < least:
            raise ValueError(
                f"train: batch and images must be at least 2 per process, hence {least}, "
                f"got batch {recipe.batch}, {len(images.x)} images"
            )
        self.settings = {**asdict(recipe), **(settings or {}), "images": str(images), "mean": images.mean}
        self.forward: torch.nn.Module = cast(torch.nn.Module, torch.compile(model)) if compile else model
        self.parallel = self.processes.parallel(self.forward)
        self.optimizer = torch.optim.SGD(
            model.parameters(), recipe.rate, momentum=recipe.momentum, weight_decay=recipe.decay, nesterov=True
        )
        self.epoch = self.step = 0
        self.totals = torch.zeros(3, dtype=torch.float64)  # loss, right and number of this epoch's images so far
        self.seconds = 0.0
        self.history: list[Epoch] = []

    def save(self, path: Path) -> None:
        """Writes the state after the latest step, if the loss is finite; all processes have to call it."""
        totals = self._sums()
        self.processes.agree(self.model)
        if self.processes.first:
            state = {
                "settings": self.settings,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "totals": totals,
                "seconds": self.seconds,
                "history": [asdict(epoch) for epoch in self.history],
            }
            checkpoint.save(path, state)

    def restore(self, path: Path) -> None:
        """Takes up the state that `save` wrote. Raises ValueError where it is from another training."""
        state = checkpoint.load(path, self.settings)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        # The sums of all processes, which are added up again.
        self.totals = state["totals"] if self.processes.first else torch.zeros_like(state["totals"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]

    def batches(self) -> list[Tensor]:
        """Rows of the training images in each step of this epoch; a last step of less than 2 a process is left out."""
        order = torch.randperm(len(self.images.x), generator=self._generator(0))
        return [rows for rows in order.split(self.recipe.batch) if len(rows) >= 2 * self.processes.number]

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """This process's share of the augmented images in a step, normalised, and their classes."""
        x = augmented(self.images.x[rows], self._generator(1 + self.step))
        return self._input(self.processes.share(x)), self.processes.share(self.images.y[rows])

    def train_step(self, rows: Tensor) -> None:
        """One step down the gradient of the mean loss over rows, of all processes."""
        x, y = self.batch(rows)
        torch.manual_seed(self._seed(1 + self.step, 1 + self.processes.rank))
        self.optimizer.zero_grad()
        with self._precision():
            output = self.parallel(x)
        loss = F.cross_entropy(output.to(torch.promote_types(output.dtype, torch.float32)), y, reduction="sum")
        # Gradients are averaged over processes, whose shares may differ by one.
        (loss * (self.processes.number / len(rows))).backward()
        self.optimizer.step()
        right = (output.detach().argmax(1) == y).sum()
        self.totals += torch.stack([loss.detach().double(), right.double(), torch.tensor(float(len(y))).double()])
        self.step += 1

    def fit(
        self,
        *,
        path: Path | None = None,
        every: int = 0,
        report: Callable[[Epoch], None] | None = None,
    ) -> list[Epoch]:
        """Trains to the last epoch, from the beginning or from where `restore` left it.

        Args:
            path: a checkpoint to write after every epoch.
            every: and after so many steps; 0 for epochs only.
            report: called by the first process with every epoch.

        Returns every epoch, those before `restore` too. Raises ValueError if the loss is no longer finite; the
        checkpoint is then still that of the epoch before.
        """
        tqdm = optional("tqdm", "demo").tqdm
        while self.epoch < self.recipe.epochs:
            rate = self.recipe.rate_at(self.epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            batches = self.batches()
            label = f"epoch {self.epoch + 1}/{self.recipe.epochs}"
            hidden = None if self.processes.first else True  # None: where the output is no terminal
            self.model.train()
            with tqdm(
                total=len(batches), initial=self.step, desc=label, unit="batch", leave=False, disable=hidden
            ) as progress:
                while self.step < len(batches):
                    start = time.perf_counter()
                    self.train_step(batches[self.step])
                    self.seconds += time.perf_counter() - start
                    progress.update()
                    if path and every and self.step % every == 0 and self.step < len(batches):
                        self.save(path)
            loss, right, number = self._sums().tolist()
            self.history.append(
                Epoch(self.epoch + 1, rate, loss / number, right / number, self.evaluate(), self.seconds)
            )
            self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
            self.totals = torch.zeros_like(self.totals)
            if report and self.processes.first:
                report(self.history[-1])
            if path:
                self.save(path)
        return self.history

    @torch.no_grad()
    def evaluate(self) -> float:
        """Share of the test images that are classified rightly."""
        self.processes.agree(self.model)
        self.model.eval()
        x, y = self.processes.share(self.images.x_held_out), self.processes.share(self.images.y_held_out)
        right = torch.zeros((), dtype=torch.int64)
        for some, classes in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
            if len(classes):
                with self._precision():
                    right += (self.forward(self._input(some)).argmax(1) == classes).sum()
        return float(self.processes.sum(right)) / len(self.images.y_held_out)

    def _sums(self) -> Tensor:
        totals = self.processes.sum(self.totals.clone())
        if not math.isfinite(totals[0]):
            loss = float(totals[0])
            raise ValueError(f"the loss must stay finite, got {loss} in epoch {self.epoch + 1}: try a lower --rate")
        return totals

    def _input(self, x: Tensor) -> Tensor:
        return self.images.normalised(x, next(self.model.parameters()).dtype)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", getattr(torch, self.recipe.amp)) if self.recipe.amp else nullcontext()

    def _seed(self, *purpose: int) -> int:
        """A number for one purpose in this epoch, far from those for others."""
        seed = self.recipe.seed
        for part in (self.epoch, *purpose):
            seed = (seed * 6364136223846793005 + part + 1442695040888963407) % 2**63
        return seed

    def _generator(self, *purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(*purpose))
