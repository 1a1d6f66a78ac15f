"""dense_block2d's convolutions on Hopper one by one, and the four dense blocks of DenseNet-121 as one CUDA graph.

Each convolution is timed beside torch's own (cuDNN or cuBLAS, without the norms and relus that ours includes), at the
sizes at which its prototype was measured, whose figures are shown with it. The operators that launch one convolution
exist for this file and for tests; weights are packed as for a block of one layer. All in bfloat16, compared with
float64 first.
"""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fastnest import _backend
from fastnest.benchmarks.gpu.install import ROOT
from fastnest.benchmarks.gpu.measure import interleaved, microseconds, said
from fastnest.benchmarks.plain_images import DENSENETS, DenseBlock
from fastnest.testing import Expected, assert_close, error_of, expect_by_one_run

PROTOTYPE = ROOT / "benchmarks" / "results" / "prototypes" / "dense_block2d-nvidia-h200.json"
SHAPES = {"1x1": ("resident", "streamed", "split"), "3x3": ("8_lines", "4_lines", "8_columns")}
# By the prototype's number; its other variants are not among the op's kernels.
VARIANTS = {"1x1": {0: "resident", 1: "streamed", 4: "split"}, "3x3": {0: "8_lines", 1: "4_lines", 2: "8_columns"}}
GOALS_US = {64: 1200.0, 8: 500.0, 1: 400.0}  # by images: of all four blocks, as one CUDA graph
GROWTH, LAYERS, _, _ = DENSENETS["DenseNet-121"]
HIDDEN, EPS = 4 * GROWTH, 1e-5
BLOCKS = {56: (64, 256), 28: (128, 512), 14: (256, 1024), 7: (512, 1024)}  # by pixels: channels before and behind
WORST = 5e-3  # root mean square, relative: bfloat16's own rounding of a result leaves 1.7e-3
IN_GRAPH = 10  # calls, so that what launching a graph takes does not count
SECONDS = 0.1  # of timing, once with a cold L2 and once with a warm one


@dataclass(frozen=True)
class Convolution:
    """One convolution of a layer that reads the first c channels of images [n, of, px, px]."""

    kind: str  # "1x1" (norm, relu, convolution, norm, relu) or "3x3"
    n: int
    px: int
    c: int
    of: int
    shape: str = ""  # how it is cut; "": as the kernels choose
    hidden: int = HIDDEN
    growth: int = GROWTH

    @property
    def name(self) -> str:
        channels = f"{self.c}-{self.hidden}" if self.kind == "1x1" else f"{self.hidden}-{self.growth}"
        return f"convolution {self.kind} {channels} n{self.n} px{self.px}{self.shape and f' {self.shape}'}"

    @property
    def sizes(self) -> dict[str, int]:
        return {"n": self.n, "px": self.px, "c": self.c if self.kind == "1x1" else self.hidden}

    @property
    def multiply_adds(self) -> int:
        """A pixel."""
        return self.c * self.hidden if self.kind == "1x1" else 9 * self.hidden * self.growth

    @property
    def channels_moved(self) -> int:
        return self.c + self.hidden if self.kind == "1x1" else self.hidden + self.growth


@dataclass(frozen=True)
class DenseBlocks:
    """The four dense blocks of DenseNet-121 for images of 224 x 224: 116 convolutions."""

    n: int

    @property
    def name(self) -> str:
        return f"dense blocks of DenseNet-121 n{self.n}"


def chosen() -> list[Convolution]:
    """At the sizes that the prototype was measured at, cut as the kernels choose."""
    many = {56: (64, 160, 224), 28: (320, 480), 14: (512, 640), 7: (768,)}
    few = {56: (160,), 28: (320,), 14: (640,), 7: (768,)}
    found = []
    for n in (64, 8, 1):
        for px, (first, of) in BLOCKS.items():
            found.append(Convolution("3x3", n, px, first, of))
            found += [Convolution("1x1", n, px, c, of) for c in (many if n == 64 else few)[px]]
    return found


