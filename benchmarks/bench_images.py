"""Image networks and blocks, accelerated in one line, against the same modules in plain torch.

bfloat16 is autocast over float32 parameters. Training counts the gradients of all parameters, not of the images.
"""

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

import fastnest
from fastnest.benchmarks import gate, plain_images
from fastnest.benchmarks.problem import Autocast, Case, Form, Problem
from fastnest.convert.swap import plan_of

DENSENETS, RESNETS = tuple(plain_images.DENSENETS), tuple(plain_images.RESNETS)
SUBJECTS = (*DENSENETS, *RESNETS, "bottleneck block", "bottleneck stage")
CLASSES = {"DenseNet-121": 1000}
PIXELS = {"DenseNet-121": 224}

# What another memory format costs is asked of a block's forward and of DenseNet-BC's: no network is faster in it.
FORWARD = ("eager", "compile", "frozen")
BOTH_FORMATS = ("eager", "nchw", "compile", "frozen")
TRAIN = ("eager", "compile")
DENSE_TRAIN = (*TRAIN, "memory-efficient")
IMAGES = 64  # of the float64 reference at a time
BLOCKS = ((56, 256, 64), (14, 1024, 256))  # pixels, channels, bottleneck

# subject, mode, dtype, images, peers
LINES = (
    *(("DenseNet-BC-100-12", mode, "float32", n, BOTH_FORMATS if mode == "forward" else DENSE_TRAIN)
      for n in (8, 1) for mode in ("forward", "train")),
    ("DenseNet-BC-100-12", "train", "float32", 64, DENSE_TRAIN),
    *(("DenseNet-121", mode, "float32", n, FORWARD if mode == "forward" else DENSE_TRAIN)
      for n in (8, 1) for mode in ("forward", "train")),
    ("DenseNet-121", "forward", "float32", 64, TRAIN),
    *((subject, mode, "float32", n, FORWARD if mode == "forward" else TRAIN)
      for subject, n in (("WRN-16-8", 8), ("ResNet-110", 64)) for mode in ("forward", "train")),
    ("DenseNet-BC-100-12", "train", "bfloat16", 64, DENSE_TRAIN),
    ("DenseNet-BC-100-12", "forward", "bfloat16", 64, FORWARD),
    ("DenseNet-121", "forward", "bfloat16", 8, FORWARD),
    ("DenseNet-121", "train", "bfloat16", 8, TRAIN),
    *(("WRN-16-8", mode, "bfloat16", 8, FORWARD if mode == "forward" else TRAIN) for mode in ("forward", "train")),
)  # fmt: skip


def cases() -> list[Case]:
    models = [
        Case(subject, mode, dtype, {"n": n, "px": PIXELS.get(subject, 32)}, peers)
        for subject, mode, dtype, n, peers in LINES
    ]
    # One network takes longer to compile than the two-minute subset has; a block does not.
    blocks = [
        Case("bottleneck block", mode, dtype, {"n": 8, "px": px, "c": c, "k": k},
             BOTH_FORMATS if mode == "forward" else TRAIN, quick=mode == "train" and dtype == "float32" and px == 14)
        for mode in ("forward", "train")
        for dtype in ("float32", "bfloat16")
        for px, c, k in BLOCKS
    ]  # fmt: skip
    return [*blocks, *models]


def build(case: Case, memory_efficient: bool = False) -> torch.nn.Module:
    """The network with random weights, running statistics those of a few random images."""
    torch.manual_seed(0)
    if case.subject in DENSENETS:
        model = plain_images.densenet(case.subject, CLASSES.get(case.subject, 10), memory_efficient)
    elif case.subject in RESNETS:
        model = plain_images.resnet(case.subject, 10)
    else:
        blocks = [plain_images.Bottleneck(case.sizes["c"], case.sizes["k"]) for _ in range(case.sizes.get("b", 1))]
        model = torch.nn.Sequential(*blocks) if "b" in case.sizes else blocks[0]
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.weight, 1, 0.1)
            torch.nn.init.normal_(norm.bias, 0, 0.1)
            norm.momentum = 1.0
    with torch.no_grad():
        model(images(case, 2))
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 0.1
    return model.train(case.mode == "train")


