"""Commands that look at images: localize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .boundary import EXIT_REJECTS, talk
from .options import BatchOpt, DeviceOpt, EngineOpt, JsonOpt, PrecisionOpt
from .output import emit
from .progress import progress_bar


def localize(
    probe: Annotated[Path, typer.Argument(help="Probe file that `dlprobe fit` wrote (.safetensors).")],
    image: Annotated[list[Path], typer.Argument(help="Images to look at.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for a folder of results per image.")],
    weights: Annotated[
        str | None, typer.Option("--weights", help="Where the backbone's weights are, if not where the probe says.")
    ] = None,
    stride: Annotated[int, typer.Option("--stride", min=1, help="Distance of two windows in pixels.")] = 128,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0, max=1, help="Score to mark from; the probe's own by default.")
    ] = None,
    upsample: Annotated[str, typer.Option("--upsample", help="'bicubic', 'bilinear' or 'nearest'.")] = "bicubic",
    aggregate: Annotated[str, typer.Option("--aggregate", help="'mean' or 'sum' of overlapping windows.")] = "mean",
    device: DeviceOpt = "auto",
    engine: EngineOpt = "torch",
    precision: PrecisionOpt = "auto",
    batch_size: BatchOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Write score map, mask, overlay and JSON for each image."""
    from dlprobe.localization import localize_files

    with progress_bar("localize", "images") as progress:
        results = localize_files(
            probe,
            image,
            out,
            weights=weights,
            stride_px=stride,
            threshold=threshold,
            upsample=upsample,
            aggregate=aggregate,
            device=device,
            engine=engine,
            precision=precision,
            batch_size=batch_size,
            progress=progress,
        )
    done = [result for result in results if result.folder is not None]
    emit(
        [{"image": r.image, "image_score": r.image_score, "area": r.area, "folder": str(r.folder)} for r in done],
        as_json=as_json,
    )
    for result in results:
        if result.reason:
            talk(f"rejected: {result.reason}")
    if len(done) < len(results):
        raise typer.Exit(EXIT_REJECTS)
