"""Cases of the ops on images."""

from collections.abc import Iterator
from functools import partial
from itertools import cycle

from .case import Case

# Images of one channel have tests of their own: what a batch norm of one channel gets is a single sum, one draw of
# rounding, which the worst of as few draws does not bound.
EVALUATION = ("norm1_mean", "norm1_var", "norm2_mean", "norm2_var")
IMAGE_LAYOUTS = ("channels last", "channels of a wider image", "every second pixel", "weights channels last")


def batch_stats_cases() -> Iterator[Case]:
    def case(n: int, c: int, h: int, w: int, layout: str = "channels last") -> Case:
        return Case("batch_stats", {"n": n, "c": c, "h": h, "w": w}, layout=layout)

    for c in (1, 3, 16, 33, 130):
        for n, h, w in ((0, 3, 2), (1, 1, 1), (2, 7, 5), (3, 1, 47), (5, 13, 8)):
            yield case(n, c, h, w)
    for layout in ("contiguous", "channels of a wider image", "every second pixel"):
        yield case(3, 17, 6, 5, layout)
    for n, c in ((0, 5), (1, 1), (193, 33), (20000, 3)):
        yield Case("batch_stats", {"n": n, "c": c})
    for layout in ("wide rows", "every second row", "transposed"):
        yield Case("batch_stats", {"n": 50, "c": 17}, layout=layout)


def real_batch_stats_cases() -> Iterator[Case]:
    yield Case("batch_stats", {"n": 32, "c": 256, "h": 28, "w": 28}, layout="channels last")


def small_batch_stats_cases() -> Iterator[Case]:
    yield Case("batch_stats", {"n": 6, "c": 5})
    yield Case("batch_stats", {"n": 3, "c": 5, "h": 2, "w": 3})


def dense_block2d_cases() -> Iterator[Case]:
    def case(
        n: int,
        c: int,
        h: int,
        w: int,
        d: tuple[int, ...],
        b: tuple[int, ...] = (),
        absent: tuple[str, ...] = (*EVALUATION, "dropout"),
        layout: str = "channels last",
    ) -> Case:
        return Case("dense_block2d", {"n": n, "c": c, "h": h, "w": w, "d": d, "b": b}, absent, layout=layout)

    # Cycles whose lengths share no factor with each other meet in every combination of two.
    layers = cycle(
        [((1,), (3,)), ((12, 5), (48, 7)), ((32, 32, 32), (128, 128, 128)), ((7, 16, 1, 33), (5, 33, 20, 64))]
    )
    bottleneck = cycle([True, True, False])
    absent = cycle([(*EVALUATION, "dropout"), ("dropout",), EVALUATION, (*EVALUATION, "dropout"), ()])
    sizes = ((0, 3, 2), (3, 1, 2), (2, 7, 7), (3, 2, 15), (1, 16, 9), (7, 1, 1), (2, 5, 33))
    for c in (2, 3, 16, 64, 130):
        for n, h, w in sizes:
            d, b = next(layers)
            yield case(n, c, h, w, d, b if next(bottleneck) else (), next(absent))
    for layout in ("contiguous", *IMAGE_LAYOUTS):
        yield case(3, 17, 6, 5, (20, 3), (9, 40), (), layout)
    yield case(1, 8, 56, 57, (12, 12), (24, 24))  # many bands of lines
    yield case(1, 1030, 3, 3, (48,), (96,))  # few pixels, many channels: more weights than activations
    yield case(33, 12, 14, 14, (8, 8))  # long sums in the weights' gradients


def real_dense_block2d_cases() -> Iterator[Case]:
    # DenseNet-121's second block.
    sizes = {"n": 4, "c": 128, "h": 28, "w": 28, "d": (32,) * 12, "b": (128,) * 12}
    yield Case("dense_block2d", sizes, (*EVALUATION, "dropout"), layout="channels last")


def small_dense_block2d_cases() -> Iterator[Case]:
    sizes = {"n": 3, "c": 5, "h": 2, "w": 3}
    for b, absent in (
        ((4, 3), (*EVALUATION, "dropout")),
        ((), (*EVALUATION, "dropout")),
        ((4, 3), ("dropout",)),
        ((4, 3), EVALUATION),
        ((), ()),
    ):
        yield Case("dense_block2d", {**sizes, "d": (2, 3), "b": b}, absent, layout="channels last")


NORMS = ("norm_weight", "norm_bias", "norm_mean", "norm_var")
PROJECTION = ("projection", "projection_bias")
# What a residual block is called with: absent arguments, stride, whether the features are returned.
ResidualKind = tuple[tuple[str, ...], int, bool]  # absent arguments, stride, return_features
RESIDUAL_KINDS: tuple[ResidualKind, ...] = (
    (("conv_bias", "norm_mean", "norm_var", *PROJECTION), 1, False),
    (("conv_bias", "norm_mean", "norm_var", "projection_bias"), 2, True),
    (("conv_bias", *PROJECTION), 1, True),
    ((), 2, False),
    (NORMS, 2, True),
    ((*NORMS, *PROJECTION), 1, True),
    (("norm_mean", "norm_var"), 1, False),
    (("conv_bias", *NORMS, "projection_bias"), 1, False),
)


def _residual_block2d_case(
    op: str, n: int, c: int, h: int, w: int, k: int, m: int, kind: ResidualKind, layout: str = "channels last"
) -> Case:
    absent, stride, return_features = kind
    sizes = {"n": n, "c": c, "h": h, "w": w, "k": k, "m": c if "projection" in absent else m}
    return Case(op, sizes, absent, {"stride": stride, "return_features": return_features}, layout)


def residual_block2d_cases(op: str) -> Iterator[Case]:
    case, kinds = partial(_residual_block2d_case, op), cycle(RESIDUAL_KINDS)
    sizes = ((0, 3, 2), (2, 7, 8), (3, 2, 5), (1, 15, 7), (5, 1, 3), (2, 8, 15), (7, 3, 3))
    k, m = cycle([5, 16, 33, 2, 64]), cycle([16, 1, 33])
    for c in (2, 3, 16, 33, 64, 130):
        for n, h, w in sizes:
            yield case(n, c, h, w, next(k), next(m), next(kinds))
    for kind in RESIDUAL_KINDS[2:6]:
        yield case(1, 5, 1, 1, 7, 3, kind)
    for layout in ("contiguous", *IMAGE_LAYOUTS):
        for kind in RESIDUAL_KINDS[:3]:
            yield case(3, 17, 6, 5, 20, 9, kind, layout)
    for kind in RESIDUAL_KINDS[:2]:
        yield case(2, 24, 56, 57, 12, 40, kind)  # many bands of lines
        yield case(33, 20, 14, 14, 8, 40, kind)  # long sums in the weights' gradients
    yield case(2, 520, 3, 3, 130, 520, RESIDUAL_KINDS[0])  # few pixels, many channels: more weights than activations


def real_residual_block2d_cases(op: str) -> Iterator[Case]:
    # Of a ResNet-50's first stage and of a wide ResNet's second one.
    n, c, size, k = (4, 256, 56, 64) if op == "bottleneck2d" else (8, 256, 16, 256)
    yield _residual_block2d_case(op, n, c, size, size, k, c, RESIDUAL_KINDS[0])


def small_residual_block2d_cases(op: str) -> Iterator[Case]:
    for kind in RESIDUAL_KINDS:
        yield _residual_block2d_case(op, 3, 5, 2, 3, 4, 6, kind)
