"""Commands that answer whole questions: study list, run, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .boundary import talk
from .fitting import EXIT_INTERRUPTED
from .options import JsonOpt
from .output import emit

app = typer.Typer(no_args_is_help=True, help="Answer a question with one file, one command and one page.")


@app.command("list")
def list_studies(as_json: JsonOpt = False) -> None:
    """List the studies that are ready to run, and what each kind asks."""
    from dlprobe.studies.designs import STUDIES, read_study, ready_studies

    emit(
        [
            {"name": name, "kind": study.kind, "asks": STUDIES[study.kind].asks, "file": str(path)}
            for name, path in ready_studies().items()
            for study, _ in [read_study(path)]
        ],
        as_json=as_json,
    )


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="TOML file, or the name of a study that is ready.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the study; run again to resume.")],
    as_json: JsonOpt = False,
) -> None:
    """Run a study; what an earlier run finished is used again."""
    from dlprobe.studies.designs import run_study

    try:
        result = run_study(study, out, say=talk)
    except KeyboardInterrupt:
        talk("interrupted; the same command goes on from the last cell")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    emit(result.frame().to_dict("records"), as_json=as_json)
    for line in result.answer:
        talk(line)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="Folder of a study that was run.")],
    as_json: JsonOpt = False,
) -> None:
    """Print what a study found."""
    from dlprobe.studies.designs import read_study_result

    result = read_study_result(folder)
    emit(result.frame().to_dict("records"), as_json=as_json)
    for line in [str(result.record["study"]["question"]), *result.answer]:
        talk(line)
