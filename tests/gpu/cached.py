"""Compiles a case's peer, or measures beside it, on the CPU; how often the cache on disk had it: cached.py WAY."""

import json
import sys

from gpu.stand_in import StandIn
from torch._dynamo.utils import counters

from fastnest.benchmarks.gpu import measure
from fastnest.benchmarks.problem import Case

case = Case("dense_chain", "forward", "float32", {"n": 9, "in": 16, "d": 8, "l": 2, "h": 0}, ("eager", "compile"))
if sys.argv[1] == "compile":
    measure.compile_first(case, "compile", StandIn())
else:
    measure.measure(case, case.peers, StandIn(), seconds=0.1)
found = counters["inductor"]
print(json.dumps({way: found[f"fxgraph_cache_{way}"] for way in ("hit", "miss")}))
