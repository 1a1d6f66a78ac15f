"""The documentation's pages and what is written in them as code."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line of the page where the text begins."""

    language: str
    text: str
    line: int


def pages() -> list[Path]:
    """Every page with examples, the README among them."""
    others = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
    return [*others, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [Block(m[1], m[2], text.count("\n", 0, m.start(2))) for m in FENCE.finditer(text)]
    return [block for block in found if block.language == language]


def commands(page: Path) -> list[str]:
    """Lines of bash blocks and, outside of fences, lines indented by four spaces that begin with a program of ours."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page, "bash") for line in block.text.splitlines()]
    lines += re.findall(r"^    (\S.*)", FENCE.sub("", text), re.M)
    return [line for line in lines if re.match(r"(fastnest|make|torchrun)\s", line)]
