"""The reference pages say what the program says now, and docstrings name the parameters that there are."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_pages_are_what_the_program_says(generator):
    wanted = generator.pages()
    found = {path.relative_to(FOLDER).as_posix(): path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.md")}
    stale = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    assert stale == [], "run `python docs/reference/generate.py` and commit what it writes"


def test_the_page_of_commands_holds_what_help_prints():
    """Every option and every word of help, as a user's terminal shows them."""
    page = (FOLDER / "cli.md").read_text(encoding="utf-8")
    for path in (("fit",), ("cache", "merge"), ("extract",)):
        run = subprocess.run(
            [sys.executable, "-c", "from dlprobe_cli.main import app; app()", *path, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={"COLUMNS": "400", "TERMINAL_WIDTH": "400", "PATH": "", "OMP_NUM_THREADS": "1"},
        )
        section = page.split(f"## dlprobe {' '.join(path)}\n")[1].split("\n## ")[0]
        printed = set(re.findall(r"--[a-z][a-z-]*", run.stdout)) - {"--help"}
        assert printed == set(re.findall(r"(?<=[` ])--[a-z][a-z-]*(?=[`, ])", section)), path
        for default in re.findall(r"\[default: (?!None)([^\]]+)\]", run.stdout):
            assert f"`{default}`" in section or f"`--{default}`" in section


def parameters_of(docstring):
    """Return the names in the section Parameters of a numpydoc docstring."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n-+\n|\Z)", docstring, re.DOTALL | re.MULTILINE)
    lines = section[1].splitlines() if section else []
    heads = [line.split(" :")[0] for line in lines if line and not line.startswith(" ")]
    return [name.strip().lstrip("*") for head in heads for name in head.split(",")]


def test_every_documented_parameter_exists(generator):
    wrong, looked_at = [], 0
    for package in generator.public_packages():
        for name in generator.public_names(package):
            found = getattr(package, name)
            if not (inspect.isclass(found) or inspect.isfunction(found)):
                continue
            assert found.__doc__, f"{package.__name__}.{name} has no docstring"
            documented = parameters_of(inspect.getdoc(found))
            if not documented:
                continue
            looked_at += len(documented)
            known = inspect.signature(found).parameters
            wrong += [f"{package.__name__}.{name}: {parameter}" for parameter in documented if parameter not in known]
    assert looked_at > 300
    assert wrong == []
