"""Pictures: what they show, that they are drawn, and that those in the README are of the stored results."""

import copy
import re
import struct
from pathlib import Path

import pytest

from fastnest import cli
from fastnest.benchmarks import look, pictures, report, roofline, speedup

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"


def svgs(stem: str, kind: str) -> list[str]:
    return [name for theme in look.THEMES for name in pictures.names(stem, kind, theme) if name.endswith(".svg")]


def test_committed_pictures_are_of_the_committed_results():
    wanted = {}
    for path, result in report.load().items():
        if not report.is_of_gpu(result):
            for kind, shown in pictures.contents(result).items():
                wanted |= dict.fromkeys(svgs(path.stem, kind), pictures.digest(shown))
    remedy = "`fastnest bench --show --pictures docs/images --readme README.md docs/benchmarks.md` draws them"
    assert {name: pictures.digest_in(IMAGES / name) for name in wanted} == wanted, remedy
    left = {path.name for path in IMAGES.glob("*.svg") if pictures.digest_in(path)} - set(wanted)
    assert not left, f"of no stored result: {left}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "benchmarks.md"], ids=lambda page: page.name)
def test_pages_show_the_committed_pictures(page):
    results = {path: result for path, result in report.load().items() if not report.is_of_gpu(result)}
    block = report.between(page.read_text(), "pictures")
    assert block == pictures.markdown(results, IMAGES, page)
    named = re.findall(r'src(?:set)?="([^"]+)"', block)
    assert len(named) == 2 * sum(len(pictures.contents(result)) for result in results.values())
    assert all((page.parent / name).exists() for name in named)


def test_digest_is_of_every_number_and_word(result):
    before = {kind: pictures.digest(shown) for kind, shown in pictures.contents(result).items()}
    assert list(before) == ["speedup", "roofline"]
    for change in (
        lambda one: one["conditions"]["fair"]["rows"][0]["median_us"].update(eager=1999.0),
        lambda one: one["versions"].update(torch="3"),
    ):
        other = copy.deepcopy(result)
        change(other)
        after = {kind: pictures.digest(shown) for kind, shown in pictures.contents(other).items()}
        assert all(after[kind] != before[kind] for kind in before)


def test_speedups_are_sorted_and_keep_losses(result):
    for condition in result["conditions"].values():
        for row in condition["rows"]:
            if row["mode"] == "forward":
                row["median_us"]["compile"] = 400.0
    shown = speedup.shown(result)
    assert [line["label"] for line in shown["lines"]] == ["residual_chain training fp32", "residual_chain forward fp32"]
    assert shown["lines"][1]["compile"] == {"as_shipped": [0.8, 0.8], "fair": [0.8, 0.8]}
    assert shown["lines"][1]["best"]["fair"] == [0.8, 0.8]
    assert shown["lines"][0]["eager"] == {"as_shipped": [8.0, 8.0], "fair": [4.0, 4.0]}
    assert "from 0.80 to 2.00" in speedup.said(shown)


def test_speedup_without_a_peer(result):
    for condition in result["conditions"].values():
        for row in condition["rows"]:
            del row["median_us"]["compile"]
    line = speedup.shown(result)["lines"][0]
    assert line["compile"] == {"as_shipped": [], "fair": []}
    assert line["best"] == line["eager"]


def test_roofline_of_forward_passes(result):
    shown = roofline.shown(result)
    assert shown["condition"] == "fair"
    assert shown["panels"]["float32"]["peak"] == 400.0
    assert shown["panels"]["float32"]["points"][0] == {
        "subject": "residual_chain",
        "intensity": 1e5,
        "fastnest": 200.0,
        "eager": 50.0,
    }
    assert len(shown["panels"]["float32"]["points"]) == 2
    assert shown["bandwidth"] == 10.0
    assert "a copy's bandwidth" in roofline.said(shown)
    del result["conditions"]["fair"]["copy_gbytes_per_second"]
    shown = roofline.shown(result)
    assert shown["bandwidth"] is None
    assert "bandwidth was not measured" in roofline.said(shown)


def test_rows_of_torchs_own_forward_are_not_shown(result):
    for condition in result["conditions"].values():
        for row in condition["rows"]:
            if row["mode"] == "forward":
                row["ran"]["ops"] = {"reference": 1}
    assert list(pictures.contents(result)) == ["speedup"]
    assert [line["label"] for line in speedup.shown(result)["lines"]] == ["residual_chain training fp32"]
    result["conditions"]["fair"]["rows"] = []
    assert speedup.shown(result)["conditions"] == ["as_shipped"]


def test_nothing_to_show_is_no_picture(result):
    for condition in result["conditions"].values():
        condition["rows"] = [row for row in condition["rows"] if row["mode"] == "train"]
    assert list(pictures.contents(result)) == ["speedup"]
    for condition in result["conditions"].values():
        condition["rows"] = []
    assert pictures.contents(result) == {}


@pytest.mark.parametrize("bandwidth", [None, 20.0])
def test_draws_every_kind_theme_and_format(result, tmp_path, bandwidth):
    pytest.importorskip("matplotlib")
    for condition in result["conditions"].values():
        condition["copy_gbytes_per_second"] = bandwidth
    paths = pictures.draw("some-cpu", result, tmp_path / "new")
    assert len(paths) == len(set(paths)) == 2 * 2 * 2
    shown = pictures.contents(result)
    for path in paths:
        kind = path.stem.split("-")[2]
        assert pictures.digest_in(path) == pictures.digest(shown[kind])
        if path.suffix == ".png":
            data = path.read_bytes()
            assert data.startswith(b"\x89PNG")
            assert struct.unpack(">I", data[16:20])[0] == pytest.approx(look.WIDTH * pictures.DPI, abs=1)
    again = pictures.draw("some-cpu", result, tmp_path / "again")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_pictures_of_what(tmp_path, capsys):
    assert cli.main(["bench", "--pictures", str(tmp_path)]) == 2
    assert "need --show" in capsys.readouterr().err
    card = report.RESULTS / "nvidia-h200.json"
    assert cli.main(["bench", "--show", str(card), "--pictures", str(tmp_path)]) == 2
    assert "not a run of `make gpu`" in capsys.readouterr().err
