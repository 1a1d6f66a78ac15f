"""`pytest benchmarks --benchmark-compare` fails where fastnest has lost more than a fifth of its speed against eager.

Ratios are compared, not times: a slow moment of the machine slows eager too. They come from the run that
--benchmark-compare loads (saved by --benchmark-save or --benchmark-autosave) or, where none is saved, from
results/ of this machine.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pytest
import torch

from . import machine, report

SLOWER = 0.2
Medians = dict[str, dict[str, float]]  # case -> contestant -> median of its times, in any unit


@dataclass(frozen=True)
class Entry:
    """A case's eager / fastnest, stored and now."""

    name: str
    stored: float
    now: float

    @property
    def slowdown(self) -> float:
        """How much longer fastnest takes than it would at the stored ratio: 0.3 is 30 % longer."""
        return self.stored / self.now - 1

    @property
    def failed(self) -> bool:
        return self.slowdown > SLOWER


def compare(stored: Medians, now: Medians) -> list[Entry]:
    """The cases of which both have fastnest and eager, the slowest first."""
    before, after = _ratios(stored), _ratios(now)
    entries = [Entry(name, before[name], ratio) for name, ratio in after.items() if name in before]
    return sorted(entries, key=lambda entry: -entry.slowdown)


def _ratios(medians: Medians) -> dict[str, float]:
    return {name: one["eager"] / one["fastnest"] for name, one in medians.items() if {"eager", "fastnest"} <= set(one)}


def of_this_machine() -> tuple[str, Medians]:
    """(files, medians) that results/ has of this machine with as many threads, as shipped; else pytest.UsageError."""
    here, threads = machine.slug(machine.facts()), torch.get_num_threads()
    names, medians = [], {}
    stored = report.load() if any(report.RESULTS.glob("*.json")) else {}
    for path, result in stored.items():
        condition = None if report.is_of_gpu(result) else result["conditions"].get("as_shipped")
        if condition and machine.slug(result["machine"]) == here and condition["threads"] == threads:
            names.append(path.name)
            medians |= {row["name"]: row["median_us"] for row in condition["rows"]}
    if not medians:
        raise pytest.UsageError(
            f"--benchmark-compare: results/ has none of this machine ({here}, {threads} threads). "
            "`fastnest bench --full` makes them; or save a run of yours with --benchmark-autosave and compare with that"
        )
    return ", ".join(names), medians


def of_pytest(benchmarks: Iterable[dict]) -> Medians:
    """Medians of what pytest-benchmark measured or saved."""
    medians: Medians = {}
    for one in benchmarks:
        contestant = one["extra_info"].get("contestant")
        if contestant is not None:
            medians.setdefault(one["group"], {})[contestant] = one.get("stats", one)["median"]
    return medians


def lines(entries: Sequence[Entry]) -> list[str]:
    """A table of entries."""
    width = max(len(entry.name) for entry in entries)
    head = f"{'eager / fastnest':<{width}}  stored    now  fastnest takes"
    return [head, *(f"{e.name:<{width}}  {e.stored:6.2f} {e.now:6.2f}  {1 + e.slowdown:13.0%}" for e in entries)]


class Watch:
    """The plugin: takes what --benchmark-compare loads, and what was measured, and judges at the end."""

    def __init__(self, fallback: Callable[[], tuple[str, Medians]] = of_this_machine):
        self.fallback = fallback
        self.source, self.stored, self.now, self.entries = "", {}, {}, []

    def pytest_benchmark_compare_machine_info(self, compared_benchmark):
        self.source = f"the saved run of {compared_benchmark['datetime'][:10]}"
        self.stored = of_pytest(compared_benchmark["benchmarks"])

    def pytest_sessionstart(self, session):
        """Before anything is measured, for which a run without ratios would be a waste."""
        if not self.source:
            asked = session.config.getoption("benchmark_compare")
            if asked is not True:
                raise pytest.UsageError(f"--benchmark-compare={asked}: no saved run matches")
            self.source, self.stored = self.fallback()

    @pytest.hookimpl(tryfirst=True)
    def pytest_benchmark_group_stats(self, benchmarks):
        self.now = of_pytest(one for one in benchmarks if one["path"] is None)

    def pytest_sessionfinish(self, session, exitstatus):
        self.entries = compare(self.stored, self.now)
        failed = any(entry.failed for entry in self.entries)
        if exitstatus == pytest.ExitCode.OK and not session.config.option.collectonly and (failed or not self.entries):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter, config):
        if config.option.collectonly:
            return
        terminalreporter.section(f"ratios against {self.source}")
        failed = [entry for entry in self.entries if entry.failed]
        if failed:
            for line in lines(failed):
                terminalreporter.write_line(line, red=True)
        without = sorted(set(self.now) - {entry.name for entry in self.entries})
        said = f"{len(self.entries)} cases compared, {len(failed)} slower by more than {SLOWER:.0%}"
        if without:
            said += f"; without a ratio, stored or now: {', '.join(without)}"
        bad = failed or not self.entries
        terminalreporter.write_line(said, red=bool(bad), green=not bad)
