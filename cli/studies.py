"""Commands that answer whole questions: study list, run, show."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .boundary import talk
from .fitting import EXIT_INTERRUPTED
from .options import JsonOpt
from .output import emit
from .progress import progress_bar

if TYPE_CHECKING:
    from dlprobe.studies.designs import StudyResult

#: Rows of a table that a terminal is shown; the folder holds the others.
_ROWS = 24
#: Of the lines of the list, in characters.
_WIDTH = 80
app = typer.Typer(no_args_is_help=True, help="Answer a question with one file, one command and one page.")


def _complete(incomplete: str) -> list[str]:
    """Return the ready studies whose name begins with what was typed."""
    from dlprobe.studies.designs import ready_studies

    return [name for name in ready_studies() if name.startswith(incomplete)]


@app.command("list")
def list_studies(as_json: JsonOpt = False) -> None:
    """List the studies that are ready to run, and what each asks; with --json also kind and file."""
    from dlprobe.studies.designs import read_study, ready_studies

    ready = ready_studies()
    rows = [
        {"name": name, "kind": study.kind, "asks": study.question, "file": str(path)}
        for name, path in ready.items()
        for study, _ in [read_study(path)]
    ]
    if as_json:
        emit(rows, as_json=True)
        return
    column = max(map(len, ready)) + 2
    for row in rows:
        first, *others = textwrap.wrap(row["asks"], _WIDTH - column)
        typer.echo("\n".join([row["name"].ljust(column) + first, *(" " * column + line for line in others)]))
    talk("run one with `dlprobe study run NAME -o FOLDER`; --json also has the file of each, to copy and change")


@app.command()
def run(
    study: Annotated[
        str,
        typer.Argument(help="TOML file, or the name of a study that is ready.", autocompletion=_complete),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the study; run again to resume.")],
    as_json: JsonOpt = False,
) -> None:
    """Run a study; what an earlier run finished is used again."""
    from dlprobe.studies.designs import run_study

    try:
        result = run_study(study, out, say=talk, bar=progress_bar)
    except KeyboardInterrupt:
        talk("interrupted; the same command goes on from the last cell")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _print(result, as_json=as_json)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="Folder of a study that was run.")],
    as_json: JsonOpt = False,
) -> None:
    """Print what a study found."""
    from dlprobe.studies.designs import read_study_result

    result = read_study_result(folder)
    _print(result, as_json=as_json)


def _print(result: StudyResult, *, as_json: bool) -> None:
    """Print the table, and the answer below it where it is read; as JSON the answer is the first line."""
    head = result.head()
    if as_json:
        emit([head, *result.frame().to_dict("records")], as_json=True)
        return
    rows = result.short().head(_ROWS).to_dict("records")
    emit(rows, as_json=False)
    if more := len(result.frame()) - len(rows):
        talk(f"{more} more rows, and what to know: {result.path / 'findings'}, or `dlprobe report`")
    for line in ["", head["question"], head["lead"], *(f"- {line}" for line in head["answer"])]:
        talk(line)
