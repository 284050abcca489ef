"""Commands that look at images: localize."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .boundary import EXIT_REJECTS, expect_damage, talk
from .options import BatchOpt, DeviceOpt, EngineOpt, JsonOpt, MaxPixelsOpt, PrecisionOpt, pixel_limit
from .output import emit
from .progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dlprobe.localization import Adaptive, Localization

SHOWN_REJECTS = 10

ImagesArg = Annotated[list[Path], typer.Argument(help="Images, or folders of images.")]
OutOpt = Annotated[Path, typer.Option("--out", "-o", help="Folder for a folder of results per image, and a table.")]
ProbeWeightsOpt = Annotated[
    str | None, typer.Option("--weights", help="Where the backbone's weights are, if not where the probe says.")
]
ThresholdOpt = Annotated[
    float | None, typer.Option("--threshold", min=0, max=1, help="Score to mark from; the probe's own by default.")
]
StrideOpt = Annotated[int, typer.Option("--stride", min=1, help="Distance of two windows in pixels.")]
UpsampleOpt = Annotated[str, typer.Option("--upsample", help="'bicubic', 'bilinear' or 'nearest'.")]
AggregateOpt = Annotated[str, typer.Option("--aggregate", help="'mean' or 'sum' of overlapping windows.")]
BlendOpt = Annotated[str, typer.Option("--blend", help="'none', or 'hann': trust a window's centre more.")]
AdaptiveOpt = Annotated[
    bool, typer.Option("--adaptive", help="A coarse pass first, further windows only where it is undecided.")
]
CoarseOpt = Annotated[
    int | None, typer.Option("--coarse-every", help="adaptive: the coarse pass takes every n-th window (2).")
]
MarginOpt = Annotated[
    float | None, typer.Option("--margin", help="adaptive: undecided is a score so near to the threshold (0.2).")
]
EdgeOpt = Annotated[
    int | None, typer.Option("--edge", help="adaptive: or so many pixels from the border of a region (28).")
]
BudgetOpt = Annotated[
    float | None, typer.Option("--budget", help="adaptive: largest share of the windows to look at (0.4).")
]
GuidedRadiusOpt = Annotated[
    int, typer.Option("--guided-radius", help="Refine along the image's edges: guided filter of this radius.")
]
GuidedEpsilonOpt = Annotated[float, typer.Option("--guided-epsilon", help="Its regularisation.")]
FillHolesOpt = Annotated[bool, typer.Option("--fill-holes", help="Mark what a marked region encloses.")]
MinAreaOpt = Annotated[int, typer.Option("--min-area", help="Unmark regions of fewer pixels.")]
MinShareOpt = Annotated[float, typer.Option("--min-area-share", help="Unmark regions below this share of the image.")]
SmoothOpt = Annotated[int, typer.Option("--smooth-radius", help="Open and close the mask by this disk.")]


def localize(
    probe: Annotated[Path, typer.Argument(help="Probe that `dlprobe fit` wrote, or DinoLizer's .ckpt.")],
    image: ImagesArg,
    out: OutOpt,
    recursive: Annotated[bool, typer.Option("--recursive", help="Look into folders of folders.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Localize again what is there already.")] = False,
    weights: ProbeWeightsOpt = None,
    threshold: ThresholdOpt = None,
    stride: StrideOpt = 128,
    upsample: UpsampleOpt = "bicubic",
    aggregate: AggregateOpt = "mean",
    blend: BlendOpt = "none",
    adaptive: AdaptiveOpt = False,
    coarse_every: CoarseOpt = None,
    margin: MarginOpt = None,
    edge: EdgeOpt = None,
    budget: BudgetOpt = None,
    guided_radius: GuidedRadiusOpt = 0,
    guided_epsilon: GuidedEpsilonOpt = 1e-3,
    fill_holes: FillHolesOpt = False,
    min_area: MinAreaOpt = 0,
    min_area_share: MinShareOpt = 0.0,
    smooth_radius: SmoothOpt = 0,
    max_pixels: MaxPixelsOpt = None,
    device: DeviceOpt = "auto",
    engine: EngineOpt = "torch",
    precision: PrecisionOpt = "auto",
    batch_size: BatchOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Write score map, mask, overlay and JSON for each image; run again to resume."""
    from dlprobe.localization import PostProcessing, SlidingSettings, localize_files

    expect_damage()
    sliding = SlidingSettings(
        stride_px=stride,
        upsample=upsample,
        aggregate=aggregate,
        blend=blend,
        adaptive=_adaptive(adaptive, coarse_every=coarse_every, margin=margin, edge_px=edge, budget=budget),
    )
    postprocessing = PostProcessing(
        guided_radius_px=guided_radius,
        guided_epsilon=guided_epsilon,
        fill_holes=fill_holes,
        min_area_px=min_area,
        min_area_share=min_area_share,
        smooth_radius_px=smooth_radius,
    )
    with progress_bar("localize", "images") as progress:
        results = localize_files(
            probe,
            image,
            out,
            weights=weights,
            threshold=threshold,
            sliding=sliding,
            postprocessing=postprocessing,
            recursive=recursive,
            overwrite=overwrite,
            device=device,
            engine=engine,
            precision=precision,
            batch_size=batch_size,
            progress=progress,
            **pixel_limit(max_pixels),
        )
    if _show(results, out, as_json=as_json):
        raise typer.Exit(EXIT_REJECTS)


