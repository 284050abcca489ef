"""The command that scores a probe on whole images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .boundary import EXIT_REJECTS, expect_damage, talk
from .options import BatchOpt, DeviceOpt, JsonOpt, MaxPixelsOpt, PrecisionOpt, RootOpt, pixel_limit, tell_faults
from .output import emit
from .progress import progress_bar

if TYPE_CHECKING:
    from dlprobe.studies import Evaluation

#: Rejects that are shown; the table rejects.csv has all.
SHOWN_REJECTS = 10


def evaluate(
    probe: Annotated[Path, typer.Argument(help="Probe file that `dlprobe fit` wrote (.safetensors).")],
    manifest: Annotated[Path, typer.Argument(help="Manifest that `dlprobe scan` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables and score maps; run again to resume.")],
    protocol: Annotated[
        list[str] | None, typer.Option("--protocol", help="Named protocol; may be repeated, all of them by default.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="From which protocol dlprobe marks; by default the probe's own and 0.5."),
    ] = None,
    degrade: Annotated[
        list[str] | None, typer.Option("--degrade", help="Preset (or chain) of degradations; may be repeated.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="'train', 'val', 'test', 'calibration' or 'all'; by default test, if there is one."
        ),
    ] = None,
    seen: Annotated[
        str, typer.Option("--seen", help="Images of sources that trained the probe: 'leave-out', 'refuse' or 'keep'.")
    ] = "leave-out",
    stride: Annotated[int, typer.Option("--stride", min=1, help="Distance of two windows in pixels.")] = 128,
    upsample: Annotated[str, typer.Option("--upsample", help="'bicubic', 'bilinear' or 'nearest'.")] = "bicubic",
    aggregate: Annotated[str, typer.Option("--aggregate", help="'mean' or 'sum' of overlapping windows.")] = "mean",
    root: RootOpt = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Where the backbone's weights are, if not where the probe says.")
    ] = None,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = "auto",
    batch_size: BatchOpt = None,
    max_pixels: MaxPixelsOpt = None,
    seed: Annotated[int, typer.Option("--seed", help="Of degradations and resampling.")] = 0,
    as_json: JsonOpt = False,
) -> None:
    """Score a probe on whole images under named protocols, degradations and guards; maps are kept."""
    from dlprobe.localization import SlidingSettings
    from dlprobe.studies import EvaluateSettings, evaluate_files

    given = {"protocols": protocol, "degrade": degrade}
    lists = {name: tuple(values) for name, values in given.items() if values}
    settings = EvaluateSettings(threshold=threshold, split=split, seen=seen, seed=seed, **lists)
    sliding = SlidingSettings(stride_px=stride, upsample=upsample, aggregate=aggregate)
    expect_damage()
    tell_faults(manifest)
    with progress_bar("evaluate", "steps") as progress:
        result = evaluate_files(
            probe,
            manifest,
            out,
            root=root,
            weights=weights,
            device=device,
            precision=precision,
            batch_size=batch_size,
            settings=settings,
            sliding=sliding,
            progress=progress,
            **pixel_limit(max_pixels),
        )
    table = result.tables["results" if as_json else "overview"]
    emit(table.to_dict("records"), as_json=as_json)
    _tell(result)
    if len(result.tables["rejects"]):
        raise typer.Exit(EXIT_REJECTS)


def _tell(result: Evaluation) -> None:
    for note in result.notes:
        talk(note)
    rejects = result.tables["rejects"]
    for row in rejects.head(SHOWN_REJECTS).itertuples():
        talk(f"rejected: {row.reason}" + (f" ({row.chain})" if row.chain else ""))
    if len(rejects) > SHOWN_REJECTS:
        talk(f"rejected: and {len(rejects) - SHOWN_REJECTS} more; {result.out / 'rejects.csv'} lists all")
    of = result.accounting
    reasons = ", ".join(f"{reason} {count}" for reason, count in result.ignored.items())
    talk(
        f"{of['images']} images in = {of['scored']} scored + {of['rejected']} rejected + {of['ignored']} ignored"
        + (f" ({reasons})" if reasons else "")
    )
    talk(f"{of['maps_computed']} score maps computed, {of['maps_kept']} found; tables in {result.out}")
