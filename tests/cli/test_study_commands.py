"""`dlprobe study` as a user types it."""

import json
from importlib.metadata import entry_points

import pytest
import typer
from typer.testing import CliRunner

from dlprobe.studies.designs import ready_studies, workshop

(SCRIPT,) = entry_points(group="console_scripts", name="dlprobe")
STUDY = """kind = "data-size"
title = "t"
question = "q?"
[data]
demo = true
photographs = 8
side_px = 128
[[backbones]]
name = "residual:srm"
window_px = 112
[extract]
stride_px = 112
[fit]
learning_rates = [1.0]
weight_decays = [0.01]
epochs = 1
n_folds = 4
baselines = []
[options]
sources = [2, 4]
"""


def dlprobe(*arguments):
    return CliRunner().invoke(SCRIPT.load(), [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty folder that commands are typed in, with a study's file."""
    (tmp_path / "study.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_list_names_every_study_that_is_ready():
    result = dlprobe("study", "list", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["name"] for row in rows] == list(ready_studies())
    asks = {row["name"]: row["asks"] for row in rows}
    assert "B-Free" in asks["pretraining"]
    assert "Which frozen backbone" in asks["backbones"]


def test_the_list_fits_a_terminal_and_leaves_no_word_out():
    result = dlprobe("study", "list")
    assert max(map(len, result.stdout.splitlines())) <= 80
    rows = [json.loads(line) for line in dlprobe("study", "list", "--json").stdout.splitlines()]
    assert result.stdout.split() == " ".join(f"{row['name']} {row['asks']}" for row in rows).split()


def test_an_interrupted_study_in_a_relative_folder_goes_on_and_is_shown(folder, monkeypatch):
    fit, begun = workshop.fit_caches, []

    def interrupted(*arguments, **options):
        begun.append(arguments)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    monkeypatch.setattr(workshop, "fit_caches", interrupted)
    stopped = dlprobe("study", "run", "study.toml", "-o", "out")
    assert stopped.exit_code == 130
    assert "goes on" in stopped.stderr.splitlines()[-1]
    done = dlprobe("study", "run", "study.toml", "-o", "out")
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert done.stderr.count("fitting") == 1
    record = json.loads((folder / "out" / "findings" / "study.json").read_text())
    assert all((folder / "out" / cell / "run.json").is_file() for cell in record["cells"])
    shown = dlprobe("study", "show", "out")
    assert shown.exit_code == 0
    assert shown.stdout == done.stdout
    assert shown.stderr.splitlines()[-1].startswith("- ")
    head, *rows = map(json.loads, dlprobe("study", "show", "out", "--json").stdout.splitlines())
    assert head["answer"]
    assert head["question"] == "q?"
    assert all("value" in row for row in rows)


def test_a_folder_behind_a_link_is_as_good(folder):
    (folder / "disk").mkdir()
    (folder / "link").symlink_to(folder / "disk")
    done = dlprobe("study", "run", "study.toml", "-o", "link")
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert (folder / "disk" / "findings" / "study.json").is_file()


def test_names_of_ready_studies_are_completed():
    command = typer.main.get_command(SCRIPT.load()).commands["study"].commands["run"]
    [study] = [parameter for parameter in command.params if parameter.name == "study"]
    found = study.shell_complete(typer.Context(command), "la")
    assert [item.value for item in found] == ["labelling"]
