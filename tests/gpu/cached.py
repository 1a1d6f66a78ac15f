"""Compiles a case's peer, or measures beside it, on the CPU; how often the cache on disk had it: cached.py WAY."""

import json
import sys

from gpu.stand_in import StandIn
from torch._dynamo.utils import counters

from fastnest.benchmarks.gpu import device, measure, work
from fastnest.benchmarks.problem import Case


class WithSettings(StandIn):
    """A stand-in that sets how torch multiplies float32, which torch.compile's caches depend on."""

    take_float32 = device.Gpu.take_float32


case = Case("dense_chain", "forward", "float32", {"n": 9, "in": 16, "d": 8, "l": 2, "h": 0}, ("eager", "compile"))
here = WithSettings()
work.begin(here)
if sys.argv[1] == "compile":
    measure.compile_first(case, "compile", here)
else:
    for tf32 in (True, False):  # as the rates of products do
        here.take_float32(tf32=tf32)
    measure.measure(case, case.peers, here, seconds=0.1)
found = counters["inductor"]
print(json.dumps({way: found[f"fxgraph_cache_{way}"] for way in ("hit", "miss")}))
