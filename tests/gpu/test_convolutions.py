"""Single convolutions and dense blocks as `make gpu` times them, with plain torch in the place of their operators."""

import inspect
import json
import re
from dataclasses import replace

import pytest
import torch
from gpu import packed_stand_in as operators
from gpu.result import FACTS, RATES, Ended, convolution, result, soon
from gpu.stand_in import StandIn
from marks import needs_cpp

from fastnest.benchmarks.gpu import convolutions, record, table, timing, work

pytestmark = pytest.mark.usefixtures("one_thread")
FIRST = convolutions.Convolution("1x1", 1, 7, 544, 1024)
SECOND = convolutions.Convolution("3x3", 1, 7, 544, 1024)


class Broken:
    """The stand-in with one operator in the place of its own."""

    def __init__(self, **changed):
        self.changed = changed

    def __getattr__(self, name):
        return self.changed.get(name) or getattr(operators, name)


class Hopper(StandIn):
    def facts(self) -> dict:
        return {**super().facts(), "capability": [9, 0]}


@pytest.fixture
def built(monkeypatch):
    monkeypatch.setattr(convolutions._backend, "registered", lambda name: ("cuda",))


@needs_cpp
@pytest.mark.parametrize("name", ["dense_block2d_packed_forward", "norm_conv_1x1", "conv_3x3"])
def test_the_stand_in_is_called_as_the_compiled_operators_are(name):
    schema = getattr(torch.ops.fastnest, name).default._schema
    assert [argument.name for argument in schema.arguments] == list(
        inspect.signature(getattr(operators, name)).parameters
    )


@needs_cpp
def test_weights_are_packed_in_the_order_of_the_compiled_operator():
    schema = torch.ops.fastnest.dense_block2d_pack.default._schema
    assert [argument.name for argument in schema.arguments] == ["like", *operators.PACKED, "eps"]
    block = convolutions.DenseBlock(2, 8, 4, False)
    shapes = [[tuple(one.shape) for one in tensors] for tensors in convolutions.lists_of(block)]
    assert shapes[:2] == [[(16, 8, 1, 1), (16, 12, 1, 1)], [(4, 16, 3, 3)] * 2]
    assert shapes[2:] == [[(8,), (12,)]] * 4 + [[(16,)] * 2] * 4
    for which in ("weight", "bias", "running_mean", "running_var"):
        for norm in ("norm1", "norm2"):
            at = operators.PACKED.index(f"{norm}_{which.removeprefix('running_')}")
            assert convolutions.lists_of(block)[at][1] is getattr(getattr(block["denselayer2"], norm), which)


def test_sizes_are_those_of_the_prototype():
    figures = json.loads(convolutions.PROTOTYPE.read_text())
    assert all(set(convolutions.prototype_us(one)) == {"warm", "cold"} for one in convolutions.chosen())
    sizes = {(one["convolution"], one["n"], one["w"], one["channels_in"]) for one in figures["convolutions"]}
    assert len(sizes) == len(convolutions.chosen())
    assert {one["n"] for one in figures["blocks"]} == set(convolutions.GOALS_US)


def test_figures_are_the_prototypes_fastest_or_those_of_the_same_shape():
    wide = convolutions.Convolution("3x3", 64, 28, 128, 512)
    assert convolutions.prototype_us(wide) == {"warm": 8.6, "cold": 12.61}
    assert convolutions.prototype_us(replace(wide, shape="8_lines")) == {"warm": 9.24, "cold": 13.34}
    assert convolutions.prototype_us(replace(wide, shape="8_columns")) == {}
    assert convolutions.prototype_us(replace(wide, n=63)) == {}
    assert convolutions.prototype_us(convolutions.DenseBlocks(64)) == {"warm": 1083.1}


def test_without_the_prototypes_file_there_are_no_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(convolutions, "PROTOTYPE", tmp_path / "none.json")
    assert convolutions.prototype_us(FIRST) == convolutions.prototype_us(convolutions.DenseBlocks(64)) == {}


def test_what_matters_comes_first():
    every = convolutions.in_order()
    assert [one.n for one in every[:3]] == [64, 8, 1]
    shapes = [one.shape for one in every[3:]]
    assert shapes == sorted(shapes, key=bool)
    assert len({one.name for one in every}) == len(every)
    assert all(convolutions.named(one.name) == one for one in every)
    assert all(one.px <= 8 for one in every[3:] if one.shape == "8_columns")


def test_it_is_listed_where_the_kernels_run(built):
    every = [one.name for one in convolutions.in_order()]
    assert work.listed("", None, Hopper())["convolutions"] == every
    assert work.listed("dense blocks.* n8$", None, Hopper())["convolutions"] == ["dense blocks of DenseNet-121 n8"]
    elsewhere = work.listed("", None, StandIn())
    assert elsewhere["convolutions"] == []
    assert elsewhere["no_convolutions"] == "for GPUs of compute capability 9.0, got None"


