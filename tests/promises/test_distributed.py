"""Two processes under DistributedDataParallel and FSDP2 end with the weights of one that sees the whole batch."""

import pytest
import torch
from children import run_both
from promises.every_op import every_op, images
from torch.nn import functional as F

STEPS = 3
# Batch norms are in evaluation: their running statistics are the same for every image, however these are shared out.
MODES = ("ddp", "unused", "static", "fsdp2")
WORKER = """
import sys
import torch
import torch.distributed as dist
from promises.test_distributed import MODES, train, wrapped

torch.set_num_threads(1)
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for mode in MODES:
    model, whole = wrapped(mode)
    train(model, slice(rank, None, 2))
    torch.save(whole(model), f"{folder}/{mode}.{rank}.pt")
dist.destroy_process_group()
"""


class Twice(torch.nn.Module):
    """The network with a part that nothing reads, and one that is read twice."""

    def __init__(self):
        super().__init__()
        self.network = every_op(normalise=False)
        self.unused = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.network(x) + self.network(0.5 * x)


def model_of(mode):
    torch.manual_seed(0)
    return Twice() if mode in ("unused", "static") else every_op(normalise=False)


def wrapped(mode):
    """(the model as this mode wraps it, what gives its whole state back)."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    model = model_of(mode)
    if mode == "fsdp2":
        for child in model.children():
            fully_shard(child)
        options = StateDictOptions(full_state_dict=True)
        return fully_shard(model), lambda sharded: get_model_state_dict(sharded, options=options)
    options = {"unused": {"find_unused_parameters": True}, "static": {"static_graph": True}}.get(mode, {})
    return DistributedDataParallel(model, **options), lambda model: model.module.state_dict()


def train(model, share):
    """STEPS steps on a share of every batch of 8; the loss is a mean over images."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = images(8 * STEPS).split(8), torch.arange(8 * STEPS).remainder(4).split(8)
    for step in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x[step][share]), y[step][share]).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes left what they ended with, in every mode."""
    path = tmp_path_factory.mktemp("processes")
    run_both(WORKER, path)
    return path


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_are_one(mode, folder):
    alone = model_of(mode)
    before = {name: value.clone() for name, value in alone.state_dict().items()}
    train(alone, slice(None))
    first, second = (torch.load(folder / f"{mode}.{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys() == before.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
    moved = {name for name, value in alone.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in before if "conv" in name} <= moved
