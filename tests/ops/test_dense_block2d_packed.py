"""Packed weights: kept, and made again whenever anything about them changed. By stubs, which remember what they packed.

A stub's result is the definition's for the weights as they were when they were packed, so that one served too long is
a wrong result.
"""

import copy
import gc
import threading
import warnings
import weakref
from contextlib import nullcontext
from itertools import chain

import pytest
import torch
from marks import needs_cpp
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.flop_counter import FlopCounterMode

from fastnest import _backend, nn
from fastnest.functional import dense_block2d
from fastnest.nn.image import run_dense_layers
from fastnest.ops import dense_block2d_autograd as autograd
from fastnest.ops import dense_block2d_packed as packed
from fastnest.ops import library
from fastnest.reference import dense_block2d as reference
from fastnest.reference.dense_block2d import Weights

pytestmark = pytest.mark.usefixtures("one_thread")
C, D, B, L = 8, 4, 12, 3


class Kernels:
    """Stubs on the CPU: how often the backend was chosen, what was packed (dtypes), and on which stream all runs."""

    def __init__(self):
        self.chosen, self.packed, self.stream, self.versions = 0, [], 1, []

    def choose(self, *arguments, **sizes):
        self.chosen += 1
        return "cuda"

    def pack(self, like, *rest):
        *lists, eps = rest
        self.packed.append((like.dtype, {t.dtype for t in (*lists[0], *lists[1])}))
        assert {t.dtype for t in chain(*lists[2:])} == {torch.float32}
        self.versions.append(([[t.detach().clone() for t in one] for one in lists], eps))
        return torch.tensor([len(self.versions) - 1])

    def forward(self, x, of, hidden, growth, dropout):
        lists, eps = self.versions[of.item()]
        assert ([t.shape[0] for t in lists[0]], [t.shape[0] for t in lists[1]]) == (hidden, growth)
        lists = [[t.to(x.dtype) for t in one] for one in lists]
        y, _ = reference.dense_block2d_forward(x, Weights(*lists, dropout or []), eps)
        return y.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def kernels(monkeypatch):
    stub = Kernels()
    monkeypatch.setattr(packed, "_versions", type(packed._versions)())
    monkeypatch.setitem(packed.pack_kernels, "cuda", stub.pack)
    monkeypatch.setitem(packed.forward_kernels, "cuda", stub.forward)
    monkeypatch.setattr(_backend, "choose", stub.choose)
    monkeypatch.setattr(_backend, "stream_of", lambda x: stub.stream)
    with torch.no_grad():
        yield stub


def image(n=2, h=3, w=5, dtype=torch.float32):
    return torch.randn(n, C, h, w, dtype=dtype).contiguous(memory_format=torch.channels_last)


