"""Commands that look after a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .boundary import EXIT_REJECTS, talk
from .options import JsonOpt
from .output import emit

app = typer.Typer(no_args_is_help=True, help="Look after a cache.")
CacheArg = Annotated[Path, typer.Argument(help="Folder that `dlprobe extract` filled.")]


@app.command()
def info(path: CacheArg, as_json: JsonOpt = False) -> None:
    """Print what a cache holds: identity, geometry, completeness, bytes."""
    from dlprobe.cache import describe

    fields = describe(path)
    emit([fields] if as_json else [{"field": k, "value": str(v)} for k, v in fields.items()], as_json=as_json)


@app.command()
def verify(path: CacheArg, as_json: JsonOpt = False) -> None:
    """Compare every stored byte with its checksum; exit with 3 if something is damaged."""
    from dlprobe.cache import verify as run

    damages = run(path)
    emit([damage._asdict() for damage in damages], as_json=as_json)
    talk(f"{len(damages)} files are damaged" if damages else "every stored byte agrees with its checksum")
    if damages:
        raise typer.Exit(EXIT_REJECTS)