def forced() -> list[Convolution]:
    """The same, cut in every way there is, to find out whether the kernels choose the fastest."""
    every = [replace(one, shape=shape) for one in chosen() for shape in SHAPES[one.kind]]
    return [one for one in every if one.shape != "8_columns" or one.px <= 8]


def in_order() -> list[Convolution | DenseBlocks]:
    """By worth, as time may cut the end off."""
    return [*map(DenseBlocks, GOALS_US), *chosen(), *forced()]


def named(name: str) -> Convolution | DenseBlocks:
    return next(one for one in in_order() if one.name == name)


def why_not(device) -> str:
    """Why there is nothing to time here."""
    if "cuda" not in _backend.registered("norm_conv_1x1"):
        return "not in this build"
    capability = device.facts().get("capability")
    return "" if capability == [9, 0] else f"for GPUs of compute capability 9.0, got {capability}"


def prototype_us(case: Convolution | DenseBlocks) -> dict[str, float]:
    """The prototype's figures of the same size, {"warm": ..., "cold": ...}, as far as they are known.

    For a shape, of the prototype's same one; where the kernels choose, of its fastest.
    """
    figures = json.loads(PROTOTYPE.read_text()) if PROTOTYPE.exists() else {"blocks": [], "convolutions": []}
    if isinstance(case, DenseBlocks):
        return min(({"warm": one["graph_us"]} for one in figures["blocks"] if one["n"] == case.n),
                   key=lambda one: one["warm"], default={})  # fmt: skip
    size = (case.kind, case.n, case.px, case.sizes["c"])
    same = [one for one in figures["convolutions"]
            if (one["convolution"], one["n"], one["w"], one["channels_in"]) == size
            and case.shape in ("", VARIANTS[case.kind].get(one["variant"]))]  # fmt: skip
    fastest = min(same, key=lambda one: one["warm_us"], default=None)
    return {way: fastest[f"{way}_us"] for way in ("warm", "cold")} if fastest else {}


@dataclass
class Prepared:
    """A step of every contestant; compare() returns fastnest's error, or raises AssertionError where it is wrong."""

    steps: dict[str, Callable[[], object]]
    compare: Callable[[], float]


@torch.no_grad()
def measure(case: Convolution | DenseBlocks, device, operators=torch.ops.fastnest) -> dict:
    """An entry of the JSON: the error, microseconds by contestant with a cold and a warm L2, the prototype's figures.

    Raises AssertionError where numbers are wrong: nothing is timed then.
    """
    whole = isinstance(case, DenseBlocks)
    prepared = (prepare_blocks if whole else prepare)(case, device, operators)
    entry = {
        "name": case.name,
        "kind": "dense blocks" if whole else case.kind,
        "shape": "" if whole else case.shape,
        "sizes": {"n": case.n} if whole else case.sizes,
        "dtype": "bfloat16",
        "prototype_us": prototype_us(case),
        "what": "",
    }
    if whole:
        entry["goal_us"] = GOALS_US.get(case.n)
    else:
        pixels, weights = case.n * case.px**2, case.multiply_adds
        entry |= {"flops": 2 * pixels * weights, "bytes": 2 * (pixels * case.channels_moved + weights)}
    try:
        entry["error"] = prepared.compare()
    except RuntimeError as error:
        device.synchronize()  # raises after a fault
        if whole or not case.shape:
            raise
        return {**entry, "what": said(error), "warm_us": {}, "cold_us": {}}  # not a shape for this size
    calls = 1 if whole else IN_GRAPH
    replays = {name: device.capture(lambda step=step: [step() for _ in range(calls)])[0]
               for name, step in prepared.steps.items()}  # fmt: skip
    # One call is launched while the GPU still empties its cache; the many calls of all blocks take a graph for that.
    once = replays if whole else prepared.steps
    cold = _timed({name: lambda step=step: device.device_time(step) for name, step in once.items()})
    warm = _timed({name: lambda replay=replay: device.warm_time(replay) / calls for name, replay in replays.items()})
    entry["error"] = max(entry["error"], prepared.compare())  # a race may show only after many calls
    return {**entry, "cold_us": cold, "warm_us": warm}