def images(case: Case, n: int) -> torch.Tensor:
    px = case.sizes["px"]
    return torch.randn(n, case.sizes.get("c", 3), px, px, generator=torch.Generator().manual_seed(0))


def form(case: Case, model: torch.nn.Module, x: torch.Tensor) -> Form:
    """The model on x; autocast where the case is of bfloat16."""

    def call(x, *parameters):
        return model(x)

    return Form(Autocast(call, x.device.type) if case.dtype == "bfloat16" else call, [x, *model.parameters()])


def exact(case: Case, model: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor | None) -> list[torch.Tensor]:
    """In float64 the output and, given dy, the gradients of x, if it needs one, and of all parameters.

    Evaluation runs in parts, because there no batch statistics join the images.
    """
    wide, x = copy.deepcopy(model).double(), x.detach().double().requires_grad_(x.requires_grad)
    if case.mode == "forward":
        return [torch.cat([wide(part) for part in x.split(IMAGES)])]
    with torch.set_grad_enabled(dy is not None):
        y = wide(x)
    if dy is None:
        return [y]
    learned = [tensor for tensor in (x, *wide.parameters()) if tensor.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, learned, dy.double())]


def blocks(case: Case, forms: dict[str, Form], models: dict[str, torch.nn.Module]) -> Iterator[tuple[str, Problem]]:
    """Every accelerated block, with the input that plain torch gives it inside the network, in the case's dtype."""
    names = [name for name, block in models["fastnest"].named_modules() if plan_of(block) is not None]
    inputs = {}

    def keep(name: str):
        return lambda block, args: inputs.update({name: args[0].detach()})

    hooks = [models["eager"].get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    with torch.no_grad():
        forms["eager"].call(*forms["eager"].leaves)
    for hook in hooks:
        hook.remove()
    for name in names:
        x = inputs.pop(name).requires_grad_()
        both = {who: form(case, model.get_submodule(name), x) for who, model in models.items()}
        plain = models["eager"].get_submodule(name)
        yield name, Problem(both, exact=lambda dy, plain=plain, x=x: exact(case, plain, x, dy))


def problem(case: Case, device: str = "cpu") -> Problem:
    model, x = build(case).to(device), images(case, case.sizes["n"]).to(device)
    if case.subject == "bottleneck stage" and case.dtype == "bfloat16":
        x = x.bfloat16()  # what convolutions under autocast before it leave
    if case.mode == "train" and case.dtype == "float32":
        gate.part_at_kinks(model, x)
    last = x.contiguous(memory_format=torch.channels_last)
    models = {
        "fastnest": fastnest.accelerate(model, inplace=False).to(memory_format=torch.channels_last),
        "eager": copy.deepcopy(model).to(memory_format=torch.channels_last),
    }
    forms = {name: form(case, one, last) for name, one in models.items()}
    forms["nchw"] = form(case, copy.deepcopy(model), x)
    # In half precision the gradients of a whole network are mostly rounding error (gate.py).
    by_block = case.mode == "train" and case.dtype != "float32"
    if "memory-efficient" in case.peers:
        efficient = build(case, memory_efficient=True).to(device, memory_format=torch.channels_last)
        efficient.load_state_dict(model.state_dict())
        forms["memory-efficient"] = form(case, efficient, last)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        y = model(x[:1].float())
    flops = counter.get_total_flops() * case.sizes["n"]
    parameters = sum(p.nbytes for p in model.parameters())
    return Problem(
        forms=forms,
        flops=flops * (3 if case.mode == "train" else 1),
        bytes=parameters + x.nbytes + y.numel() * case.sizes["n"] * getattr(torch, case.dtype).itemsize,
        exact=lambda dy: exact(case, model, x, None if by_block else dy),
        blocks=partial(blocks, case, forms, models) if by_block else None,
        model=models["fastnest"],
    )


def bench_images(benchmark, contestant):
    benchmark(contestant)
