"""Every example runs, its claim holds after little training, and its picture is written."""

import importlib
from pathlib import Path

import pytest

import adding_blocks
import coupling
import diminishing_features
import stopping_at_a_saddle

for package in ("sklearn", "matplotlib", "scipy", "tqdm"):
    pytest.importorskip(package)

EXAMPLES = Path(adding_blocks.__file__).parent


def arguments(out: Path, epochs: int) -> list[str]:
    return ["--out", str(out), "--epochs", str(epochs)]


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_adding_blocks(tmp_path, capsys):
    networks = adding_blocks.main(arguments(tmp_path / "new", 4))
    assert is_picture(tmp_path / "new" / "adding_blocks.png")
    wide, narrow = (list(networks[width].values()) for width in (adding_blocks.WIDE, adding_blocks.NARROW))
    for one in wide:
        assert one.head_is_monotone
        assert one.stream_is_monotone
        assert not adding_blocks.rises(one)
        assert one.stream_risk == pytest.approx(one.head_risk, rel=1e-9)
    for one in narrow:
        assert one.head_is_monotone
        assert one.stream_is_monotone == (not adding_blocks.rises(one))
        assert one.stream_risk[-1] > one.head_risk[-1]
    assert "best linear predictor: " in capsys.readouterr().out


def test_coupling(tmp_path, monkeypatch):
    monkeypatch.setattr(coupling, "WIDTHS", (16, 64, coupling.ENOUGH, 192))
    rows = coupling.main(arguments(tmp_path, 3))
    assert is_picture(tmp_path / "coupling.png")
    for row in rows:
        wide = row.width >= coupling.ENOUGH
        assert bool(row.assumptions.fourth) == row.assumptions.guaranteed == wide
        assert row.gap.how == ("Theorem 1" if wide else "reduced-rank regression")
        assert row.risk >= row.gap.risk
        assert abs(row.relative) <= 1e-9 if wide else row.relative > 1e-3


def test_diminishing_features(tmp_path):
    profiles = diminishing_features.main(arguments(tmp_path, 3))
    assert is_picture(tmp_path / "diminishing_features.png")
    for one in profiles.values():
        assert len(one.unpredictability) == diminishing_features.BLOCKS + 1
        assert one.unpredictability[0] == pytest.approx(1)
        assert all(0 <= share <= 1 for share in one.unpredictability)
        assert one.head_is_monotone
    narrow, wide, dense = (sum(one.unpredictability[-4:]) for one in profiles.values())
    assert narrow < dense < wide


def test_stopping_at_a_saddle(tmp_path):
    found = stopping_at_a_saddle.main([*arguments(tmp_path, 2), "--steps", "30"])
    assert is_picture(tmp_path / "stopping_at_a_saddle.png")
    saddle, optimum = found.saddle, found.optimum
    assert (saddle.verdict, saddle.rank, saddle.full_rank) == ("strict saddle", stopping_at_a_saddle.RANK, False)
    assert (optimum.verdict, optimum.rank) == ("global minimiser", 10)
    assert optimum.risk == pytest.approx(saddle.least_risk)
    assert min(found.along) < saddle.risk
    assert found.stays[-1] == pytest.approx(saddle.risk)
    assert optimum.risk < found.leaves[-1] < saddle.escaped_risk < saddle.risk


def test_gallery_shows_every_example():
    shown = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        if hasattr(importlib.import_module(path.stem), "main"):
            assert f"]({path.name})" in shown
            assert f"](pictures/{path.stem}.png)" in shown
            assert is_picture(path.parent / "pictures" / f"{path.stem}.png")
            assert (path.parent / "pictures" / f"{path.stem}.png").stat().st_size < 100_000
