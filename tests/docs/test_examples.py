"""What the pages tell a user to type is understood by the program, and what they show in Python runs."""

import re
import shlex
import shutil
import sys
import textwrap
import tomllib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pandas as pd
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from dlprobe.cache import open_cache
from dlprobe.data.synthesis import build_demo
from dlprobe.data.synthesis.photographs import PAIRS, load_photograph
from dlprobe.studies.designs import read_study

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", *(path for path in sorted(DOCS.rglob("*.md")) if DOCS / "reference" not in path.parents)]
FENCED = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
(SCRIPT,) = entry_points(group="console_scripts", name="dlprobe")
APP = SCRIPT.load()
#: An option of a benchmark, and a text within a file's format.
FOREIGN = {"--quick"}
NO_COMMAND = "dlprobe reference window"


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, language):
    """Return the fenced blocks of one language, indentation removed."""
    found = FENCED.findall(path.read_text(encoding="utf-8"))
    return [textwrap.dedent(body) for _, kind, body in found if kind == language]


def commands(path):
    """Return the words of each command line of dlprobe in the console blocks of a page."""
    text = "\n".join(blocks(path, "console")).replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    return [words[1:] for words in (shlex.split(line, comments=True) for line in lines) if words[0] == "dlprobe"]


def descend(words):
    """Return the command that words lead to, and the words that are left for it."""
    command, left = typer.main.get_command(APP), list(words)
    while hasattr(command, "commands"):
        assert left, "a group alone does nothing"
        assert left[0] in command.commands, f"no command {left[0]!r}"
        command = command.commands[left.pop(0)]
    return command, left


@cache
def all_options():
    def of(command):
        for child in getattr(command, "commands", {}).values():
            yield from of(child)
        for parameter in command.params:
            yield from (*parameter.opts, *parameter.secondary_opts)

    return {name for name in of(typer.main.get_command(APP)) if name.startswith("--")} | {"--help"}


@pytest.mark.parametrize("path", [path for path in WRITTEN if commands(path)], ids=name_of)
def test_command_lines_are_understood(path):
    for words in commands(path):
        command, left = descend(words)
        command.make_context(" ".join(words), left)  # parses, and raises what a user would see


def test_a_command_line_that_is_not_understood_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```console\n$ dlprobe fit cache \\\n      -o run --schem x   # why\n$ ls\n```\n")
    (words,) = commands(page)
    assert words == ["fit", "cache", "-o", "run", "--schem", "x"]
    command, left = descend(words)
    with pytest.raises(Exception, match="--schem"):
        command.make_context("fit", left)
    with pytest.raises(AssertionError, match="evaluat"):
        descend(["evaluat", "x"])


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_commands_and_options_named_in_the_text_exist(path):
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        if code == NO_COMMAND:
            continue
        if match := re.match(r"dlprobe ((?:[a-z]+ ?)+)", code):
            group, words = typer.main.get_command(APP), match[1].split()
            while words and hasattr(group, "commands"):
                assert words[0] in group.commands, code
                group = group.commands[words.pop(0)]
        elif not code.startswith(("pip ", "python ", "hf ")):
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", code))
            assert named <= all_options() | FOREIGN, code


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_files_targets_and_extras_named_in_the_text_exist(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (path.parent / target).exists(), target
    for file in re.findall(r"`((?:docs|tests|benchmarks|notebooks|dlprobe|cli|studies)/[\w./-]+)`", text):
        assert (ROOT / file).exists() or (ROOT / "dlprobe" / file).exists(), file
    for file in re.findall(r"python ((?:benchmarks|docs)/[\w./-]+\.py)", text):
        assert (ROOT / file).is_file(), file
    targets = re.findall(r"^\$ make (\w+)", "\n".join(blocks(path, "console")), re.MULTILINE)
    assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name for group in re.findall(r"dlprobe\[([a-z0-9,]+)\]", text) for name in group.split(",")} <= set(extras)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Return a folder as the README's example leaves it: DATA, cache, run, and an image beside them."""
    folder = tmp_path_factory.mktemp("desk")
    build_demo(folder / "DATA", photographs=6, side_px=112, window_px=112)
    table = pd.read_csv(folder / "DATA" / "manifest.csv")
    few = table[(table["variant"] == "real") | ((table["variant"] == "sp") & (table["generator"] == "telea+pca"))]
    few.to_csv(folder / "DATA" / "manifest.csv", index=False)
    shutil.copy(folder / "DATA" / few["path"].iloc[-1], folder / "photo.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_blocks(ROOT / "README.md")
    return folder


def run_blocks(path):
    """Run the Python blocks of a page, one after another, in one namespace."""
    names = {"__name__": "page"}
    for number, block in enumerate(blocks(path, "python"), start=1):
        exec(compile(block, f"{name_of(path)}, block {number}", "exec"), names)  # noqa: S102
    return names


@pytest.mark.parametrize("path", [path for path in WRITTEN if blocks(path, "python")], ids=name_of)
def test_python_runs(path, desk, monkeypatch):
    monkeypatch.chdir(desk)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if path.name != "README.md":  # that one made the folder
        run_blocks(path)
    assert (desk / "run" / "results.parquet").is_file()


@pytest.mark.parametrize("path", [path for path in WRITTEN if blocks(path, "toml")], ids=name_of)
def test_toml_is_read(path, tmp_path):
    for block in blocks(path, "toml"):
        assert tomllib.loads(block)
        if "[data]" in block:
            (tmp_path / "study.toml").write_text(block)
            study, _ = read_study(tmp_path / "study.toml")
            assert study.backbones


def prepare_readers_folder(pairs):
    """Put photographs of 112 px in the place of the reader's own, and an image beside them."""
    Path("PHOTOGRAPHS").mkdir()
    for photograph in (load_photograph(name, 112) for pair in PAIRS[:pairs] for name in pair):
        Image.fromarray(photograph.pixels).save(f"PHOTOGRAPHS/{photograph.name}.png")
    Image.fromarray(photograph.pixels).save("photo.jpg")


def run_lines(lines):
    for words in lines:
        result = CliRunner().invoke(APP, words)
        assert result.exit_code == 0, (words, result.stderr, result.exception)


def test_the_tutorial_runs_up_to_a_cache(tmp_path, monkeypatch):
    """Four photographs are too few for a fit, and enough for all that comes before it."""
    monkeypatch.chdir(tmp_path)
    prepare_readers_folder(pairs=2)
    lines = commands(DOCS / "tutorial.md")
    steps = [words[0] for words in lines]
    run_lines(lines[steps.index("synthesize") : steps.index("fit")])
    assert open_cache("cache").complete


@pytest.mark.slow
def test_the_tutorial_runs_from_the_first_command_to_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_readers_folder(pairs=3)
    lines = commands(DOCS / "tutorial.md")
    assert [words[0] for words in lines][-1] == "report"
    run_lines(lines)
    assert (tmp_path / "run" / "report.html").is_file()
    assert {"score.npy", "mask.png", "overlay.png", "result.json"} <= {
        p.name for p in (tmp_path / "masks/photo").iterdir()
    }
