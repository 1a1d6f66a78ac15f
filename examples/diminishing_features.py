"""Diminishing features (arXiv 2111.05496, section 1.4): how much of what a block computes is new to the head.

The output of a ResNEst or DenseNEst is linear in the features of its blocks. What an affine map of v_0, ..., v_{i-1}
predicts of v_i the head could have had without block i; `linear_unpredictability` is the share of v_i's variance that
is left. Three networks of 16 blocks with 16 features each, trained on digits: a narrow ResNEst, whose blocks all read
one small stream, a wide one, and a DenseNEst. The share says how much is new, not how useful it is: that is the risk.
"""

from itertools import accumulate

from fastnest import models, theory
from gallery import axes, digits, one_thread, options, save, trained

BLOCKS, FEATURES = 16, 16
WIDE = 64 + BLOCKS * FEATURES
NETWORKS = {
    "ResNEst of width 16": (models.ResNEst, {"width": 16, "bottleneck": FEATURES, "blocks": BLOCKS}),
    f"ResNEst of width {WIDE}": (models.ResNEst, {"width": WIDE, "bottleneck": FEATURES, "blocks": BLOCKS}),
    "DenseNEst": (models.DenseNEst, {"growth": FEATURES, "hidden": 4 * FEATURES, "blocks": BLOCKS}),
}


def unrelated(sizes: list[int], samples: int) -> list[float]:
    """The shares of features that have nothing to do with earlier ones: p of those fit p / (n - 1) of any variance."""
    return [1 - before / (samples - 1) for before in accumulate(sizes[:-1], initial=0)]


def draw(profiles: dict[str, theory.BlockProfile], samples: int):
    figure, (left, right) = axes(2)
    blocks = range(1, BLOCKS + 1)
    for name, one in profiles.items():
        left.plot(blocks, one.unpredictability[1:], ".-", label=name)
        right.plot(one.head_risk, ".-")
    chance = unrelated(next(iter(profiles.values())).sizes, samples)
    left.plot(blocks, chance[1:], color="0.4", linestyle=":", label="unrelated features would have")
    ticks = [0.01, 0.03, 0.1, 0.3, 1]
    left.set(xlabel="block i", ylabel="share of $v_i$ not linear in $v_0, ..., v_{i-1}$", yscale="log")
    left.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    left.minorticks_off()
    right.set(xlabel="block i", ylabel="least squared risk (1: always 0)", ylim=(0, None))
    right.set_title("best head on $v_0, ..., v_i$", fontsize=10)
    left.set_title("what is new in a block", fontsize=10)
    for axis in (left, right):
        axis.set_xticks(range(0, BLOCKS + 1, 4))
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, frameon=False, ncols=4, loc="outside lower center")
    return figure


@one_thread()
def main(arguments: list[str] | None = None) -> dict[str, theory.BlockProfile]:
    chosen = options(__doc__, arguments, epochs=60)
    data = digits()
    profiles = {}
    shown = (1, 4, 8, 12, 16)
    print(f"{'not linear in earlier features, block':<37}{''.join(f'{i:>8}' for i in shown)}{'risk of best head':>20}")
    for name, (make, sizes) in NETWORKS.items():
        model = trained(make, data, chosen.epochs, **sizes)
        profiles[name] = one = theory.block_profile(model, data.x, data.y)
        print(f"{name:<37}{''.join(f'{one.unpredictability[i]:8.1%}' for i in shown)}{one.head_risk[-1]:20.4f}")
    chance = unrelated(one.sizes, len(data.x))
    print(f"{'(features unrelated to earlier ones)':<37}{''.join(f'{chance[i]:8.1%}' for i in shown)}")
    save(draw(profiles, len(data.x)), chosen.out, "diminishing_features")
    return profiles


if __name__ == "__main__":
    main()
