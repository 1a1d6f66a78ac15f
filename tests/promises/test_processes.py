"""Forked processes, interrupts, and memory that is not there: the process and the model stay usable."""

import signal
import sys
import time

import children
import pytest
import torch
from marks import needs_cpp
from promises.every_op import every_op, images

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's forks and limits"),
    needs_cpp,
]

FORKED = """
import os, threading, torch
from promises.every_op import every_op, images

torch.set_num_threads(1)  # libgomp's own threads do not survive a fork, whoever uses them
model, x = every_op(), images(4)
with torch.no_grad():
    expected = model(x)

def busy(stop):
    with torch.no_grad():
        while not stop.is_set():
            every_op()(x)

stop = threading.Event()
threads = [threading.Thread(target=busy, args=(stop,)) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        with torch.no_grad():
            os._exit(0 if torch.equal(model(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
"""


def test_forks_beside_busy_threads():
    """A child finds the kernels' scratch memory as usable as the parent does, whatever other threads did meanwhile."""
    children.run(FORKED)


LOADER = """
import torch
from promises.every_op import every_op, images
from torch.utils.data import DataLoader, Dataset

model = every_op()

class Outputs(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        with torch.no_grad():
            return model(images(2 + i))[0]

torch.set_num_threads(2)
with torch.no_grad():
    expected = torch.stack([model(images(2 + i))[0] for i in range(8)])
found = torch.cat(list(DataLoader(Outputs(), batch_size=4, num_workers=2, multiprocessing_context="fork")))
torch.testing.assert_close(found, expected)
"""


def test_workers_of_a_data_loader():
    children.run(LOADER)


INTERRUPTED = """
import copy, sys, torch
from promises.every_op import every_op, images
from fastnest import functional

torch.set_num_threads(1)
model, x = every_op(training=True), images(4)
before = copy.deepcopy(model)
rows, down = torch.ones(20000, 512), torch.ones(32, 128, 512) / 512
up = down.transpose(1, 2).contiguous()
functional.residual_chain(rows[:100], down, up)
print("ready", flush=True)
calls = 0
try:
    while True:
        functional.residual_chain(rows, down, up)  # a second or more
        calls += 1
except KeyboardInterrupt:
    pass
y, expected = model(x), before(x)
assert torch.equal(y, expected)
y.sum().backward()
assert all(parameter.grad is not None for parameter in model.parameters())
print("usable")
"""


def test_interrupted():
    """Ctrl-C in a kernel arrives as KeyboardInterrupt when the call ends, and everything works afterwards."""
    process = children.start(INTERRUPTED)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert children.finish(process) == ["usable\n"]


STARVED = """
import copy, ctypes, resource, torch
import fastnest
from promises.every_op import every_op, images
from fastnest import functional, nn

torch.set_num_threads(1)
M_MMAP_THRESHOLD = -3
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)  # what is freed is gone, and has to be asked for again
block, x = nn.Bottleneck2d(64, 48).train(), torch.randn(16, 64, 64, 64).contiguous(memory_format=torch.channels_last)
x.requires_grad_()

def step():
    y = block(x)
    y.square().mean().backward()
    return y.detach()

def statistics():
    return {name: value.clone() for name, value in block.named_buffers()}

state = copy.deepcopy(block.state_dict())
expected = step()
moved = statistics()
gradient = block.conv2.weight.grad.clone()

def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

soft, hard = resource.getrlimit(resource.RLIMIT_AS)
failed = {"forward": 0, "backward": 0}
for megabytes in (*range(1, 200, 9), 4096):
    block.load_state_dict(state)
    block.zero_grad()
    y = x.grad = None
    fastnest._C.release_scratch()
    before, stage = statistics(), "forward"
    resource.setrlimit(resource.RLIMIT_AS, (used() + megabytes * 2**20, hard))
    try:
        y = block(x)
        stage = "backward"
        y.square().mean().backward()
        stage = None
    except (RuntimeError, MemoryError) as error:
        failed[stage] += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    wanted = before if stage == "forward" else moved
    for name, value in statistics().items():
        assert torch.equal(value, wanted[name]), (megabytes, stage, name)
assert stage is None, "4 GiB are enough"
block.load_state_dict(state), block.zero_grad()
assert torch.equal(step(), expected)
assert torch.equal(block.conv2.weight.grad, gradient)
print(failed["forward"] > 0, failed["backward"] > 0)
"""


def test_out_of_memory():
    """Whatever allocation fails raises; statistics move with a whole forward or not at all; the block works again."""
    assert children.run(STARVED) == "True True\n"


def test_more_rows_than_memory_holds():
    x = torch.ones(1, 13).expand(2**46, 13)
    with torch.no_grad(), pytest.raises((RuntimeError, MemoryError)):
        every_op().residual_chain(x)
    assert every_op()(images(3)).isfinite().all()
