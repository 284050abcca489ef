"""The reference pages say what the program says now, and docstrings name the parameters that there are."""

import importlib.util
import inspect
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

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


def flat(text):
    """Return words alone: help is wrapped and boxed in a terminal, and marked up on a page."""
    return " ".join(re.sub(r"[`│╭╮╰╯─|*\\]|\\[default: [^\\]]*\\]|\\[required\\]", " ", text).split())


def helps():
    """Yield path and printed help of every command."""
    (script,) = entry_points(group="console_scripts", name="dlprobe")
    environment = {"COLUMNS": "2000", "TERMINAL_WIDTH": "2000"}

    def of(group, path):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from of(command, (*path, name))
            else:
                run = CliRunner().invoke(app, [*path, name, "--help"], env=environment, prog_name="dlprobe")
                assert run.exit_code == 0, run.stderr
                yield (*path, name), run.stdout, command

    app = script.load()
    yield from of(typer.main.get_command(app), ())


def test_the_page_of_commands_holds_what_help_prints():
    """Every option, default and word of help of every command, as a user's terminal shows them."""
    page = (FOLDER / "cli.md").read_text(encoding="utf-8")
    seen = []
    for path, text, command in helps():
        seen.append(path)
        section = page.split(f"## dlprobe {' '.join(path)}\n")[1].split("\n## ")[0]
        printed = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text.partition("Options")[2])) - {"--help"}
        assert printed <= set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", section)), path
        for default in re.findall(r"\[default: (?!None)([^\]]+)\]", text):
            assert f"`{default}`" in section or f"`--{default}`" in section, (path, default)
        for words in (command.help, *(p.help for p in command.params if p.name != "help" and not p.hidden)):
            assert flat(words) in flat(section), (path, words)
            assert flat(words) in flat(text), (path, words)
    assert len(seen) == page.count("\n## ") > 20


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
