"""The coupling problem of a narrow ResNEst, gone in a wide one (equation 8 and Theorem 1 of arXiv 2111.05496).

The output of a ResNEst is linear in all features, but they share one stream: where that is narrow, W_{L+1} cannot weigh
them one by one. An A-ResNEst with the same features has a linear map for each. The gap between the least risks of the
two, over W_L and W_{L+1} and over all H_i, is what the coupling costs. It is 0 once [W_0, ..., W_{L-1}] has full column
rank (assumption 4), which takes a width of at least N_in + K_1 + ... + K_{L-1}.
"""

from typing import NamedTuple

from fastnest import models, theory
from gallery import axes, digits, one_thread, options, save, trained

BLOCKS, BOTTLENECK = 8, 16
ENOUGH = 64 + (BLOCKS - 1) * BOTTLENECK  # columns of [W_0, ..., W_{L-1}]
WIDTHS = (12, 16, 24, 32, 64, 96, 128, 168, ENOUGH, 192, 256)


class Row(NamedTuple):
    """A trained ResNEst: its risk as it is, and what its features allow."""

    width: int
    risk: float
    gap: theory.RiskGap
    assumptions: theory.Assumptions

    @property
    def relative(self) -> float:
        return self.gap.gap / self.gap.augmented_risk


def measure(width: int, data, epochs: int) -> Row:
    model = trained(models.ResNEst, data, epochs, width=width, bottleneck=BOTTLENECK, blocks=BLOCKS)
    risk = theory.empirical_risk(model, data.x, data.y)
    return Row(width, risk, theory.risk_gap(model, data.x, data.y), theory.check_assumptions(model, data.x, data.y))


def draw(rows: list[Row]):
    figure, (left, right) = axes(2)
    widths = [row.width for row in rows]
    of_resnest, of_augmented = ([getattr(row.gap, name) for row in rows] for name in ("risk", "augmented_risk"))
    left.plot(widths, [row.risk for row in rows], "0.6", marker=".", linewidth=1, label="ResNEst as trained")
    left.plot(widths, of_resnest, "C0.-", label="ResNEst, best $W_L$ and $W_{L+1}$")
    left.plot(widths, of_augmented, "C1.-", label="A-ResNEst, best $H_0, ..., H_L$")
    left.fill_between(widths, of_augmented, of_resnest, color="C0", alpha=0.15, label="gap")
    left.set(xlabel="width M", ylabel="squared risk (1: always 0)", ylim=(0, None))
    # Rounding of either sign has no place on a logarithmic axis: it is drawn at the resolution of float64.
    right.plot(widths, [max(row.relative, 2.0**-52) for row in rows], "C0.-")
    right.set(xlabel="width M", ylabel="gap / risk of the A-ResNEst", yscale="log", ylim=(2.0**-54, 10))
    right.axhline(2.0**-52, color="0.4", linewidth=1, linestyle=":")
    right.annotate("float64's rounding", (0, 2.0**-52), (3, 4), textcoords="offset points", fontsize=8, color="0.4")
    for axis in (left, right):
        axis.axvline(ENOUGH, color="C3", linewidth=1, linestyle="--")
        axis.set(xlim=(0, None), xticks=range(0, 257, 64))
    right.annotate(
        f"$N_{{in}} + K_1 + ... + K_{{L-1}}$ = {ENOUGH}",
        (ENOUGH, 1e-8),
        (-6, 0),
        textcoords="offset points",
        ha="right",
        color="C3",
    )
    left.legend(fontsize=8, framealpha=1, edgecolor="none", borderpad=0)
    return figure


@one_thread()
def main(arguments: list[str] | None = None) -> list[Row]:
    chosen = options(__doc__, arguments, epochs=60)
    data = digits()
    print(f"{'width':>5} {'as trained':>10} {'ResNEst':>8} {'A-ResNEst':>9} {'gap':>9} {'rank':>4}  assumption 4  by")
    rows = []
    for width in WIDTHS:
        row = measure(width, data, chosen.epochs)
        fourth = row.assumptions.fourth
        says = f"{fourth.numbers['rank']:4}  {'holds' if fourth else 'does not':<12}  {row.gap.how}"
        print(f"{width:5} {row.risk:10.4f} {row.gap.risk:8.4f} {row.gap.augmented_risk:9.4f} {row.gap.gap:9.1e} {says}")
        rows.append(row)
    save(draw(rows), chosen.out, "coupling")
    return rows


if __name__ == "__main__":
    main()
