"""Pictures of benchmark results, light and dark, as SVG and PNG: `fastnest bench --show --pictures FOLDER`.

Every file carries a digest of what it shows, so that a test can tell whether it is of the JSON beside it without
drawing it again.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from fastnest._optional import optional

from . import look, report, roofline, speedup

KINDS = {"speedup": speedup, "roofline": roofline}
FORMATS = ("svg", "png")
DPI = 110
MARK = "sha256 of what is shown: "


def digest(shown: dict) -> str:
    """Of the numbers and words in a picture."""
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def digest_in(path: Path) -> str | None:
    """The digest that a picture carries; None if it carries none."""
    found = re.search(MARK.encode() + rb"([0-9a-f]{64})", Path(path).read_bytes())
    return found and found[1].decode()


def contents(result: dict) -> dict[str, dict]:
    """kind -> all that its pictures show of a result; without the kinds that have nothing to show."""
    shown = {kind: module.shown(result) for kind, module in KINDS.items()}
    return {kind: {"machine": report.machine(result), **data} for kind, data in shown.items() if data}


def names(stem: str, kind: str, theme: str) -> list[str]:
    """The files of one picture."""
    return [f"{stem}-{kind}-{theme}.{suffix}" for suffix in FORMATS]


def draw(stem: str, result: dict, folder: Path) -> list[Path]:
    """Writes all pictures of a result; returns their paths."""
    matplotlib = optional("matplotlib", "plot")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, data in contents(result).items():
        for name, theme in look.THEMES.items():
            with matplotlib.rc_context(look.style(theme)):
                figure = KINDS[kind].figure(data, theme)
                for path in (folder / file for file in names(stem, kind, name)):
                    unsaid = "Date" if path.suffix == ".svg" else "Software"  # which differ from run to run
                    figure.savefig(path, dpi=DPI, metadata={"Description": MARK + digest(data), unsaid: None})
                    paths.append(path)
    return paths


def markdown(results: Mapping[Path, dict], folder: Path, page: Path) -> str:
    """The pictures in `folder` of these results, as a page shows them by day and by night, and what they show."""
    parts = []
    for path, result in results.items():
        for kind, data in contents(result).items():
            light, dark = (
                Path(os.path.relpath(folder / names(path.stem, kind, theme)[0], page.parent)).as_posix()
                for theme in look.THEMES
            )
            said = KINDS[kind].said(data)
            parts.append(
                f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
                f'<img src="{light}" width="100%" alt="{KINDS[kind].ALT}">\n</picture>\n\n{said} {data["machine"]}.\n'
            )
    return "\n".join(parts)
