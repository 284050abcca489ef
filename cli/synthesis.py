"""The command that makes data: synthesize."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .boundary import EXIT_REJECTS, expect_damage, talk
from .options import DeviceOpt, JsonOpt
from .output import emit
from .progress import progress_bar

if TYPE_CHECKING:
    from dlprobe.data.synthesis import SynthesisReport


def synthesize(
    images: Annotated[list[Path], typer.Argument(help="Photographs, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to be made, with images, masks and manifest.csv.")],
    backend: Annotated[str, typer.Option("--backend", help="'offline' (no model needed) or 'diffusers'.")] = "offline",
    seed: Annotated[int, typer.Option("--seed", help="Of masks, donors' places and noise.")] = 0,
    window: Annotated[int, typer.Option("--window", min=1, help="Side of the windows that shares refer to.")] = 504,
    side: Annotated[int | None, typer.Option("--side", min=1, help="Longest side in pixels; the rest is cut.")] = None,
    mask_kind: Annotated[
        list[str] | None,
        typer.Option("--mask-kind", help="'object', 'box', 'random' or 'sized'; again for more of them."),
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option("--share", help="Share of a window that a mask covers; again for more, which go round."),
    ] = None,
    ladder: Annotated[bool, typer.Option("--ladder", help="Masks of 0.5 to 60 % of a window on each.")] = False,
    masks: Annotated[Path | None, typer.Option("--masks", help="Folder of object masks, STEM[_mask].png.")] = None,
    dataset: Annotated[str, typer.Option("--dataset", help="Name of the data set and of source_ids.")] = "synthesized",
    generator: Annotated[
        list[str] | None,
        typer.Option("--generator", help="offline: 'telea', 'ns' or 'donor' with '+pca' or '+sr'; again for more."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="diffusers: pipeline, by hub name or folder.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="diffusers: branch, tag or commit.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="diffusers: text that fillings follow.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="diffusers: denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="diffusers: guidance scale.")] = None,
    strength: Annotated[
        float | None, typer.Option("--strength", help="diffusers: share of noise in the mask, up to 1.")
    ] = None,
    device: DeviceOpt = "auto",
    precision: Annotated[
        str | None, typer.Option("--precision", help="diffusers: 'float32' (default), 'float16' or 'bfloat16'.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Make a data set of real, auto-encoded, spliced and regenerated images of your photographs."""
    from dlprobe.data.synthesis import SynthesisSettings
    from dlprobe.data.synthesis import synthesize as run

    given = {"shares": tuple(share)} if share else {}
    settings = SynthesisSettings(
        seed=seed,
        window_px=window,
        side_px=side,
        mask_kinds=tuple(mask_kind or ()),
        ladder=ladder,
        object_masks=masks,
        dataset=dataset,
        **given,
    )
    expect_damage()
    with progress_bar("synthesize", "steps") as progress:
        report = run(
            images,
            out,
            settings=settings,
            backend=backend,
            progress=progress,
            generators=generator or None,
            model=model,
            revision=revision,
            prompt=prompt,
            steps=steps,
            guidance=guidance,
            strength=strength,
            device=None if device == "auto" else device,
            precision=precision,
        )
    _show(report, out, as_json=as_json)


def _show(report: SynthesisReport, out: Path, *, as_json: bool) -> None:
    frame = report.manifest.frame
    counts = frame.groupby(["variant", "generator"]).agg(images=("path", "size"), sources=("source_id", "nunique"))
    emit(counts.reset_index().to_dict("records"), as_json=as_json)
    for reject in report.rejects:
        talk(f"rejected: {reject.path}: {reject.reason}")
    talk(f"{len(frame)} images in {out}, {len(report.rejects)} photographs rejected")
    if report.rejects:
        raise typer.Exit(EXIT_REJECTS)