def _adaptive(wanted: bool, **given: float | None) -> Adaptive | None:
    from dlprobe.errors import DataError
    from dlprobe.localization import Adaptive

    options = {name: value for name, value in given.items() if value is not None}
    if options and not wanted:
        names = ", ".join(f"--{name.removesuffix('_px').replace('_', '-')}" for name in options)
        msg = f"--adaptive is missing, which {names} {'belongs' if len(options) == 1 else 'belong'} to; add it"
        raise DataError(msg)
    return Adaptive(**options) if wanted else None


def _show(results: Sequence[Localization], out: Path, *, as_json: bool) -> int:
    """Print a row for each image, say what was rejected, and return how many were."""
    done = [result for result in results if result.folder is not None]
    emit(
        [
            {
                "image": result.image,
                "image_score": result.image_score,
                "area": result.area,
                "verdict": result.verdict,
                "regions": result.n_regions,
                "seen": result.seen,
                "folder": str(result.folder),
            }
            for result in done
        ],
        as_json=as_json,
    )
    rejected = [result for result in results if result.reason]
    for result in rejected[:SHOWN_REJECTS]:
        talk(f"rejected: {result.reason}")
    if len(rejected) > SHOWN_REJECTS:
        talk(f"rejected: and {len(rejected) - SHOWN_REJECTS} more; {out / 'results.csv'} lists all")
    if told := _told_seen(done):
        talk(told, colour=typer.colors.YELLOW)
    skipped = sum(result.skipped for result in done)
    if skipped:
        talk(f"{skipped} of {len(results)} images were there already; --overwrite localizes them again")
    return len(rejected)


def _told_seen(done: Sequence[Localization]) -> str:
    """Say of how many images the probe has seen the photograph, or that nobody knows; nothing if of none."""
    from dlprobe.localization.outputs.writing import SEEN, UNKNOWN

    known = [result for result in done if result.seen not in {"", UNKNOWN}]
    if known and len(done) == 1:
        return f"warning: {known[0].image}: {SEEN[known[0].seen]}"
    if known:
        parts = ", ".join(f"{n} {what}" for what, n in Counter(result.seen for result in known).items())
        return (
            f"warning: the probe has seen the photographs of {len(known)} of {len(done)} images ({parts}; the first: "
            f"{known[0].image}), so that their maps are better than those of others will be"
        )
    return SEEN[UNKNOWN] if any(result.seen == UNKNOWN for result in done) else ""