def _timed(timers: dict[str, Callable[[], float]]) -> dict[str, float]:
    return microseconds(interleaved(timers, seconds=SECONDS))[0]


class Random:
    """Normal numbers on a device, the same in every run."""

    def __init__(self, device: str):
        self.device, self.generator = device, torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def norm(self, channels: int) -> list[Tensor]:
        """Weight, bias, mean and variance of a batch norm."""
        weight, bias, mean, var = (self(channels) for _ in range(4))
        return [weight.abs() + 0.3, bias * 0.3, mean * 0.3, var.abs() + 0.5]

    def image(self, n: int, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
        return self(n, height, width, channels).to(dtype).movedim(-1, 1)


@torch.no_grad()
def prepare(case: Convolution, device, operators, dtype: torch.dtype = torch.bfloat16) -> Prepared:
    """With random weights. All channels that the convolution must neither use nor write are NaN."""
    random, c, growth = Random(device.type), case.c, case.growth
    y = random.image(case.n, case.of, case.px, case.px, dtype)
    conv1 = (random(case.hidden, c, 1, 1) / c**0.5).to(dtype)
    conv2 = (random(growth, case.hidden, 3, 3) / (9 * case.hidden) ** 0.5).to(dtype)
    norm1, norm2 = random.norm(c), random.norm(case.hidden)
    lists = ([one] for one in (conv1, conv2, *norm1, *norm2))
    packed = operators.dense_block2d_pack(y, *lists, EPS)
    if case.kind == "1x1":
        y[:, c:] = float("nan")
        steps = {"fastnest": lambda: operators.norm_conv_1x1(y, c, packed, case.hidden, growth, case.shape)}
        x = y[:, :c].contiguous(memory_format=torch.channels_last)
        exact = relu_of(norm2, _maps(relu_of(norm1, x).to(dtype), conv1))  # rounded as the kernel's operand is

        def found() -> Tensor:
            return steps["fastnest"]()[:, : case.hidden]
    else:
        y.fill_(float("nan"))
        x = random.image(case.n, case.hidden, case.px, case.px, dtype).relu()
        steps = {"fastnest": lambda: operators.conv_3x3(x, packed, c, growth, y, c, case.shape)}
        exact = _maps(x, conv2)

        def found() -> Tensor:
            y[:, c : c + growth] = float("nan")
            steps["fastnest"]()
            assert y[:, :c].isnan().all(), f"{case.name}: writes before its channels"
            assert y[:, c + growth :].isnan().all(), f"{case.name}: writes behind its channels"
            return y[:, c : c + growth]

    if not case.shape:
        weight = (conv1 if case.kind == "1x1" else conv2).contiguous(memory_format=torch.channels_last)
        steps["library"] = lambda: F.conv2d(x, weight, padding=weight.shape[2] // 2)

    def compare() -> float:
        actual = found()
        assert actual.isfinite().all(), f"{case.name}: not finite"
        error = error_of(actual, exact).rms
        assert error < WORST, f"{case.name}: root mean square error {error:.2e}, bound {WORST:.0e}"
        return error

    return Prepared(steps, compare)


def relu_of(norm: Sequence[Tensor], x: Tensor) -> Tensor:
    """relu(norm(x)) in float64."""
    weight, bias, mean, var = (vector.double()[:, None, None] for vector in norm)
    return ((x.double() - mean) * (weight / (var + EPS).sqrt()) + bias).relu()


def _maps(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution with padding that keeps the size, by its definition in float64: a product a tap."""
    side, (h, w) = weight.shape[2], x.shape[2:]
    rows = F.pad(x.double(), [side // 2] * 4).movedim(1, -1)
    products = (
        rows[:, i : i + h, j : j + w] @ weight[:, :, i, j].double().t() for i in range(side) for j in range(side)
    )
    return sum(products).movedim(-1, 1)


def lists_of(block: DenseBlock) -> list[list[Tensor]]:
    """A block's tensors in the order of dense_block2d_pack."""
    layers = list(block.values())
    found = [[layer.conv1.weight for layer in layers], [layer.conv2.weight for layer in layers]]
    for norm in ("norm1", "norm2"):
        of = [getattr(layer, norm) for layer in layers]
        found += [[getattr(one, name) for one in of] for name in ("weight", "bias", "running_mean", "running_var")]
    return found


@torch.no_grad()
def prepare_blocks(case: DenseBlocks, device, operators, blocks: Sequence[tuple[int, int]] = ()) -> Prepared:
    """fastnest with weights packed before, and packed in the graph; eager with weights cast before.

    blocks: pixels and layers of each; by default those of the network.
    """
    random, dtype = Random(device.type), torch.bfloat16
    made: list[tuple[DenseBlock, Tensor]] = []
    for px, layers in blocks or zip(BLOCKS, LAYERS, strict=True):
        x = random.image(case.n, BLOCKS[px][0], px, px, dtype)
        made.append((_trained(DenseBlock(layers, BLOCKS[px][0], GROWTH, False).to(device.type), x[:8]), x))
    plain = [_with_weights_in(dtype, block) for block, _ in made]
    lists = [lists_of(block) for block, _ in made]
    sizes = [([HIDDEN] * len(block), [GROWTH] * len(block)) for block, _ in made]

    def pack() -> list[Tensor]:
        return [operators.dense_block2d_pack(x, *of, EPS) for (_, x), of in zip(made, lists, strict=True)]

    def forward(packed: list[Tensor]) -> list[Tensor]:
        return [operators.dense_block2d_packed_forward(x, one, *size, None)
                for (_, x), one, size in zip(made, packed, sizes, strict=True)]  # fmt: skip

    packed = pack()
    steps = {
        "fastnest": lambda: forward(packed),
        "fastnest, packing": lambda: forward(pack()),
        "eager": lambda: [block(x) for block, (_, x) in zip(plain, made, strict=True)],
    }
    allowed = [_expected(block, one, x[:2]) for (block, x), one in zip(made, plain, strict=True)]

    def compare() -> float:
        errors = []
        for who in ("fastnest", "fastnest, packing"):
            for expected, (_, x), y in zip(allowed, made, steps[who](), strict=True):
                where, c = f"{case.name}, {who}", x.shape[1]
                assert torch.equal(y[:, :c], x), f"{where}: x is not as it was"
                assert_close({"q": y[:2, c:]}, expected, dtype, where)
                errors.append(error_of(y[:2, c:], expected.exact["q"]).rms)
        return max(errors)

    return Prepared(steps, compare)


def _trained(block: DenseBlock, x: Tensor) -> DenseBlock:
    """In evaluation, with these images' statistics, so that values neither grow nor vanish from layer to layer."""
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with _untuned():
        block.train()(x.float())
    return block.eval()


def _with_weights_in(dtype: torch.dtype, block: DenseBlock) -> DenseBlock:
    """A copy whose convolutions are in dtype and channels last, as autocast runs them, but without its casts."""
    plain = copy.deepcopy(block)
    for module in plain.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(dtype, memory_format=torch.channels_last)
    return plain


def _expected(block: DenseBlock, plain: DenseBlock, x: Tensor) -> Expected:
    """Of the channels that the layers add."""
    with _untuned():
        exact = copy.deepcopy(block).double()(x.double())
    added = [{"q": y[:, x.shape[1] :]} for y in (exact, plain(x))]
    return expect_by_one_run(*added, x.numel() // x.shape[1])


@contextmanager
def _untuned() -> Iterator[None]:
    """cuDNN does not try all its convolutions for one call."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