def block(**options):
    module = nn.DenseBlock2d(C, D, L, bn_size=B // D, **options)
    for name, tensor in module.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return module.eval()


def tensors_of(module):
    layers = list(module.children())
    lists = {name: [getattr(layer, name).weight for layer in layers] for name in ("conv1", "conv2")}
    for norm in ("norm1", "norm2"):
        for name in ("weight", "bias", "running_mean", "running_var"):
            lists[f"{norm}_{name.removeprefix('running_')}"] = [getattr(getattr(layer, norm), name) for layer in layers]
    return lists


def by_functional(module, x, **options):
    return dense_block2d(x, **{**tensors_of(module), **options})


def by_module(module, x):
    return module(x)


CALLERS = pytest.mark.parametrize("call", [by_functional, by_module])


def check(call, module, x, rtol=1e-5):
    lists = {name: list(tensors) for name, tensors in tensors_of(module).items()}
    expected, _ = reference.dense_block2d_forward(x, Weights(**lists, dropout=[]), 1e-5)
    torch.testing.assert_close(call(module, x), expected, rtol=rtol, atol=1e-5)


@CALLERS
def test_packs_once_and_then_asks_for_nothing(kernels, call):
    module, x = block(), image()
    for _ in range(3):
        check(call, module, x)
    assert (len(kernels.packed), kernels.chosen) == (1, 1)
    for _ in range(2):
        check(call, module, image(n=1))
    assert (len(kernels.packed), kernels.chosen) == (1, 2)


def in_place(module, name, tensor):
    tensor.mul_(1.5)


def replaced(module, name, tensor):
    *path, last = name.split(".")
    owner = module.get_submodule(".".join(path))
    new = tensor.detach() * 1.5
    setattr(owner, last, torch.nn.Parameter(new) if last in owner._parameters else new)


def other_data(module, name, tensor):
    tensor.data = tensor.data * 1.5


def data_back_at_the_same_place(module, name, tensor):
    """Freed memory is given out again: were it not kept, the second of two new ones would lie where the first lay."""
    for _ in range(4):
        tensor.data = tensor.data * 1.1


NAMES = [
    name
    for name, tensor in nn.DenseBlock2d(C, D, L, bn_size=2).state_dict().items()
    if "num_batches" not in name and "denselayer2" not in name
]


@CALLERS
@pytest.mark.parametrize("change", [in_place, replaced, other_data, data_back_at_the_same_place])
@pytest.mark.parametrize("name", NAMES)
def test_packs_again_after_a_change(kernels, call, change, name):
    module, x = block(), image()
    check(call, module, x)
    change(module, name, module.state_dict(keep_vars=True)[name])
    for _ in range(2):
        check(call, module, x)
    assert len(kernels.packed) == 2


@CALLERS
def test_packs_again_after_channels_were_cut_off_in_place(kernels, call):
    """All tensors are the same ones, and begin where they began."""
    module, x = block(), image()
    check(call, module, x)
    layer = module["denselayer2"]
    layer.conv1.weight.data = layer.conv1.weight.data[:3]
    layer.conv2.weight.data = layer.conv2.weight.data[:, :3]
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(layer.norm2, name)
        tensor.data = tensor.data[:3]
    check(call, module, x)
    assert len(kernels.packed) == 2


@CALLERS
def test_packs_again_after_the_module_was_converted_and_back(kernels, call):
    module, x = block(), image()
    check(call, module, x)
    module.half().float()
    check(call, module, x)
    module.load_state_dict(block().state_dict())
    check(call, module, x)
    assert len(kernels.packed) == 3


def test_packs_for_every_dtype_eps_and_stream(kernels):
    module, x = block(), image()
    lists = tensors_of(module)

    def number(x=x, eps=1e-5, stream=1):
        kernels.stream = stream
        dense_block2d(x, **lists, eps=eps)
        return len(kernels.packed)

    assert [number(), number(eps=1e-3), number(stream=2), number(stream=2), number(), number(eps=1e-3)] == [
        1, 2, 3, 3, 3, 3,
    ]  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        assert [number(), number(image(dtype=torch.bfloat16))] == [4, 4]
    lists["conv1"][0].mul_(2)
    assert [number(stream=2), number()] == [5, 6]
    for stream in range(20):
        number(stream=stream)
    assert len(packed._versions[lists["conv1"][0]].packs) <= packed.MOST_PACKS


def test_kinds_of_calls_are_not_kept_without_end(kernels):
    module = block()
    for n in range(1, 2 * packed.MOST_CALLS):
        module(image(n=n))
    (version,) = packed._versions.values()
    (pack,) = version.packs.values()
    assert len(pack.calls) <= packed.MOST_CALLS


@CALLERS
def test_a_capture_packs_in_the_graph(kernels, call):
    module, x = block(), image()
    kernels.stream = None
    for _ in range(2):
        check(call, module, x)
    assert len(kernels.packed) == 2
    assert not packed._versions
    kernels.stream = 1
    check(call, module, x)
    kernels.stream = None
    check(call, module, x)
    assert len(kernels.packed) == 4


def test_nothing_is_kept_where_torch_counts_no_changes(kernels):
    """Inference tensors."""
    with torch.inference_mode():
        module, x = block(), image()
        for factor in (1, 2):
            module["denselayer1"].conv1.weight.mul_(factor)
            check(by_module, module, x)
    assert len(kernels.packed) == 2
    assert not packed._versions


def test_weights_that_are_no_inference_tensors_are_kept_in_inference_mode(kernels):
    module, x = block(), image()
    for _ in range(2):
        with torch.inference_mode():
            check(by_module, module, x)
    check(by_module, module, x)
    assert len(kernels.packed) == 1


def test_what_is_kept_dies_with_the_weights(kernels):
    module = block()
    module(image())
    (version,) = packed._versions.values()
    (pack,) = version.packs.values()
    alive = [
        weakref.ref(t) for t in (module["denselayer1"].conv1.weight, module["denselayer2"].norm1.bias, pack.packed)
    ]
    del version, pack, module
    gc.collect()
    assert [one() for one in alive] == [None] * 3
    assert not packed._versions


@pytest.mark.parametrize("tied", ["same", "view"])
def test_nothing_is_kept_that_would_keep_itself_alive(kernels, tied):
    """By tensors that hold the first weight: itself once more, or a view of it."""
    lists = tensors_of(block())
    if tied == "view":
        lists["norm1_bias"][0] = lists["conv1"][0][0, :, 0, 0]
    else:
        lists["conv1"][1] = lists["conv1"][0]
    version = packed._version_of(packed.by_layer(lists.values()))
    packed._keep(packed.by_layer(lists.values()), version, (1, torch.float32, 1e-5), packed._Pack("cuda", None, set()))
    assert not packed._versions


def test_nothing_is_kept_of_weights_that_were_computed(kernels):
    module, x = block(), image()
    lists = tensors_of(module)
    with torch.enable_grad():
        computed = lists["conv1"][0] * 2
    lists["conv1"] = [computed, *lists["conv1"][1:]]
    dense_block2d(x, **lists)
    assert not packed._versions


def test_autocast_casts_no_weight(kernels):
    module, x = block(), image()
    module["denselayer1"].conv1.bfloat16()
    module["denselayer2"].conv2.half()
    with torch.autocast("cpu", torch.bfloat16):
        y = by_functional(module, x)
        assert torch.equal(by_functional(module, x), y)
    assert kernels.packed == [(torch.bfloat16, {torch.float32, torch.bfloat16, torch.float16})]
    assert kernels.chosen == 1
    assert y.dtype is torch.bfloat16
    module["denselayer3"].conv2.double()
    message = r"dense_block2d: conv2\[2\] must be torch.bfloat16 as x is, got torch.float64"
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=message):
        by_functional(module, x)
    with pytest.raises(TypeError, match=r"dense_block2d: conv1\[0\] must be torch.float32 as x is, got torch.bfloat16"):
        by_functional(module, x)


