"""compute-sanitizer on the smallest case of every op that has kernels."""

import re
import shutil

from .children import Ended

# How a tool is called, and what it says where it finds nothing. What torch asks the driver and is refused is no error
# of a kernel.
TOOLS = {
    "memcheck": ("--tool memcheck --report-api-errors no", "ERROR SUMMARY: 0 errors"),
    "racecheck": ("--tool racecheck", "RACECHECK SUMMARY: 0 hazards"),
    "synccheck": ("--tool synccheck", "ERROR SUMMARY: 0 errors"),
}
# By backend: in which dtypes it is sanitized, by which tools. Triton's compiler places barriers itself.
SANITIZED = {
    "triton": (("float32",), ("memcheck", "racecheck")),
    "cuda": (("bfloat16", "float32"), tuple(TOOLS)),
}


def program() -> str | None:
    return shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")


def jobs(checks: list[dict]) -> list[dict]:
    """Of every op and backend that has checks, the tools in turn: memcheck of all comes first."""
    checked: dict[tuple[str, str], set[str]] = {}
    for job in checks:
        checked.setdefault((job["op"], job["backend"]), set()).add(job["dtype"])
    return [
        {"op": op, "backend": backend, "dtype": _as_taken(dtype, dtypes), "tool": tool}
        for tool in TOOLS
        for (op, backend), dtypes in checked.items()
        for dtype in SANITIZED[backend][0]
        if tool in SANITIZED[backend][1]
    ]


def _as_taken(dtype: str, checked: set[str]) -> str:
    """Kernels that are not checked in float32 take it as TF32 alone."""
    return "tf32" if dtype == "float32" and dtype not in checked else dtype


def prefix(found: str, tool: str) -> list[str]:
    """The words in front of a command."""
    return [found, *f"{TOOLS[tool][0]} --target-processes application-only --print-limit 5".split()]


def verdict(tool: str, ended: Ended, found: list[dict]) -> dict:
    """What a sanitizer's words mean. It has to have seen the check pass, too."""
    passed = bool(found) and found[-1]["verdict"] == "passed"
    if ended.status is None or re.search("not supported|Unable to find|LibraryNotLoaded", ended.said):
        return {"verdict": "not run", "what": str(ended)}
    clean = TOOLS[tool][1]
    if passed and clean in ended.said:
        return {"verdict": "passed", "what": clean}
    return {"verdict": "failed", "what": f"{ended.said} {found[-1]['what'] if found else ''}"}
