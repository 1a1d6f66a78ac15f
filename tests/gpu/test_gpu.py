"""What only a GPU shows, every such job of checks.py in a process of its own; `make gpu` runs all without pytest.

Outputs, gradients, NaN and infinities are in tests/ops, by the same cases on every device that is here; of kernels for
inference alone, they are here.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu import checks, inference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]


def name_of(job: dict) -> str:
    return " ".join(job.values())


JOBS = [
    job
    for job in checks.jobs()
    if job["check"] not in checks.ORDINARY
    or job["dtype"] == "tf32"
    or inference.is_inference(job["op"], job["backend"])
]


@pytest.mark.parametrize("job", JOBS, ids=name_of)
def test_on_a_gpu(job):
    words = [job["op"], job["dtype"], job["check"], "--backend", job["backend"], "--part", job["part"]]
    script = str(Path(checks.__file__))
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    assert done.returncode == 0, f"checks.py {' '.join(words)}\n{done.stdout}{done.stderr}"
