"""A built site, read from its files: what every page links to, loads, and can be linked at."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The ids of one page, and the addresses it links to (anchors) and loads (pictures, scripts, styles)."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.ids, self.links, self.loads = path, set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found.get("href"):
            self.loads.append(found["href"])
        elif found.get("src"):
            self.loads.append(found["src"])


def read(folder: Path) -> dict[Path, Page]:
    """Every page; not 404.html, whose addresses begin at a server's root."""
    paths = (path.resolve() for path in folder.rglob("*.html") if path.name != "404.html")
    return {path: Page(path) for path in paths}


def broken(pages: dict[Path, Page]) -> list[str]:
    """Addresses that lead nowhere, and what would be loaded from another place."""
    wrong = []
    for page in pages.values():
        for address in [*page.links, *page.loads]:
            parts = urlsplit(address)
            if parts.scheme in ("data", "mailto"):
                continue
            if parts.scheme or parts.netloc:
                if address in page.loads:
                    wrong.append(f"{page.path.name} loads {address}")
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            if not target.is_file():
                wrong.append(f"{page.path.name}: no file {address}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                wrong.append(f"{page.path.name}: no place {address}")
    return wrong
