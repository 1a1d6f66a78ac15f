"""Adding blocks does not hurt (Corollary 1 of arXiv 2111.05496), on handwritten digits.

Two ResNEsts of 16 blocks learn to write the class of a digit as a vector. After each block i: the risk of the best head
on the features v_0, ..., v_i, and of the best linear predictor from the stream x_i. The first can never rise, in any
network: a head may leave new features out. The second is what a ResNEst cut off after block i can reach. In a wide one,
whose stream keeps all features apart (assumption 4), the two are the same, so that it never rises either. In a narrow
one it may rise, as new features are added on top of old ones; training decides whether it does.
"""

from fastnest import models, theory
from gallery import axes, digits, one_thread, options, save, trained

BLOCKS, BOTTLENECK = 16, 16
WIDE = 64 + BLOCKS * BOTTLENECK  # the input and every feature
NARROW = 16


def profiles(width: int, data, epochs: int) -> dict[int, theory.BlockProfile]:
    """Profiles early in the training and at its end, by epochs."""
    early = max(1, epochs // 10)
    found = {}

    def profile(model, epoch):
        if epoch + 1 in (early, epochs):
            found[epoch + 1] = theory.block_profile(model, data.x, data.y)

    trained(models.ResNEst, data, epochs, profile, width=width, bottleneck=BOTTLENECK, blocks=BLOCKS)
    return found


def rises(profile: theory.BlockProfile) -> list[int]:
    """The blocks after which the best predictor from the stream is worse than before, by more than rounding."""
    risk = profile.stream_risk
    return [i for i in range(1, len(risk)) if risk[i] > risk[i - 1] + 1e-9 * risk[0]]


def draw(networks: dict[int, dict[int, theory.BlockProfile]], linear: float):
    figure, panels = axes(2, sharey=True)
    for axis, (width, found) in zip(panels, networks.items(), strict=True):
        for color, (epochs, one) in zip(("C0", "C1"), found.items(), strict=True):
            axis.plot(one.head_risk, color, linewidth=6, alpha=0.3, label=f"from $v_0, ..., v_i$ after {epochs} epochs")
            axis.plot(one.stream_risk, f"{color}.-", linewidth=1, label=f"from $x_i$ after {epochs} epochs")
            up = rises(one)
            axis.plot(up, [one.stream_risk[i] for i in up], "r^", label="from $x_i$, worse than before" if up else None)
        axis.axhline(linear, color="0.4", linewidth=1, linestyle=":", label="best linear predictor from $x$")
        axis.set(title=f"ResNEst of width {width}", xlabel="block i", ylim=(0, 0.8), xticks=range(0, BLOCKS + 1, 4))
    panels[0].set_ylabel("least squared risk (1: always 0)")
    handles = dict(zip(*reversed(panels[1].get_legend_handles_labels()), strict=True))
    panels[0].legend(handles.values(), handles, fontsize=8, loc="upper right", frameon=False)
    return figure


@one_thread()
def main(arguments: list[str] | None = None) -> dict[int, dict[int, theory.BlockProfile]]:
    chosen = options(__doc__, arguments, epochs=60)
    data = digits()
    networks = {width: profiles(width, data, chosen.epochs) for width in (WIDE, NARROW)}
    linear = theory.best_linear_predictor(data.x, data.y).risk
    print(
        f"{'width':>5} {'epochs':>6}   {'risk after block 0, 4, 8, 12, 16: from v':<42}{'from x_i':<38}rises at blocks"
    )
    for width, found in networks.items():
        for epochs, one in found.items():
            head, stream = (" ".join(f"{risk:.4f}" for risk in r[::4]) for r in (one.head_risk, one.stream_risk))
            print(f"{width:5} {epochs:6}   {head:<42}{stream:<38}{rises(one) or 'none'}")
    print(f"best linear predictor: {linear:.4f}")
    save(draw(networks, linear), chosen.out, "adding_blocks")
    return networks


if __name__ == "__main__":
    main()
