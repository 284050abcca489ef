"""The site builds without a complaint and without a network, and a reader's browser fetches nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Whatever opens a connection ends the build.
OFFLINE = """
import runpy, sys
def hook(event, args):
    if event in {"socket.connect", "socket.getaddrinfo"}:
        raise RuntimeError(f"{event} {args}")
sys.addaudithook(hook)
sys.argv = ["mkdocs", *sys.argv[1:]]
runpy.run_module("mkdocs", run_name="__main__")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE, "build", "--strict", "--site-dir", folder],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_every_page_is_built(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert len(pages) > 30
    assert sorted(str(page) for page in pages if not (site / page).is_file()) == []


def test_nothing_is_loaded_from_elsewhere(site):
    loading = re.compile(
        r"""<(?:script|img|iframe|source|video)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>"""
        r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preconnect|preload|dns-prefetch|icon)\b[^>]*\bhref=["']?(?:https?:)?//[^>]*>"""
        r"""|<link\b[^>]*\bhref=["']?(?:https?:)?//[^>]*\brel=["']?(?:stylesheet|preconnect|preload|dns-prefetch|icon)\b[^>]*>"""
    )
    assert loading.search('<link rel="stylesheet" href="https://fonts.example/css">')
    assert loading.search("<script src=//cdn.example/a.js></script>")
    found = [
        (path.name, tag) for path in site.rglob("*.html") for tag in loading.findall(path.read_text(encoding="utf-8"))
    ]
    assert found == []
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles
    assert not any(re.search(r"url\(\s*[\"']?(?:https?:)?//|@import\s+[\"'](?:https?:)?//", text) for text in styles)


def test_no_page_makes_the_theme_fetch_a_library(site):
    """The theme loads Mermaid and a repository's stars from the network where a page asks for them."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"""class=["']?mermaid|data-md-component=["']?source""", text), path


def test_signatures_and_docstrings_are_rendered(site):
    text = (site / "reference/api/dlprobe.data.html").read_text(encoding="utf-8")
    assert "label_patches" in text
    assert "coverage" in text
    text = re.sub(r"<[^>]+>", "", (site / "reference/api/dlprobe.localization.html").read_text(encoding="utf-8"))
    assert re.search(r"score_map\(\s*image", text)
    assert "Raises" in text
