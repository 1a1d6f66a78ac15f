"""The JSON of a run: on disk after every entry, of one commit, small."""

import json

import pytest
from gpu.result import FACTS, row

from fastnest.benchmarks.gpu import record


def test_it_is_on_disk_after_every_entry(tmp_path):
    path = tmp_path / "out" / "card.json"
    one = record.Record(path, FACTS)
    assert not path.exists()  # nor is what was there before gone
    for what, entry in (
        ("tests", {**dict.fromkeys(record.KEYS["tests"], "a"), "verdict": "passed"}),
        ("failures", {"stage": "measure", "name": "a", "what": "b"}),
    ):
        one.add(what, entry)
        assert json.loads(path.read_text())[what] == [entry]
    one.add("not_measured", {"stage": "measure", "name": "a", "what": "b"})
    for found in (row("a"), row("b"), row("a", own=5.0)):  # measured again beside more peers
        one.add("rows", found)
    assert [(r["name"], r["graph_us"]["fastnest"]) for r in one.data["rows"]] == [("b", 10.0), ("a", 5.0)]
    assert one.data["not_measured"] == []
    assert list(path.parent.iterdir()) == [path]
    assert not record.complete(one.data)
    assert record.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_parts_of_a_run_add_up(tmp_path):
    path = tmp_path / "card.json"
    first = record.Record(path, FACTS)
    first.add("rows", row("a"))
    for stage, name in (("measure", "b"), ("measure", "other"), ("profile", "b")):
        first.add("failures", {"stage": stage, "name": name, "what": "slow"})
        first.add("not_measured", {"stage": stage, "name": name, "what": "late"})
    before = record.continues(path, {**FACTS, "date": "2026-01-02"})
    second = record.Record(path, {**FACTS, "date": "2026-01-02"}, before, ["measure"], "^b")
    assert [r["name"] for r in second.data["rows"]] == ["a"]
    assert second.data["date"] == FACTS["date"]
    for what in ("failures", "not_measured"):
        left = [(one["stage"], one["name"]) for one in second.data[what]]
        assert left == [("measure", "other"), ("profile", "b")]  # the others will be found out again


@pytest.mark.parametrize(
    "facts",
    [{"commit": "def"}, {"commit": "abc+changes"}, {"commit": ""}, {"torch": "2.12"}, {"card": "Stand In (R) 6"}],
)
def test_another_commit_or_machine_begins_anew(tmp_path, facts):
    path = tmp_path / "card.json"
    record.Record(path, FACTS | facts).add("rows", row("a"))
    if "+changes" in facts.get("commit", "") or not facts.get("commit", "x"):
        assert record.continues(path, FACTS | facts) is None  # it says nothing of what the files were
    assert record.continues(path, FACTS) is None
    assert record.continues(tmp_path / "none.json", FACTS) is None


def test_a_run_in_which_everything_goes_wrong_fits(tmp_path):
    """All results of a run are in one file of a few MiB, whatever kernels say of themselves."""
    one = record.Record(tmp_path / "card.json", FACTS)
    one.add("failures", {"stage": "measure", "name": "a", "what": "x" * 10**6})
    assert len(one.data["failures"][0]["what"]) == record.LONGEST
    assert 500 * 2 * record.LONGEST < 2**23  # 500 tests, as many failures