def test_a_build_without_them_is_told():
    assert convolutions.why_not(Hopper()) == "not in this build"


@pytest.mark.parametrize("case", [FIRST, SECOND, replace(SECOND, shape="8_columns")], ids=lambda case: case.name)
def test_an_entry(case):
    entry = convolutions.measure(case, StandIn(), operators)
    contestants = {"fastnest"} if case.shape else {"fastnest", "library"}
    assert set(entry["warm_us"]) == set(entry["cold_us"]) == contestants
    assert 1e-3 < entry["error"] < 2e-3  # a rounding to bfloat16
    assert (entry["name"], entry["what"], entry["shape"]) == (case.name, "", case.shape)
    c = entry["sizes"]["c"]
    assert c == (544 if case.kind == "1x1" else 128)
    assert entry["flops"] == 2 * 49 * (c * 128 if case.kind == "1x1" else 9 * c * 32)


def test_a_shape_that_does_not_take_a_size_is_no_failure():
    entry = convolutions.measure(replace(FIRST, shape="resident"), StandIn(), operators)
    assert entry["what"] == "RuntimeError: resident does not take 544"
    assert entry["warm_us"] == entry["cold_us"] == {}


def test_a_fault_is_one_even_of_a_shape():
    class Faulty(StandIn):
        def synchronize(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="CUDA error"):
        convolutions.measure(replace(FIRST, shape="resident"), Faulty(), operators)


def wrong(x, *rest):
    return operators.norm_conv_1x1(x, *rest) * 1.01


def writes(before: int, behind: int):
    def conv_3x3(h, packed, channels, growth, y, first, shape):
        operators.conv_3x3(h, packed, channels, growth, y, first, shape)
        y[0, first - before : first + growth + behind, 0, 0] = 0

    return conv_3x3


def nothing(*_):
    pass


def shifted(h, *rest):
    operators.conv_3x3(h.roll(1, 3), *rest)


@pytest.mark.parametrize(
    ("case", "operator", "what"),
    [
        (FIRST, wrong, "root mean square error"),
        (SECOND, writes(1, 0), "writes before its channels"),
        (SECOND, writes(0, 1), "writes behind its channels"),
        (SECOND, nothing, "not finite"),
        (SECOND, shifted, "root mean square error"),
    ],
)
def test_wrong_numbers_have_no_speed(case, operator, what):
    name = "norm_conv_1x1" if case.kind == "1x1" else "conv_3x3"
    with pytest.raises(AssertionError, match=what):
        convolutions.measure(case, StandIn(), Broken(**{name: operator}))


def test_channels_behind_the_prefix_are_nan():
    seen = []

    def keep(x, channels, *rest):
        seen.append((x[:, :channels].isfinite().all(), x[:, channels:].isnan().all(), x.shape[1]))
        return operators.norm_conv_1x1(x, channels, *rest)

    convolutions.prepare(FIRST, StandIn(), Broken(norm_conv_1x1=keep)).compare()
    assert seen == [(True, True, 1024)]


def test_numbers_that_turn_wrong_while_timed_are_found():
    calls = iter(range(10**6))

    def later(x, *rest):
        return operators.norm_conv_1x1(x, *rest) * (1.1 if next(calls) > 20 else 1)

    with pytest.raises(AssertionError, match="root mean square error"):
        convolutions.measure(FIRST, StandIn(), Broken(norm_conv_1x1=later))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes_are_compared(dtype):
    for case in (FIRST, SECOND):
        assert convolutions.prepare(case, StandIn(), operators, dtype).compare() < 1e-3


BLOCKS = ((7, 2), (14, 1))


def test_dense_blocks(monkeypatch):
    prepare = convolutions.prepare_blocks
    monkeypatch.setattr(convolutions, "prepare_blocks", lambda *given: prepare(*given, BLOCKS))
    entry = convolutions.measure(convolutions.DenseBlocks(1), StandIn(), operators)
    assert set(entry["warm_us"]) == set(entry["cold_us"]) == {"fastnest", "fastnest, packing", "eager"}
    assert (entry["sizes"], entry["goal_us"], entry["prototype_us"]) == ({"n": 1}, 400.0, {"warm": 319.0})
    # As many layers as DenseNet-121 has.
    assert sum(convolutions.LAYERS) * 2 == 116


@pytest.mark.parametrize(("channel", "what"), [(-1, r"\w+ error "), (0, "x is not as it was")])
def test_a_wrong_channel_of_a_block_is_found(channel, what):
    def forward(x, *rest):
        y = operators.dense_block2d_packed_forward(x, *rest)
        y[:, channel] *= 1.1
        return y

    prepared = convolutions.prepare_blocks(
        convolutions.DenseBlocks(1), StandIn(), Broken(dense_block2d_packed_forward=forward), BLOCKS
    )
    with pytest.raises(AssertionError, match=f"dense blocks of DenseNet-121 n1, fastnest: {what}"):
        prepared.compare()


