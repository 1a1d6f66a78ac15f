"""The code of the README's section on guarantees runs as it stands there, and says what its comments say."""

import re
from pathlib import Path

import pytest
import torch

import fastnest
from fastnest import theory

pytest.importorskip("scipy")
README = Path(fastnest.__file__).parent.parent / "README.md"


def section(name: str) -> str:
    return re.search(rf"^## {name}\n(.*?)^## ", README.read_text(), re.M | re.S)[1]


def test_guarantees(capsys):
    text = section("Guarantees")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    torch.manual_seed(0)
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    x, y, model = names["x"].double(), names["y"].double(), names["model"]
    assert theory.check_assumptions(model, x, y).guaranteed
    assert abs(theory.risk_gap(model, x, y).gap) <= 1e-9
    assert names["point"].verdict == "global minimiser"
    assert names["risk"] == pytest.approx(names["head"].risk)
    torch.testing.assert_close(names["augmented"](x), model(x))
    torch.testing.assert_close(names["wide"](names["x"]), names["dense"](names["x"]))
    said = capsys.readouterr().out
    assert "assumption 4 holds" in said
    assert "risk of head" in said


def test_guarantees_name_every_public_function():
    text = section("Guarantees")
    for name in theory.__all__:
        if name[0].islower():
            assert f"theory.{name}(" in text, name


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
