"""Command that looks at the machine: doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOpt
from .output import emit


def doctor(
    backbone: Annotated[str | None, typer.Option("--backbone", help="Whose engines are compared and timed.")] = None,
    weights: Annotated[str, typer.Option("--weights", help="'random:SEED' does for rates and parity.")] = "random:0",
    window: Annotated[int | None, typer.Option("--window", min=1, help="Side of a window in pixels.")] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where the disk is measured (256 MB, removed).")] = Path(),
    timing: Annotated[bool, typer.Option("--time", help="Time each engine too, some seconds each.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Say what this machine has, how fast it is, whether its engines agree, and what to do about what is wrong."""
    from dlprobe.doctor import examine

    rows = [found.row() for found in examine(backbone, weights=weights, window_px=window, folder=folder, timing=timing)]
    if not as_json:
        rows = [{name: row[name] for name in ("topic", "found", "advice")} for row in rows]
    emit(rows, as_json=as_json)
