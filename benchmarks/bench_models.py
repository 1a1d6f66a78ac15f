"""ResNEst, A-ResNEst and DenseNEst, input to output, against the same networks written in plain torch."""

import torch
from torch.nn import functional as F

from fastnest import models, testing
from fastnest.benchmarks import bench_dense_chain, bench_residual_chain
from fastnest.benchmarks.problem import Case, Form, Problem, leaf

SUBJECTS = ("ResNEst", "AResNEst", "DenseNEst")
RESIDUAL = {"in": 64, "m": 256, "k": 32, "l": 16, "out": 10}
DENSE = {"in": 64, "d": 32, "l": 16, "out": 10}
SIZES = {"ResNEst": RESIDUAL, "AResNEst": RESIDUAL, "DenseNEst": DENSE}

# mode, dtype, n, peers besides eager and compile, whether in the two-minute subset
LINES = (
    ("forward", "float32", 1024, ("max-autotune",), False),
    ("forward", "float32", 16384, (), False),
    ("train", "float32", 1024, ("max-autotune",), True),
    ("train", "float32", 16384, (), False),
    ("forward", "bfloat16", 4096, (), False),
    ("train", "bfloat16", 4096, (), False),
)


def cases() -> list[Case]:
    return [
        Case(subject, mode, dtype, {"n": n, **SIZES[subject]}, ("eager", "compile", *more), quick)
        for mode, dtype, n, more, quick in LINES
        for subject in SUBJECTS
    ]


def resnest(x, expand, head, *blocks):
    return F.linear(bench_residual_chain.eager(F.linear(x, expand), *blocks), head)


def aresnest(x, expand, head_input, head, *blocks):
    """The features side by side and one head, which is faster in torch than a head per feature."""
    l = (len(blocks) + 1) // 3
    downs, biases, ups = blocks[:l], blocks[l : 2 * l], blocks[2 * l :]
    stream, features = F.linear(x, expand), []
    for i, (down, bias) in enumerate(zip(downs, biases, strict=True)):
        features.append(F.relu(F.linear(F.relu(stream), down, bias)))
        if i < l - 1:
            stream = stream + F.linear(features[i], ups[i])
    return F.linear(torch.cat(features, 1), head) + F.linear(x, head_input)


def build(subject: str, sizes: dict, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Module:
    """The model of these sizes, its biases not zero so that a forgotten one shows."""
    torch.manual_seed(seed)
    if subject == "DenseNEst":
        model = models.DenseNEst(sizes["in"], sizes["out"], growth=sizes["d"], blocks=sizes["l"])
    else:
        model = getattr(models, subject)(
            sizes["in"], sizes["out"], width=sizes["m"], bottleneck=sizes["k"], blocks=sizes["l"]
        )
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.to(dtype)


def forms(subject: str, model: torch.nn.Module, x: torch.Tensor) -> dict[str, Form]:
    """The model itself, and the same function in plain torch on the same memory."""
    chain = model.chain
    if subject == "DenseNEst":
        lists = [chain.weight, chain.bias, *([chain.hidden_weight, chain.hidden_bias] if chain.hidden_weight else [])]
        outer, inner = [model.head.weight], [tensor for tensors in lists for tensor in tensors]
        _, eager, _ = bench_dense_chain.forms(chain.blocks, chain.hidden_weight is not None)

        def densenest(x, head, *blocks):
            return F.linear(eager(x, *blocks), head)

        plain, blocks, collect = densenest, inner, list
    else:
        inner = [chain.down, chain.down_bias, chain.up]
        blocks = [block for tensor in inner for block in tensor.unbind()]
        outer = [model.expand.weight, model.head.weight]
        plain = resnest
        if subject == "AResNEst":
            outer, plain = [model.expand.weight, model.head_input.weight, model.head.weight], aresnest
        skip, l = 1 + len(outer), chain.blocks

        def collect(gradients):
            rest = gradients[skip:]
            stacked = [torch.stack(part) for part in (rest[:l], rest[l : 2 * l], rest[2 * l :])]
            return [*gradients[:skip], *stacked]

    return {
        "fastnest": Form(lambda x, *_: model(x), [*leaf([x]), *outer, *inner]),
        "eager": Form(plain, leaf([x, *outer, *blocks]), collect),
    }


def problem(case: Case, device: str = "cpu") -> Problem:
    dtype = getattr(torch, case.dtype)
    model = build(case.subject, case.sizes, dtype).to(device)
    n = case.sizes["n"]
    x = torch.randn(n, case.sizes["in"], generator=torch.Generator().manual_seed(0)).to(device, dtype)
    parameters = list(model.parameters())
    maps = (p.shape for name, p in model.named_parameters() if "bias" not in name)
    return Problem(
        forms=forms(case.subject, model, x),
        flops=testing.flops_of_maps(n, maps, case.mode == "train"),
        bytes=sum(t.nbytes for t in (x, *parameters)) + n * case.sizes["out"] * x.element_size(),
    )


def bench_models(benchmark, contestant):
    benchmark(contestant)
