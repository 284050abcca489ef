"""Commands that fit probes and report on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .boundary import talk
from .options import JsonOpt
from .output import emit, emit_run
from .progress import progress_bar

if TYPE_CHECKING:
    from dlprobe.studies import FitSettings

#: What shells report of a process that ended by Ctrl-C.
EXIT_INTERRUPTED = 130

_OBJECTIVES = "dice-batch (default), dice-window, bce, dice+bce, tversky, focal or lovasz; repeat for several."
_BASELINES = "Of logistic,logistic-exact,ridge,lda,sgd,knn; or 'none'. Default: logistic,ridge,lda."
SchemeOpt = Annotated[
    list[str] | None, typer.Option("--scheme", help="Labelling scheme, also 'three-class'; three others by default.")
]
ObjectiveOpt = Annotated[list[str] | None, typer.Option("--objective", help=_OBJECTIVES)]
HoldOutOpt = Annotated[list[str] | None, typer.Option("--hold-out", help="Generator whose images are only tested.")]
FoldsOpt = Annotated[
    int | None, typer.Option("--folds", min=0, help="Nested folds of sources; 0 for one split. Default: by size.")
]
EpochsOpt = Annotated[int | None, typer.Option("--epochs", min=1, help="Streams over the cache, at most (12).")]
PatienceOpt = Annotated[
    int | None, typer.Option("--patience", min=0, help="Epochs without progress until a head stops (3); 0: never.")
]
RateOpt = Annotated[list[float] | None, typer.Option("--lr", help="Learning rate; a grid of 13 by default.")]
DecayOpt = Annotated[list[float] | None, typer.Option("--wd", help="Weight decay; a grid of 3 by default.")]
PositiveOpt = Annotated[
    list[float] | None, typer.Option("--positive-weight", help="How often a positive patch counts (1).")
]
LayersOpt = Annotated[
    str | None, typer.Option("--layers", help="'together' (default), or 'each': also heads on each layer alone.")
]
WindowsOpt = Annotated[int | None, typer.Option("--batch-windows", min=1, help="Windows in a step (16).")]
SeedsOpt = Annotated[int | None, typer.Option("--seeds", min=1, help="Fits of each head, on resampled windows.")]
BaselinesOpt = Annotated[str | None, typer.Option("--baselines", help=_BASELINES)]
BaselineCOpt = Annotated[
    list[float] | None,
    typer.Option(
        "--baseline-c", help="Inverse penalty of logistic regressions; a grid of 5 from 0.0001 to 1 by default."
    ),
]
BaselinePatchesOpt = Annotated[
    int | None, typer.Option("--baseline-patches", min=1, help="Patches of a sampled baseline, at most (20000).")
]
PartialOpt = Annotated[bool, typer.Option("--allow-partial", help="Fit on what is there of incomplete caches.")]
PolicyOpt = Annotated[
    str | None, typer.Option("--threshold-policy", help="'best-f1' (default), 'image-fpr:ALPHA' or 'area:ALPHA'.")
]


def fit(
    cache: Annotated[list[Path], typer.Argument(help="Caches; of one model they are pooled, of several compared.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for probes and tables; run again to resume.")],
    test: Annotated[list[Path] | None, typer.Option("--test", help="Cache of a data set that is only tested.")] = None,
    scheme: SchemeOpt = None,
    objective: ObjectiveOpt = None,
    hold_out: HoldOutOpt = None,
    folds: FoldsOpt = None,
    epochs: EpochsOpt = None,
    patience: PatienceOpt = None,
    learning_rate: RateOpt = None,
    weight_decay: DecayOpt = None,
    positive_weight: PositiveOpt = None,
    layers: LayersOpt = None,
    batch_windows: WindowsOpt = None,
    seeds: SeedsOpt = None,
    baselines: BaselinesOpt = None,
    baseline_c: BaselineCOpt = None,
    baseline_patches: BaselinePatchesOpt = None,
    threshold_policy: PolicyOpt = None,
    allow_partial: PartialOpt = False,
    device: Annotated[str, typer.Option("--device", help="'cpu', 'cuda' or 'cuda:N'; never falls back.")] = "cpu",
    precision: Annotated[str, typer.Option("--precision", help="'float32' or 'bfloat16'.")] = "float32",
    seed: Annotated[int, typer.Option("--seed", help="Deals sources, initial weights and resampling.")] = 0,
    as_json: JsonOpt = False,
) -> None:
    """Fit heads for every scheme beside the baselines, and score all on the same tested sources."""
    from dlprobe.studies import fit_caches

    settings = _settings(
        patience,
        schemes=scheme,
        objectives=objective,
        hold_out=hold_out,
        n_folds=folds,
        epochs=epochs,
        learning_rates=learning_rate,
        weight_decays=weight_decay,
        positive_weights=positive_weight,
        layers=layers,
        batch_windows=batch_windows,
        seeds=seeds,
        baselines=_names(baselines),
        baseline_c=baseline_c,
        baseline_patches=baseline_patches,
        threshold_policy=threshold_policy,
        device=device,
        precision=precision,
        seed=seed,
    )
    try:
        with progress_bar("fit", "steps") as progress:
            result = fit_caches(
                cache, out, test=test or (), settings=settings, allow_partial=allow_partial, progress=progress
            )
    except KeyboardInterrupt:
        talk("interrupted; the same command goes on from the last whole epoch")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        emit(result.results.to_dict("records"), as_json=True)
    else:
        emit_run(result.short(), result.out)
    for note in result.notes:
        talk(note)


def report(
    folder: Annotated[
        Path,
        typer.Argument(help="What `dlprobe fit`, `evaluate`, `study run` or `localize` (one image's folder) wrote."),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file; FOLDER/report.html by default.")] = None,
    probe: Annotated[
        Path | None, typer.Option("--probe", help="Of a localized image: the probe's file, for what it was trained on.")
    ] = None,
    separability: Annotated[
        Path | None, typer.Option("--separability", help="Of a fit: a folder that `dlprobe separate -o` wrote.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Of a fit: folder of its images, to show them behind score maps."),
    ] = None,
) -> None:
    """Write one self-contained HTML file: of a fit, an evaluation, a study, or one localized image."""
    from dlprobe.reports import report_folder

    typer.echo(str(report_folder(folder, out, probe=probe, separability=separability, images=images)))


def _settings(patience: int | None, **given: object) -> FitSettings:
    """Return the settings that were given, the library's own for the others; a patience of 0 means none."""
    from dlprobe.studies import FitSettings

    chosen = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}
    if patience is not None:
        chosen["patience"] = patience or None
    return FitSettings(**chosen)


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [] if text == "none" else [name.strip() for name in text.split(",")]
