"""torch.compile, torch.export, AOTInductor: the compiled network has the kernels in it and computes the same."""

import subprocess
import sys

import pytest
import torch
from marks import needs_cpp
from promises.every_op import every_op, gradients, images

from fastnest.testing import OPS

FORWARDS = {f"fastnest.{op}{'' if op == 'batch_stats' else '_forward'}.default" for op in OPS}


def of(graph: torch.fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if "fastnest" in str(node.target)}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_one_graph_for_any_batch(training):
    """Whole (fullgraph), compiled once for every number of images, with gradients.

    Inductor compiles ops in tests/ops/test_ops.py and the network below; it would take a minute for the gradients here.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ours, theirs = (every_op(training=training) for _ in range(2))
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (4, 7, 9):  # no side of an image, with which torch would identify it
        x = images(n)
        actual, expected = compiled(x), theirs(x)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients(ours, actual), gradients(theirs, expected), rtol=1e-3, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=1e-4, atol=1e-5)


@needs_cpp
def test_exported(tmp_path):
    """With every op in it, for any number of images, also once saved and loaded."""
    dynamic = ({0: torch.export.Dim("n", min=2, max=64)},)
    exported = torch.export.export(every_op(), (images(4),), dynamic_shapes=dynamic)
    assert of(exported.graph) == FORWARDS
    torch.export.save(exported, tmp_path / "model.pt2")
    for program in (exported, torch.export.load(tmp_path / "model.pt2")):
        for n in (4, 7):
            torch.testing.assert_close(program.module()(images(n)), every_op()(images(n)))


LOADED = """
import sys
import torch
import torch._inductor.codecache  # torch 2.10's loader uses it and does not import it
import fastnest

x, expected = torch.load(sys.argv[2], weights_only=True)
model = torch._inductor.aoti_load_package(sys.argv[1])
for one, y in zip(x, expected):
    torch.testing.assert_close(model(one), y, rtol=1e-4, atol=1e-5)
"""


@needs_cpp
def test_aot_inductor(tmp_path):
    """Compiled ahead of time, then loaded and run by a process that has no Python of the model."""
    dynamic = ({0: torch.export.Dim("n", min=2, max=64)},)
    exported = torch.export.export(every_op(), (images(4),), dynamic_shapes=dynamic)
    assert of(exported.graph) == FORWARDS
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
    x = [images(4), images(7)]
    with torch.no_grad():
        torch.save((x, [every_op()(one) for one in x]), tmp_path / "given.pt")
    command = [sys.executable, "-c", LOADED, package, str(tmp_path / "given.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
