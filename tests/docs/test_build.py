"""The documentation builds without a warning, and what it links to, shows and names is there."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from docs.pages import ROOT
from docs.site import broken, read

import fastnest

for package in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(package)

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """What `make docs` builds, in a folder of its own."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_links_and_pictures(site):
    pages = read(site)
    assert len(pages) > 10
    assert broken(pages) == []


def test_checker_finds_what_is_broken(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html#there">b</a><a href="#here">a</a><img src="c.png">')
    (tmp_path / "b.html").write_text('<a href="a.html#here">a</a><script src="https://example.org/x.js"></script>')
    assert set(broken(read(tmp_path))) == {
        "a.html: no place b.html#there",
        "a.html: no file c.png",
        "b.html loads https://example.org/x.js",
    }


@pytest.mark.parametrize("name", ["fastnest", "functional", "nn", "models", "theory"])
def test_reference_has_every_public_name(site, name):
    module = fastnest if name == "fastnest" else getattr(fastnest, name)
    modules = {"functional", "nn", "models", "theory"} if module is fastnest else set()
    headings = re.findall(r'<h[23] id="fastnest\.([\w.]+)"', (site / "api" / f"{name}.html").read_text())
    assert {heading.rpartition(".")[2] for heading in headings} >= set(module.__all__) - modules


# A window's load event waits for its frames, and --dump-dom for that event's handlers.
PROBE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body>FRAMES<script>
window.onload = () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement, where = page.location.pathname;
    const window = `in a window of ${frame.width}`;
    if (root.scrollWidth > root.clientWidth) found.push(`${where} is ${root.scrollWidth} wide ${window}`);
    for (const image of page.images)
      if (!image.complete || !image.naturalWidth) found.push(`${where} does not show ${image.src} ${window}`);
  }
  document.body.innerHTML = `<pre id="found">${JSON.stringify(found)}</pre>`;
};
</script>"""


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH: apt-get install chromium")
def test_pages_in_a_browser(site, tmp_path):
    """No page is wider than a desktop's or a telephone's window, every picture is drawn, the console is silent."""
    folder = shutil.copytree(site, tmp_path / "site")
    pages = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.html") if path.name != "404.html")
    frames = [f'<iframe src="{page}" width="{width}" height="800"></iframe>' for page in pages for width in (1280, 360)]
    (folder / "probe.html").write_text(PROBE.replace("FRAMES", "".join(frames)))
    handler = functools.partial(Silent, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        words += ["--enable-logging=stderr", "--dump-dom"]
        words += [f"http://127.0.0.1:{server.server_address[1]}/probe.html"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        server.shutdown()
    said = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert said, f"the probe did not end:\n{done.stderr[-2000:]}"
    assert json.loads(said[1]) == []
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