def test_under_autocast_all_is_checked_that_is_not_cast(kernels):
    lists, x = tensors_of(block()), image()
    other = {**lists, "conv1": [lists["conv1"][0].half(), torch.zeros(B, 3, 1, 1), lists["conv1"][2]]}
    message = r"dense_block2d: conv1\[1\] must be .* to match layer 1, which reads 12 channels"
    elsewhere = {**lists, "conv2": [*lists["conv2"][:2], lists["conv2"][2].to("meta")]}
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match=message):
            dense_block2d(x, **other)
        with pytest.raises(ValueError, match=r"dense_block2d: conv2\[2\] must be on cpu as x is, got meta"):
            dense_block2d(x, **elsewhere)


def test_a_call_that_needs_a_gradient_is_chosen_again(kernels):
    module, x = block(), image()
    module(x)
    with torch.enable_grad():
        module(x)
    assert kernels.chosen == 2
    module.requires_grad_(False)
    with torch.enable_grad():
        module(x)
        assert kernels.chosen == 2
        module(x.requires_grad_())
    assert kernels.chosen == 3


def test_what_a_thread_asks_for_is_chosen_again(kernels):
    module, x = block(), image()
    module(x)
    for block_ in (_backend.asking("forced", "reference"), _backend.logging_choices()):
        before = kernels.chosen
        with block_:
            module(x)
        assert kernels.chosen == before + 1
    module(x)
    assert kernels.chosen == before + 1


def test_tf32_is_part_of_the_choice(kernels):
    module, x = block(), image()
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision in ("ieee", "tf32", "ieee", "tf32"):
            torch.backends.cuda.matmul.fp32_precision = precision
            module(x)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert kernels.chosen == 2


@pytest.mark.parametrize("x", [image()[:, :, :2], torch.randn(2, C, 3, 5), torch.randn(2, C, 5, 3).transpose(2, 3)])
def test_images_as_they_come(kernels, x):
    """With lines left out and in NCHW memory, which is copied there and back, and chosen for each time."""
    module = block()
    for _ in range(2):
        check(by_module, module, x)
        assert module(x).is_contiguous()
    assert (len(kernels.packed), kernels.chosen) == (1, 4)