def test_answers(monkeypatch):
    monkeypatch.setattr(convolutions, "measure", lambda case, device: {"name": case.name})
    name = convolutions.chosen()[0].name
    assert work.answer({"do": "convolutions", "name": name}, StandIn()) == {"convolutions": {"name": name}}

    def wrong_numbers(case, device):
        raise AssertionError("off")

    monkeypatch.setattr(convolutions, "measure", wrong_numbers)
    found = work.answer({"do": "convolutions", "name": name}, StandIn())["failures"]
    assert found == {"name": name, "what": "wrong numbers, no speed reported: off"}


def test_memory_is_left_to_the_next_convolution(monkeypatch):
    """What a case of a network needs, to be rid of what torch.compile made, takes longer than a convolution."""
    called = []
    monkeypatch.setattr(work.gc, "collect", lambda: called.append("collect"))
    monkeypatch.setattr(work.convolutions, "measure", lambda case, device: {"name": case.name})
    name = convolutions.chosen()[0].name
    assert [*work.work({"do": "convolutions", "name": name}, StandIn())] == [{"convolutions": {"name": name}}]
    assert called == []


def replies(listed: dict):
    def reply(job: dict) -> tuple[list, Ended | None]:
        if job["do"] == "list":
            return [{"cases": {}, "compiled": [], "no_convolutions": "", **listed}], None
        if job["name"] == "b":
            return [], Ended(-11, "fault")
        return [{"convolutions": convolution(job["name"])}], None

    return reply


def test_the_stage_goes_on_behind_one_that_died(session):
    one = session(replies({"convolutions": ["a", "b", "c"]}))
    timing.time_convolutions(one, soon())
    assert [entry["name"] for entry in one.record.data["convolutions"]] == ["a", "c"]
    assert one.record.data["failures"] == [{"stage": "convolutions", "name": "b", "what": "ended with -11; fault"}]
    assert one.begin.asked[1:] == [{"do": "convolutions", "name": name} for name in "abc"]


def test_the_stage_says_why_there_is_nothing_to_time(session):
    one = session(replies({"convolutions": [], "no_convolutions": "not in this build"}))
    timing.time_convolutions(one, soon())
    name = {"stage": "convolutions", "name": "convolutions", "what": "not in this build"}
    assert one.record.data["not_measured"] == [name]
    assert record.complete(one.record.data)


def test_table():
    whole = convolution("blocks", "dense blocks", 1000.0, sizes={"n": 64}, goal_us=1200.0, prototype_us={"warm": 900.0})
    whole["warm_us"] = {"fastnest": 1000.0, "fastnest, packing": 1100.0, "eager": 4000.0}
    refused = convolution("c", shape="8_columns", what="RuntimeError: no", warm_us={}, cold_us={})
    data = result() | {"convolutions": [
        whole, convolution("a"), convolution("b", shape="4_lines", own=12.0), refused,
        convolution("d", sizes={"n": 8, "px": 56, "c": 128}, prototype_us={}), convolution("e", "1x1"),
    ]}  # fmt: skip
    said = table.markdown(data)
    assert "| N | fastnest | with packing | cold | eager | x eager | prototype | x prototype | goal |" in said
    assert "| 64 | 1 ms | 1.1 ms | 2 ms | 4 ms | 4.00 | 900.0 us | 0.90 | 1.2 ms |" in said
    assert "prototype | x prototype | library | x library | 4_lines |\n" in said
    # The roofline: 1e7 bytes at 1e12 and 1e9 flops at 1e14 take 10 us each, a cold call 20.
    assert "| 64 | 56 | 128 | 10.0 us | 20.0 us | 50% | 11.0 us | 1.10 | 25.0 us | 2.50 | 12.0 us |" in said
    assert "| 8 | 56 | 128 | 10.0 us | 20.0 us | 50% | - | - | 25.0 us | 2.50 | - |" in said
    assert re.search(r"\*\*1x1\*\*\n\n.*x library \|\n", said)
    assert "### Convolutions" not in table.markdown(result())


def test_lines_as_they_are_found():
    data = {**FACTS, "rates": RATES}
    assert table.line_of("convolutions", convolution("a"), data) == "a: 10.0 us, x library 2.50, x prototype 1.10"
    assert table.line_of("convolutions", convolution("a", what="no"), data) == "a: no"


def test_a_size_of_which_only_a_forced_shape_was_reached():
    found = table.convolutions({"rates": {}, "convolutions": [convolution("a", shape="4_lines")]})
    assert found[-1].endswith("| 64 | 56 | 128 | - | - | - | - | - | - | - | 10.0 us |")
