"""Commands that fill caches: extract, backbones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .boundary import EXIT_REJECTS, expect_damage, talk
from .options import (
    BatchOpt,
    CompileOpt,
    DeviceOpt,
    EngineOpt,
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
from .output import emit
from .progress import progress_bar

if TYPE_CHECKING:
    from dlprobe.extraction import ExtractionReport
    from dlprobe.extraction.planning import Plan
    from dlprobe.extraction.runners import Runner

RunnerOpt = Annotated[str, typer.Option("--runner", help="'local', or 'ray' for the machines of a cluster.")]
AddressOpt = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster: auto, HOST:6379 or ray://HOST:10001; else RAY_ADDRESS or its own."),
]
WorkersOpt = Annotated[int | None, typer.Option("--workers", min=1, help="Ray workers; by GPUs or CPU cores.")]
CoresOpt = Annotated[
    int | None, typer.Option("--cpus-per-worker", min=1, help="CPU cores, and threads, of a Ray worker on CPUs; 1.")
]
WorkerDeviceOpt = Annotated[
    str | None, typer.Option("--worker-device", help="cuda: of Ray workers, where this machine has no such device.")
]
DegradeOpt = Annotated[
    str | None, typer.Option("--degrade", help="Preset, or chain such as 'jpeg:quality=80', of degraded views.")
]


def extract(
    manifest: Annotated[Path, typer.Argument(help="Manifest that `dlprobe scan` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder or s3://BUCKET/PREFIX; run again to resume.")],
    backbone: Annotated[str, typer.Option("--backbone", help="Such as timm:NAME or residual:srm; see backbones.")],
    weights: WeightsOpt = "pretrained",
    window: Annotated[int | None, typer.Option("--window", min=1, help="Side of a window in pixels.")] = None,
    stride: Annotated[int, typer.Option("--stride", min=1, help="Intended distance of two windows in pixels.")] = 504,
    tiling: Annotated[str, typer.Option("--tiling", help="'spread' or 'cover'.")] = "spread",
    layers: Annotated[str, typer.Option("--layers", help="Blocks to concatenate, such as '-1' or '-1,-4'.")] = "-1",
    norm: Annotated[bool, typer.Option("--norm/--no-norm", help="Apply the final LayerNorm.")] = True,
    cls: Annotated[bool, typer.Option("--cls", help="Store the CLS token of every window, too.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="Stored type: float16, float32 or int8.")] = "float16",
    store: Annotated[str | None, typer.Option("--store", help="Back end of a new cache: zarr or hdf5.")] = None,
    compress: Annotated[bool, typer.Option("--compress", help="Compress all of a new zarr cache.")] = False,
    block_windows: Annotated[int | None, typer.Option("--block-windows", min=1, help="Windows in a block.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Orders the images.")] = 0,
    device: DeviceOpt = "auto",
    engine: EngineOpt = "torch",
    precision: PrecisionOpt = "auto",
    batch_size: BatchOpt = None,
    compiled: CompileOpt = False,
    root: RootOpt = None,
    views: Annotated[int, typer.Option("--views", min=1, help="Clean view and degraded ones of each image.")] = 1,
    degrade: DegradeOpt = None,
    shard: Annotated[str, typer.Option("--shard", help="'I/N': every N-th block from block I on, from 0.")] = "0/1",
    runner: RunnerOpt = "local",
    address: AddressOpt = None,
    workers: WorkersOpt = None,
    cpus_per_worker: CoresOpt = None,
    worker_device: WorkerDeviceOpt = None,
    max_pixels: MaxPixelsOpt = None,
    retry_rejects: Annotated[bool, typer.Option("--retry-rejects", help="Compute blocks with rejects again.")] = False,
    allow_mixed: Annotated[bool, typer.Option("--allow-mixed", help="Resume though the execution differs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print windows, bytes, ETA of what is left.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Store the embeddings of every window of MANIFEST in a cache; run again to resume."""
    from dlprobe.backbones import load_backbone
    from dlprobe.data import Manifest
    from dlprobe.extraction import estimate, plan
    from dlprobe.extraction import extract as run

    expect_damage()
    table = Manifest.read(manifest, root)
    tell_faults(manifest)
    identity = {"weights": weights, "layers": layer_numbers(layers), "norm": norm, "window_px": window}
    execution = {"device": device, "engine": engine, "precision": precision, "compiled": compiled}
    model = load_backbone(backbone, **identity, **execution, batch_size=batch_size)
    tell_dropped(model)
    options = {"stride_px": stride, "tiling": tiling, "dtype": dtype, "block_windows": block_windows, "seed": seed}
    options |= {"views": views, "degrade": degrade, "cls": cls}
    part = _shard(shard)
    if dry_run:
        todo = plan(table, model.spec, **options)
        emit([estimate(todo, model, out, shard=part, store=store)], as_json=as_json)
        _tell_idle(part, todo)
        return
    settings = {"store": store, "compress": compress, "retry_rejects": retry_rejects, "allow_mixed": allow_mixed}
    hands = _runner(runner, address=address, workers=workers, cores=cpus_per_worker, device=worker_device)
    settings |= {"shard": part, "runner": hands, **pixel_limit(max_pixels)}
    with progress_bar("extract", "windows") as progress:
        report = run(table, model, out, **options, **settings, progress=progress)
    if not report.windows:
        _tell_idle(part, plan(table, model.spec, **options))
    _tell(report, as_json)


def backbones(as_json: JsonOpt = False) -> None:
    """List the backbones that are known by name, and whether their weights are here."""
    from dlprobe.backbones import list_backbones

    emit([asdict(row) for row in list_backbones()], as_json=as_json)


def _tell(report: ExtractionReport, as_json: bool) -> None:
    if report.drifted:
        talk(f"drift: this machine differs by {report.drift:.2g} (relative) from the one that began the cache")
    for reject in report.rejected:
        talk(f"rejected: {reject.path}: {reject.reason}")
    done = {"cache": str(report.path), "windows": report.windows, "done": report.done, "skipped": report.skipped}
    emit([{**done, "rejected": len(report.rejected), "drift": report.drift}], as_json=as_json)
    if report.rejected:
        raise typer.Exit(EXIT_REJECTS)


def _tell_idle(shard: tuple[int, int], todo: Plan) -> None:
    """Say why a shard has nothing to do: there are fewer blocks than shards."""
    if shard[0] < todo.n_blocks:
        return
    blocks = "1 block" if todo.n_blocks == 1 else f"{todo.n_blocks} blocks"
    talk(
        f"shard {shard[0]}/{shard[1]} has nothing to do: the {len(todo.windows)} windows make {blocks} of "
        f"{todo.cache_spec.block_windows}, fewer than {shard[1]} shards; give fewer shards, or all of them smaller "
        "blocks (--block-windows)"
    )


def _runner(
    name: str, *, address: str | None, workers: int | None, cores: int | None, device: str | None
) -> str | Runner:
    from dlprobe.extraction import RayRunner

    if name == "ray":
        return RayRunner(address=address, workers=workers, cpus_per_worker=cores or 1, device=device)
    if address or workers or cores or device:
        msg = "--address, --workers, --cpus-per-worker and --worker-device are of --runner ray"
        raise typer.BadParameter(msg)
    return name


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        msg = f"--shard {text!r} is no shard; write such as 0/4"
        raise typer.BadParameter(msg)
    return int(number), int(count)