def test_images_of_one_shape_and_other_memory(kernels):
    module, x = block(), image()
    for one in (x, x.contiguous(), x):
        check(by_module, module, one)
        assert module(one).is_contiguous() == one.is_contiguous()


def test_modules_ask_for_their_weights_and_for_nothing_else(kernels, monkeypatch):
    module, x = block(), image()
    y = module(x)
    monkeypatch.setattr(nn.image, "dense_block2d", None)
    assert torch.equal(module(x), y)


def test_channels_of_a_wider_image_are_read_in_place(kernels):
    x = torch.randn(2, C + 3, 3, 5).contiguous(memory_format=torch.channels_last)[:, :C]
    module = block()
    for _ in range(2):
        check(by_module, module, x)
    assert kernels.chosen == 1


def test_dropout(kernels):
    module, x = block(), image()
    module(x)
    masks = [(torch.rand(2, D, 3, 5) < 0.5).float().contiguous(memory_format=torch.channels_last) for _ in range(L)]
    lists = tensors_of(module)
    expected, _ = reference.dense_block2d_forward(x, Weights(**lists, dropout=masks), 1e-5)
    torch.testing.assert_close(dense_block2d(x, **lists, dropout=masks), expected)
    assert len(kernels.packed) == 1


def test_statistics_were_given(kernels):
    module, x = block(), image()
    for _ in range(2):
        y, statistics = by_functional(module, x, return_statistics=True)
        assert (y.shape, statistics) == ((2, C + L * D, 3, 5), None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"conv1": lambda t: t[:-1]},
        {"norm2_var": lambda t: t[:-1]},
        {"norm2_var": lambda t: [*t, t[0]]},
        {"norm1_mean": lambda t: None},
        {"conv2": lambda t: t[0]},
        {"conv1": lambda t: [None, *t[1:]]},
        {"conv1": lambda t: [1.0, *t[1:]]},
        {"eps": lambda t: [1e-5]},
        {"dropout": lambda t: torch.ones(2)},
        {"return_statistics": lambda t: "no"},
    ],
    ids=str,
)
def test_bad_input_after_a_good_call(kernels, wrong):
    lists, x = tensors_of(block()), image()
    dense_block2d(x, **lists)
    changed = {**lists, **{name: change(lists.get(name)) for name, change in wrong.items()}}
    with pytest.raises((TypeError, ValueError), match="dense_block2d: "):
        dense_block2d(x, **changed)
    with pytest.raises(ValueError, match="dense_block2d: x must be"):
        dense_block2d(x[0], **lists)
    with pytest.raises(TypeError, match="dense_block2d: x must be"):
        dense_block2d([x], **lists)


def test_sequences_of_any_kind(kernels):
    lists, x = tensors_of(block()), image()
    y = dense_block2d(x, **lists)
    for kind in (tuple, iter, list):
        assert torch.equal(dense_block2d(x, **{name: kind(tensors) for name, tensors in lists.items()}), y)
    assert (len(kernels.packed), kernels.chosen) == (1, 2)


def test_norms_without_weights(kernels):
    module, x = block(), image()
    for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.weight, norm.bias = None, None
    ones = {name: list(map(torch.ones_like if "weight" in name else torch.zeros_like, tensors_of(block())[name]))
            for name in ("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")}  # fmt: skip
    expected, _ = reference.dense_block2d_forward(x, Weights(**{**tensors_of(module), **ones}, dropout=[]), 1e-5)
    for _ in range(2):
        torch.testing.assert_close(module(x), expected)


def test_a_replica_has_weights_as_attributes(kernels):
    module, x = block(), image()
    y = module(x)
    layers = copy.copy(module.plan_now().layers)
    conv = layers[0].conv1
    weight = conv._parameters.pop("weight")
    conv.__dict__["weight"] = weight
    assert torch.equal(run_dense_layers(x, layers), y)
    assert len(kernels.packed) == 1


