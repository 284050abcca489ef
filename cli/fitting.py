"""Commands that fit probes and report on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .boundary import talk
from .options import JsonOpt
from .output import emit
from .progress import progress_bar


def fit(
    cache: Annotated[list[Path], typer.Argument(help="Caches; of one model they are pooled, of several compared.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for probes and tables.")],
    test: Annotated[list[Path] | None, typer.Option("--test", help="Cache of a data set that is only tested.")] = None,
    scheme: Annotated[list[str] | None, typer.Option("--scheme", help="Labelling scheme; all by default.")] = None,
    hold_out: Annotated[
        list[str] | None, typer.Option("--hold-out", help="Generator whose images are only tested.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option("--folds", min=0, help="Nested folds of sources; 0 for one split. Default: by size.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Streams over the cache.")] = None,
    learning_rate: Annotated[list[float] | None, typer.Option("--lr", help="Learning rate; a grid by default.")] = None,
    weight_decay: Annotated[list[float] | None, typer.Option("--wd", help="Weight decay; a grid by default.")] = None,
    batch_windows: Annotated[int | None, typer.Option("--batch-windows", min=1, help="Windows in a step.")] = None,
    device: Annotated[str, typer.Option("--device", help="'cpu', 'cuda' or 'cuda:N'; never falls back.")] = "cpu",
    precision: Annotated[str, typer.Option("--precision", help="'float32' or 'bfloat16'.")] = "float32",
    seed: Annotated[int, typer.Option("--seed", help="Deals sources, initial weights and resampling.")] = 0,
    as_json: JsonOpt = False,
) -> None:
    """Fit heads for every scheme beside the baselines, and score all on the same tested sources."""
    from dlprobe.studies import FitSettings, fit_caches

    given = {
        "schemes": scheme,
        "hold_out": hold_out,
        "n_folds": folds,
        "epochs": epochs,
        "learning_rates": learning_rate,
        "weight_decays": weight_decay,
        "batch_windows": batch_windows,
        "device": device,
        "precision": precision,
    }
    chosen = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}
    with progress_bar("fit", "steps") as progress:
        result = fit_caches(cache, out, test=test or (), settings=FitSettings(seed=seed, **chosen), progress=progress)
    emit(result.results.to_dict("records") if as_json else result.summary().to_dict("records"), as_json=as_json)
    for note in result.notes:
        talk(note)


def report(
    run: Annotated[Path, typer.Argument(help="Folder that `dlprobe fit` or `dlprobe demo` wrote.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file; RUN/report.html by default.")] = None,
) -> None:
    """Write one self-contained HTML file with the tables of a run."""
    from dlprobe.reports import write_report

    typer.echo(str(write_report(run, out)))
