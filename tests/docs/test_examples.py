"""Every Python example of the documentation runs as it stands there, and every command is one that there is."""

import re
import shlex
import sys

import pytest
import real_models
import torch
from docs.pages import ROOT, blocks, commands, pages

from fastnest import _backend, cli
from fastnest.benchmarks.gpu import run as gpu_run

PAGES = [page for page in pages() if blocks(page, "python")]


@pytest.fixture
def torchvision(monkeypatch):
    """`from torchvision.models import densenet121`, also beside a torch that torchvision was not built for."""
    if real_models.import_error("torchvision"):
        monkeypatch.setitem(sys.modules, "torchvision.models", real_models.load("torchvision.models.densenet"))
        monkeypatch.setitem(sys.modules, "torchvision", type(sys)("torchvision"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page, torchvision, one_thread, tmp_path, monkeypatch, capsys):
    """One namespace for a page, from its top to its end; what a page shows as output was printed."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    said = capsys.readouterr().out
    for shown in blocks(page, "text") if _backend.CPP_IS_BUILT else ():
        assert shown.text.strip() in said


@pytest.mark.parametrize("page", [page for page in pages() if commands(page)], ids=lambda page: page.name)
def test_commands_exist(page):
    """`fastnest` and `make gpu` take the options of every line, and the Makefile has every target."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in commands(page):
        program, *words = shlex.split(line, comments=True)
        if program == "make":
            assert {word for word in words if "=" not in word} <= targets, line
            for options in (word.removeprefix("GPU=") for word in words if word.startswith("GPU=")):
                gpu_run.parser().parse_args(shlex.split(options))
        else:
            cli.parser().parse_args(words[words.index("fastnest") + 1 :] if program == "torchrun" else words)
