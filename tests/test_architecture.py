"""The layers, the list of packages and the limits on sizes hold."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "dlprobe").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def short(path):
    return path.relative_to(ROOT).as_posix()


def test_import_contracts_hold():
    run = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", "--config", ROOT / "pyproject.toml"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_package_on_disk_is_listed_in_pyproject():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {short(path.parent).replace("/", ".") for path in SOURCES if path.name == "__init__.py"}
    on_disk = {name.replace("cli", "dlprobe_cli", 1) if name.split(".")[0] == "cli" else name for name in on_disk}
    assert sorted(on_disk) == sorted(listed)


def test_every_folder_with_code_is_a_package():
    assert [short(path) for path in SOURCES if not (path.parent / "__init__.py").is_file()] == []


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_modules_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 500
    assert path.stem not in BANNED_NAMES
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 70 + docstring_lines(f)] == []


def docstring_lines(function):
    first = function.body[0]
    return first.end_lineno - first.lineno + 1 if ast.get_docstring(function) is not None else 0


def test_packages_stay_small():
    counts = {}
    for path in SOURCES:
        if path.name != "__init__.py":
            counts[path.parent] = counts.get(path.parent, 0) + 1
    crowded = {short(folder): n for folder, n in counts.items() if n > 7 and folder.name not in {"dlprobe", "cli"}}
    assert crowded == {}
