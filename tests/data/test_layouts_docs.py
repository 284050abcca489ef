"""docs/layouts.md names every layout, every option and every finding that the code can yield."""

import ast
from inspect import signature
from pathlib import Path

import pytest

from dlprobe.data.layouts import LAYOUTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "layouts.md").read_text(encoding="utf-8")
SOURCES = [*(ROOT / "dlprobe/data/layouts").rglob("*.py"), *(ROOT / "dlprobe/data/audit").rglob("*.py")]
SOURCES.append(ROOT / "dlprobe/data/scan.py")


@pytest.mark.parametrize("name", [name for name in LAYOUTS if not name.startswith("test-")])
def test_every_layout_and_its_options_are_described(name):
    assert f"`{name}`" in PAGE
    assert all(f"`{option}`" in PAGE for option in list(signature(LAYOUTS[name]).parameters)[1:])


def names_in(source):
    """Return the constant names that a module gives to findings and rejects."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            place = {"Finding": 0, "Reject": 2, "_Fault": 0, "_difference": 0, "_finding": 0}.get(node.func.id)
            if place is not None and len(node.args) > place and isinstance(node.args[place], ast.Constant):
                yield node.args[place].value


def test_every_finding_is_described():
    names = {name for path in SOURCES for name in names_in(path.read_text(encoding="utf-8"))}
    assert len(names) > 25
    assert sorted(name for name in names if f"`{name}`" not in PAGE) == []
