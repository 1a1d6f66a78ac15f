"""Cases of the ops on rows: residual_chain and dense_chain."""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

from ..reference.activation import ACTIVATIONS
from .case import Case

ROWS = (0, 1, 7, 16, 47, 48, 49, 193)
LAYOUTS = ("wide rows", "every second row", "transposed", "one row expanded", "weights transposed")


def residual_chain_cases() -> Iterator[Case]:
    def case(
        n: int,
        m: int,
        k: int,
        l: int,
        absent: tuple[str, ...] = ("mid", "mid_bias", "scale", "shift"),
        layout: str = "contiguous",
        last_up: bool = True,
        **options: Any,
    ) -> Case:
        return Case("residual_chain", {"n": n, "m": m, "k": k, "l": l}, absent, options, layout, last_up)

    # Cycles whose lengths share no factor with each other, nor with the 8 of n, meet in every combination of two.
    no_mid, no_affine = ("mid", "mid_bias"), ("scale", "shift")
    absent = cycle([no_mid + no_affine, no_mid, no_affine, (), ("down_bias", *no_mid, *no_affine)])
    k, l, features = cycle([1, 5, 16, 33, 64, 100, 48]), cycle([1, 2, 5]), cycle([True] * 4 + [False] * 7)
    for m in (1, 3, 16, 130, 257):
        for n in ROWS:
            yield case(n, m, next(k), next(l), next(absent), return_features=next(features))
    for activation in ACTIVATIONS:
        for pre_activation in (True, False):
            options: dict[str, Any] = {"activation": activation, "pre_activation": pre_activation}
            options["return_features"] = True
            yield case(49, 34, 20, 3, ("mid", "mid_bias"), **options)
            yield case(35, 20, 17, 2, (), **options)
    yield case(49, 34, 20, 3, ("down_bias", "mid", "mid_bias", "scale", "shift"))
    yield case(49, 34, 20, 3, ("down_bias", "mid_bias", "scale", "shift"), activation="silu")
    for blocks in (1, 2, 5):
        yield case(50, 40, 17, blocks, last_up=False, return_features=True)
        yield case(50, 40, 17, blocks, (), last_up=False, return_features=True, activation="gelu")
    for layout in LAYOUTS:
        yield case(50, 40, 17, 2, (), layout)
    yield case(5, 1030, 48, 3)  # few wide rows: threads share a row
    yield case(700, 257, 33, 3)  # many rows: more than one tile a thread
    yield case(20000, 24, 8, 2)  # long sums in the weights' gradients


def dense_chain_cases() -> Iterator[Case]:
    def case(
        n: int,
        m: int,
        d: tuple[int, ...],
        h: tuple[int, ...] = (),
        absent: tuple[str, ...] = ("scale", "shift"),
        layout: str = "contiguous",
        **options: Any,
    ) -> Case:
        return Case("dense_chain", {"n": n, "m": m, "d": d, "h": h}, absent, options, layout)

    absent = cycle([("scale", "shift"), (), ("bias", "hidden_bias", "scale", "shift")])
    growth = cycle(
        [
            ((1,), (3,)),
            ((5, 3), (7, 18)),
            ((16, 16, 16), (64, 64, 64)),
            ((32, 1, 33, 7, 2), (5, 100, 16, 1, 31)),
            ((48, 20), (130, 33)),
        ]
    )
    hidden = cycle([False, True, False, True, True, False, False])
    for m in (1, 3, 16, 130, 257):
        for n in ROWS:
            d, h = next(growth)
            yield case(n, m, d, h if next(hidden) else (), next(absent))
    for activation in ACTIVATIONS:
        for pre_activation in (True, False):
            for h in ((), (9, 40)):
                yield case(49, 34, (20, 3), h, (), activation=activation, pre_activation=pre_activation)
    for layout in LAYOUTS:
        yield case(50, 40, (17, 5), (20, 3), (), layout)
    for activation, pre_activation in (("gelu", True), ("relu", False), ("silu", False)):
        for h in ((), (20, 3, 3, 3, 20)):  # blocks alike in the middle
            yield case(50, 40, (5, 17, 17, 17, 2), h, (), activation=activation, pre_activation=pre_activation)
    yield case(5, 1030, (48, 32))
    yield case(700, 100, (32, 33), (128, 65))
    yield case(20000, 20, (8, 8))


def real_residual_chain_cases() -> Iterator[Case]:
    sizes = {"n": 4000, "m": 512, "k": 64, "l": 16}
    yield Case("residual_chain", sizes, ("mid", "mid_bias", "scale", "shift"))


def real_dense_chain_cases() -> Iterator[Case]:
    sizes = {"n": 4000, "m": 64, "d": (32,) * 16, "h": ()}
    yield Case("dense_chain", sizes, ("scale", "shift"))


def small_residual_chain_cases() -> Iterator[Case]:
    for activation in ACTIVATIONS:
        for absent, pre_activation, features, last_up in (
            ((), True, True, True),
            (("mid", "mid_bias"), False, True, False),
            (("mid", "mid_bias", "scale", "shift", "down_bias"), True, False, True),
        ):
            options = {"activation": activation, "pre_activation": pre_activation, "return_features": features}
            yield Case("residual_chain", {"n": 6, "m": 5, "k": 4, "l": 3}, absent, options, last_up=last_up)


def small_dense_chain_cases() -> Iterator[Case]:
    for activation in ACTIVATIONS:
        for h, absent, pre_activation in (
            ((4, 3), (), True),
            ((), ("bias",), True),
            ((4, 3), ("scale", "shift"), False),
            ((), (), False),
        ):
            options = {"activation": activation, "pre_activation": pre_activation}
            yield Case("dense_chain", {"n": 6, "m": 5, "d": (2, 3), "h": h}, absent, options)