def test_training_computes_statistics(kernels, monkeypatch):
    module, x = block(), image()
    module(x)
    monkeypatch.setattr(_backend, "choose", lambda *arguments, **sizes: "reference")
    means = [norm.running_mean.clone() for norm in module.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
    module.train()(x)
    after = [norm.running_mean for norm in module.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
    assert not any(map(torch.equal, means, after))


def test_copies_have_packed_weights_of_their_own(kernels):
    module, x = block(), image()
    module(x)
    other = copy.deepcopy(module)
    other["denselayer1"].conv1.weight.mul_(2)
    check(by_module, other, x)
    check(by_module, module, x)
    assert len(kernels.packed) == 2


def test_threads_call_at_once(kernels):
    module, x = block(), image()
    expected, _ = reference.dense_block2d_forward(x, Weights(**tensors_of(module), dropout=[]), 1e-5)
    wrong = []

    def work():
        with torch.no_grad():
            for _ in range(20):
                if not torch.allclose(module(x), expected, atol=1e-5):
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 1 <= len(kernels.packed) <= 4


@needs_cpp
@pytest.mark.parametrize("how", ["compile", "mode", "fake", "subclass", "trace"])
def test_what_torch_writes_down_is_the_whole_op(kernels, monkeypatch, how):
    """A graph that held packed weights would not see the weights change."""
    calls = []

    def whole(*arguments):
        calls.append(1)
        return autograd.forward_kernels["cpp"](*arguments)

    monkeypatch.setitem(
        autograd.forward_kernels, "cuda", autograd.forward_kernels["cpp"] if how == "compile" else whole
    )
    module, x = block(), image()
    module(x)
    if how == "compile":
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        check(lambda module, x: compiled(x), module, x)
        module["denselayer1"].conv1.weight.mul_(2)
        check(lambda module, x: compiled(x), module, x)
    elif how == "mode":
        with FlopCounterMode(display=False) as counter:
            check(by_functional, module, x)
        assert counter.get_total_flops() > 0
    elif how == "subclass":
        check(by_functional, module, torch.nn.Parameter(x))
    elif how == "fake":
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        fake = mode.from_tensor(x)
        lists = {name: list(map(mode.from_tensor, tensors)) for name, tensors in tensors_of(module).items()}
        for inside in (mode, nullcontext()):
            with inside:
                assert dense_block2d(fake, **lists).shape == (2, C + L * D, 3, 5)
    else:
        module.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(lambda x: by_functional(module, x), x, check_trace=False)
    assert len(kernels.packed) == 1
    assert how == "compile" or calls


@needs_cpp
@pytest.mark.parametrize("name", ["dense_block2d_pack", "dense_block2d_packed_forward"])
def test_schemas_are_those_of_the_compiled_operators(name):
    compiled = getattr(torch.ops.fastnest, name).default._schema
    inferred = torch._C.parse_schema(name + library.schema(getattr(packed, f"{name}_fake")))
    assert [a.name for a in inferred.arguments] == [a.name for a in compiled.arguments]
    assert [str(a.type) for a in inferred.arguments] == [str(a.type) for a in compiled.arguments]
    assert [str(a.type) for a in inferred.returns] == [str(a.type) for a in compiled.returns]


@needs_cpp
def test_fakes_and_flops_are_those_of_the_forward():
    lists = list(Weights(**tensors_of(block()), dropout=[]))[:10]
    with FakeTensorMode(shape_env=ShapeEnv()):
        lists = [[torch.empty(t.shape, device="cuda:0") for t in one] for one in lists]
        x = torch.empty(2, C, 3, 5, device="cuda:0", dtype=torch.bfloat16)
        with FlopCounterMode(display=False) as counter:
            held = torch.ops.fastnest.dense_block2d_pack(x, *lists, 1e-5)
        assert (held.dtype, held.device, counter.get_total_flops()) == (torch.uint8, x.device, 0)
        with FlopCounterMode(display=False) as counter:
            sizes = [[t.shape[0] for t in one] for one in lists[:2]]
            y = torch.ops.fastnest.dense_block2d_packed_forward(x, held, *sizes, None)
        with FlopCounterMode(display=False) as whole:
            expected, *_ = torch.ops.fastnest.dense_block2d_forward(x, *lists, None, 1e-5, False)
    assert (y.shape, y.dtype, y.stride()) == (expected.shape, expected.dtype, expected.stride())
    assert counter.get_total_flops() == whole.get_total_flops() > 0
