"""Data on stdout: aligned text for people, JSON lines for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from .boundary import talk

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

Row = Mapping[str, object]


def emit(rows: Iterable[Row], *, as_json: bool) -> None:
    """Print rows as JSON lines, or as one aligned table whose columns are the keys of the first row."""
    table = list(rows)
    if as_json:
        for row in table:
            typer.echo(json.dumps({key: _plain(value) for key, value in row.items()}))
    elif table:
        typer.echo(aligned(list(table[0]), [[_text(row.get(name)) for name in table[0]] for row in table]))


def emit_run(table: pd.DataFrame, out: Path) -> None:
    """Print of the scores of a fit or a fine-tuning what fits a terminal, model by model, and say where the rest is."""
    for number, (model, rows) in enumerate(table.groupby("model", sort=False)):
        typer.echo(f"{chr(10) if number else ''}{model}")
        emit(rows.drop(columns="model").to_dict("records"), as_json=False)
    talk("at the score 0.5, beside what marking everything gets; 95 % intervals are over photographs")
    talk(f"all probes, generators, masks and thresholds, and differences with p: {out / 'results.md'},")
    talk(f"{out / 'comparisons.md'}, or one page by `dlprobe report {out}`")


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a text table; columns of numbers are set to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    right = [all(_numeric(cell) for cell in column) for column in zip(*rows, strict=True)] or [False] * len(header)

    def line(cells: Sequence[str]) -> str:
        placed = (
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(cells, widths, right, strict=True)
        )
        return "  ".join(placed).rstrip()

    return "\n".join(line(cells) for cells in (header, *rows))


def _numeric(cell: str) -> bool:
    return cell == "" or cell[0].isdigit() or cell[0] in "+-."


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, str | int | float | bool | list | dict) or value is None else str(value)
