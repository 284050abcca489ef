"""The command that adapts backbones."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .boundary import EXIT_REJECTS, expect_damage, talk
from .options import (
    BatchOpt,
    DeviceOpt,
    JsonOpt,
    MaxPixelsOpt,
    PrecisionOpt,
    RootOpt,
    WeightsOpt,
    layer_numbers,
    pixel_limit,
    tell_dropped,
    tell_faults,
)
from .output import emit, emit_run
from .progress import progress_bar

if TYPE_CHECKING:
    from dlprobe.finetune import FinetuneSettings

OutOpt = Annotated[Path, typer.Option("--out", "-o", help="Folder for weights, probes and tables; again to resume.")]
ModeOpt = Annotated[
    list[str] | None, typer.Option("--mode", help="'head', 'lora' or 'full'; several are compared. Default: lora.")
]
ViewsOpt = Annotated[int | None, typer.Option("--views", min=1, help="Clean and degraded views of training images.")]
StepsOpt = Annotated[int | None, typer.Option("--checkpoint-steps", min=1, help="Steps between two checkpoints.")]
HoldOutOpt = Annotated[list[str] | None, typer.Option("--hold-out", help="Generator whose images are only tested.")]
PassesOpt = Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the training windows.")]


def finetune(
    manifest: Annotated[Path, typer.Argument(help="Manifest that `dlprobe scan` wrote.")],
    out: OutOpt,
    backbone: Annotated[str, typer.Option("--backbone", help="Such as timm:NAME; see backbones.")],
    mode: ModeOpt = None,
    weights: WeightsOpt = "pretrained",
    window: Annotated[int | None, typer.Option("--window", min=1, help="Side of a window in pixels.")] = None,
    stride_px: Annotated[int | None, typer.Option("--stride", min=1, help="Intended distance of two windows.")] = None,
    tiling: Annotated[str | None, typer.Option("--tiling", help="'spread' or 'cover'.")] = None,
    layers: Annotated[str, typer.Option("--layers", help="Blocks to concatenate, such as '-1' or '-1,-4'.")] = "-1",
    norm: Annotated[bool, typer.Option("--norm/--no-norm", help="Apply the final LayerNorm.")] = True,
    scheme: Annotated[str | None, typer.Option("--scheme", help="Labelling scheme; the paper's by default.")] = None,
    objective: Annotated[str | None, typer.Option("--objective", help="'dice-batch', or another of `fit`.")] = None,
    epochs: PassesOpt = None,
    batch_windows: Annotated[int | None, typer.Option("--batch-windows", min=1, help="Windows in a step.")] = None,
    batch_size: BatchOpt = None,
    head_learning_rate: Annotated[float | None, typer.Option("--head-lr", help="Of the head, as in `fit`.")] = None,
    head_weight_decay: Annotated[float | None, typer.Option("--head-wd", help="Of the head, as in `fit`.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Of the backbone: lora 1e-4, full 1e-5.")] = None,
    weight_decay: Annotated[float | None, typer.Option("--wd", help="Of the backbone's matrices.")] = None,
    layer_decay: Annotated[
        float | None, typer.Option("--layer-decay", help="Rate of a block, by the next one.")
    ] = None,
    warmup: Annotated[float | None, typer.Option("--warmup", help="Share of steps in which the rate grows.")] = None,
    clip_norm: Annotated[float | None, typer.Option("--clip", help="Largest norm of the gradient; 0: none.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Of the updates of lora.")] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="Scale of the updates, times rank.")] = None,
    keep: Annotated[str | None, typer.Option("--keep", help="'best' epoch on validation, or 'last'.")] = None,
    checkpoint_steps: StepsOpt = None,
    views: ViewsOpt = None,
    degrade: Annotated[str | None, typer.Option("--degrade", help="Preset or chain of the degraded views.")] = None,
    hold_out: HoldOutOpt = None,
    device: DeviceOpt = "auto",
    precision: PrecisionOpt = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Deals sources, orders windows, draws weights.")] = 0,
    root: RootOpt = None,
    max_pixels: MaxPixelsOpt = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print windows, steps and ETA; train nothing.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Train a backbone, or a head alone, on the images of MANIFEST; run again to resume."""
    settings = _settings(locals())
    from dlprobe.backbones import load_backbone
    from dlprobe.data import Manifest
    from dlprobe.studies import estimate_finetune
    from dlprobe.studies import finetune as run

    expect_damage()
    modes, table = tuple(mode or ("lora",)), Manifest.read(manifest, root)
    tell_faults(manifest)
    where = {"weights": weights, "device": device, "precision": precision, "batch_size": batch_size}
    model = load_backbone(backbone, layers=layer_numbers(layers), norm=norm, window_px=window, **where)
    tell_dropped(model)
    if dry_run:
        emit(estimate_finetune(table, model, modes=modes, settings=settings), as_json=as_json)
        return
    limit = pixel_limit(max_pixels)
    with progress_bar("finetune", "steps") as progress:
        result = run(table, model, out, modes=modes, settings=settings, progress=progress, **limit)
    if as_json:
        emit(result.results.to_dict("records"), as_json=True)
    else:
        emit_run(result.short(), result.out)
    for note in (*result.notes, *(f"rejected: {path}: {reason}" for path, reason in result.rejects.items())):
        talk(note)
    if result.rejects:
        raise typer.Exit(EXIT_REJECTS)


def _settings(given: dict[str, Any]) -> FinetuneSettings:
    """Return the settings among the parameters of the command, which have their names."""
    from dlprobe.finetune import FinetuneSettings

    names = [field.name for field in fields(FinetuneSettings)]
    chosen = {name: given[name] for name in names if given[name] is not None}
    return FinetuneSettings(**{name: tuple(v) if isinstance(v, list) else v for name, v in chosen.items()})
