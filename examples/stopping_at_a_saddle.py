"""Where a ResNEst's last two linear maps can stop, and how to go on (Theorems 1 and 2 of arXiv 2111.05496).

The risk over W_L and W_{L+1} is not convex. A critical point with W_{L+1} of full row rank is a global minimiser; one
without is a saddle, unless it is that too. Here such a saddle is built for a wide ResNEst: W_{L+1} has rank 4 of the 10
that its outputs need. `critical_point` tells it from a minimum and finds the direction of least curvature. L-BFGS
from the saddle stays there, from one step along that direction it goes down, and `optimal_prediction` has the global
minimiser at once.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastnest import models, theory
from gallery import axes, digits, one_thread, options, save, trained

RANK = 4
SIZES = {"width": 96, "bottleneck": 16, "blocks": 2}  # wide: 64 + 16 + 16

Weights = tuple[Tensor, Tensor]  # W_L, W_{L+1}


class Problem(NamedTuple):
    """Rows of x_{L-1}, v_L and y."""

    x: Tensor
    v: Tensor
    y: Tensor

    def risk(self, W_L: Tensor, W_Lp1: Tensor) -> Tensor:
        return (((self.x + self.v @ W_L.T) @ W_Lp1.T) - self.y).square().sum(1).mean()

    def saddle(self) -> Weights:
        """A critical point with W_{L+1} of rank RANK.

        With P the projection on the span of [x_{L-1}, v_L], the fits of y in the directions u of eigenvectors of
        y^T P y are orthogonal. W_{L+1} fits the first; in what W_{L+1} ignores of the stream, W_L hides the others.
        """
        both = torch.cat([self.x, self.v], 1)
        fit = torch.linalg.lstsq(both, self.y, driver="gelsd").solution
        u = torch.linalg.svd(both @ fit).Vh.T
        on_x, on_v = (u[:, :RANK].T @ fit.T).split([self.x.shape[1], self.v.shape[1]], 1)
        back, others = torch.linalg.pinv(on_x), self.y @ u[:, RANK:]
        ignored = torch.eye(len(back)).to(back) - back @ on_x
        hidden = ignored @ self.x.T @ others @ torch.linalg.pinv(self.v.T @ others)
        return back @ on_v - hidden, u[:, :RANK] @ on_x

    def descend(self, start: Weights, steps: int) -> list[float]:
        """The risks along L-BFGS."""
        weights, risks = [W.clone().requires_grad_() for W in start], []
        optimizer = torch.optim.LBFGS(weights, max_iter=1, max_eval=25, history_size=50, line_search_fn="strong_wolfe")

        def risk() -> Tensor:
            optimizer.zero_grad()
            value = self.risk(*weights)
            value.backward()
            return value

        for _ in range(steps):
            risks.append(optimizer.step(risk).item())
        return risks


class Found(NamedTuple):
    """Both critical points, the risk along the saddle's direction, and the two descents."""

    saddle: theory.CriticalPoint
    optimum: theory.CriticalPoint
    steps: list[float]
    along: list[float]
    stays: list[float]
    leaves: list[float]


def loaded(model: models.ResNEst, weights: Weights) -> models.ResNEst:
    with torch.no_grad():
        model.chain.up[-1].copy_(weights[0])
        model.head.weight.copy_(weights[1])
    return model


def measure(epochs: int, steps: int) -> Found:
    data = digits()
    x, y = data.x.double(), data.y.double()
    model = trained(models.ResNEst, data, epochs, **SIZES).double()
    v = [part.detach() for part in theory.features(model, x)]
    ups = model.chain.up.detach()[:-1]
    stream = v[0] @ model.expand.weight.detach().T + sum(v_i @ W.T for v_i, W in zip(v[1:-1], ups, strict=True))
    problem = Problem(stream, v[-1], y)
    W = problem.saddle()
    saddle = theory.critical_point(loaded(model, W), x, y)

    def moved(step: float) -> Weights:
        return tuple(w + step * d for w, d in zip(W, saddle.direction, strict=True))

    places = [abs(saddle.step) * i / 20 for i in range(-30, 31)]
    along = [problem.risk(*moved(step)).item() for step in places]
    stays, leaves = (problem.descend(start, steps) for start in (W, moved(saddle.step)))
    best = theory.optimal_prediction(model, x, y)
    optimum = theory.critical_point(loaded(model, best[:2]), x, y)
    return Found(saddle, optimum, places, along, stays, leaves)


def draw(found: Found):
    figure, (left, right) = axes(2)
    left.plot(found.steps, found.along, "C0")
    left.plot(0, found.saddle.risk, "C3o", label="saddle")
    left.plot(found.saddle.step, found.saddle.escaped_risk, "C1o", label="the step that critical_point found")
    left.set(xlabel="step along the direction of least curvature", ylabel="squared risk (1: always 0)")
    right.plot(found.stays, "C3", label="L-BFGS from the saddle")
    right.plot(found.leaves, "C1", label="L-BFGS from one step along its direction")
    right.axhline(found.optimum.risk, color="0.4", linestyle=":", label="global minimiser")
    right.set(xlabel="step of L-BFGS", ylabel="squared risk (1: always 0)", ylim=(0, 1.2 * found.saddle.risk))
    left.legend(fontsize=8, frameon=False, loc="upper center")
    right.legend(fontsize=8, frameon=False, loc="lower left")
    return figure


@one_thread()
def main(arguments: list[str] | None = None) -> Found:
    chosen = options(__doc__, arguments, epochs=20, steps=700)
    found = measure(chosen.epochs, chosen.steps)
    print(f"{'':<18}{'risk':>8} {'gradient':>9} {'rank of W_L+1':>13} {'least curvature':>15}  verdict")
    for name, one in (("saddle", found.saddle), ("optimal_prediction", found.optimum)):
        numbers = f"{one.risk:8.4f} {one.gradient_norm:9.1e} {one.rank:13} {one.least_eigenvalue:15.1e}"
        print(f"{name:<18}{numbers}  {one.verdict}")
    print(f"a step along the saddle's direction: {found.saddle.escaped_risk:.4f}")
    print(f"{chosen.steps} steps of L-BFGS from it: {found.stays[-1]:.4f}, after that step: {found.leaves[-1]:.4f}")
    save(draw(found), chosen.out, "stopping_at_a_saddle")
    return found


if __name__ == "__main__":
    main()
