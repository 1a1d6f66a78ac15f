"""The JSON of a run: on disk after every entry, of one commit, small."""

import json

import pytest
from gpu import checks
from gpu.result import FACTS, RATES, profile, row

from fastnest.benchmarks.gpu import cases, device, record


def a_test(verdict: str, check: str = "graphs") -> dict:
    return {**dict.fromkeys(record.KEYS["tests"], "a"), "check": check, "verdict": verdict, "what": ""}


def test_it_is_on_disk_after_every_entry(tmp_path):
    path = tmp_path / "out" / "card.json"
    one = record.Record(path, FACTS)
    assert not path.exists()  # nor is what was there before gone
    for what, entry in (("tests", a_test("passed")), ("failures", {"stage": "measure", "name": "a", "what": "b"})):
        one.add(what, entry)
        assert json.loads(path.read_text())[what] == [entry]
    for found in (row("a"), row("b"), row("a", own=5.0)):  # measured again beside more peers
        one.add("rows", found)
    assert [(r["name"], r["graph_us"]["fastnest"]) for r in one.data["rows"]] == [("b", 10.0), ("a", 5.0)]
    assert list(path.parent.iterdir()) == [path]
    assert not record.complete(one.data)
    assert record.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_parts_of_a_run_add_up(tmp_path):
    path = tmp_path / "card.json"
    first = record.Record(path, {**FACTS, "limit_s": 60}, None, ["measure", "profile"])
    first.add("rows", row("a"))
    for stage, name in (("measure", "b"), ("measure", "other"), ("measure", "measure"), ("profile", "b")):
        first.add("failures", {"stage": stage, "name": name, "what": "slow"})
        first.add("not_measured", {"stage": stage, "name": name, "what": "late"})
    before = record.continues(path, {**FACTS, "date": "2026-01-02"})
    second = record.Record(path, {**FACTS, "date": "2026-01-02", "limit_s": 70}, before, ["measure"], "^b")
    assert [r["name"] for r in second.data["rows"]] == ["a"]
    assert second.data["runs"] == [
        {"date": FACTS["date"], "limit_s": 60, "stages": ["measure", "profile"]},
        {"date": "2026-01-02", "limit_s": 70, "stages": ["measure"]},
    ]
    for what in ("failures", "not_measured"):
        left = [(one["stage"], one["name"]) for one in second.data[what]]
        assert left == [("measure", "other"), ("profile", "b")]  # the others will be found out again


def test_what_was_found_stays_where_there_is_no_time_to_find_it_again(tmp_path):
    one = record.Record(tmp_path / "card.json", FACTS)
    for verdict, known in (("passed", "passed"), ("not run", "passed"), ("failed", "failed"), ("not run", "failed")):
        one.add("tests", a_test(verdict))
        assert [found["verdict"] for found in one.data["tests"]] == [known]
    one.add("tests", a_test("not run", "streams"))
    assert [found["verdict"] for found in one.data["tests"]] == ["failed", "not run"]


def test_a_row_leaves_what_another_stage_did_not_reach(tmp_path):
    one = record.Record(tmp_path / "card.json", FACTS)
    late = {"stage": "profile", "name": "a", "what": "no time left"}
    one.add("not_measured", late)
    one.add("rows", row("a"))
    assert one.data["not_measured"] == [late]


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


def test_a_run_in_which_everything_goes_wrong_is_one_file_of_a_few_mebibytes(tmp_path):
    """Every case of a GPU and every check, each with a failure as long as it may be."""
    one = record.Record(tmp_path / "card.json", FACTS)
    one._write = lambda: None  # once, at the end
    long = {"what": "x" * 10**5}
    for case in cases.in_order():
        one.add("rows", row(case.name))
        kernels = [{"name": "k" * device.NAME, "count": 1.0, "us": 1.0}] * device.KERNELS
        one.add("profiles", profile(case.name) | {"of": {who: {"kernels": kernels} for who in ("fastnest", "eager")}})
        for stage in ("measure", "profile", "peers"):
            one.add("failures", {"stage": stage, "name": case.name, **long})
    for job in checks.jobs():
        one.add("tests", {**job, "verdict": "failed", **long})
    del one._write
    one.put("rates", RATES)
    assert len(one.data["failures"]) == 3 * len(cases.in_order())
    assert one.path.stat().st_size < 8 * 2**20
