"""Commands that look after a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlprobe.errors import DataError

from .boundary import EXIT_REJECTS, talk
from .options import JsonOpt, MaxPixelsOpt, RootOpt, pixel_limit
from .output import emit
from .progress import progress_bar

app = typer.Typer(no_args_is_help=True, help="Look after a cache.")
#: Of the number of a window.
_INDEX_BYTES = 8
CacheArg = Annotated[Path, typer.Argument(help="Folder, or s3://BUCKET/PREFIX, that `dlprobe extract` filled.")]
OtherArg = Annotated[Path, typer.Argument(help="Folder, or s3://BUCKET/PREFIX, of another cache.")]
ManifestArg = Annotated[Path, typer.Argument(help="Manifest that the cache was made from.")]
StoreOpt = Annotated[str, typer.Option("--store", help="Back end of the new cache: 'zarr' or 'hdf5'.")]
CompressOpt = Annotated[bool, typer.Option("--compress", help="Compress all of it (zarr alone).")]
WeightsOpt = Annotated[
    str | None, typer.Option("--weights", help="Where the backbone's weights are, if not where the cache says.")
]


@app.command()
def info(path: CacheArg, as_json: JsonOpt = False) -> None:
    """Print what a cache holds: identity, geometry, completeness, bytes."""
    from dlprobe.cache import describe

    fields = describe(path)
    emit([fields] if as_json else [{"field": k, "value": str(v)} for k, v in fields.items()], as_json=as_json)


@app.command()
def verify(
    path: CacheArg,
    deep: Annotated[int, typer.Option("--deep", min=0, help="Embed this many windows again and compare.")] = 0,
    manifest: Annotated[Path | None, typer.Option("--manifest", help="Manifest of the cache, for --deep.")] = None,
    root: RootOpt = None,
    weights: WeightsOpt = None,
    seed: Annotated[int, typer.Option("--seed", help="Draws the windows of --deep.")] = 0,
    max_pixels: MaxPixelsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Compare every stored byte with its checksum; exit with 3 if something is damaged."""
    from dlprobe.cache import verify as run

    if deep and manifest is None:
        msg = "--deep reads images; name the cache's manifest with --manifest"
        raise typer.BadParameter(msg)
    damages = run(path)
    said = "every stored byte agrees with its checksum"
    if damages:
        left_out = "; no window was embedded again (--deep)" if deep else ""
        parts = "1 damaged part" if len(damages) == 1 else f"{len(damages)} damaged parts"
        said = f"{parts}{left_out}; mend with `dlprobe cache repair {path} MANIFEST`"
    elif deep and manifest is not None:
        from dlprobe.data import Manifest
        from dlprobe.extraction import backbone_of, recheck

        table, model = Manifest.read(manifest, root), backbone_of(path, weights=weights)
        damages = recheck(table, model, path, deep, seed=seed, **pixel_limit(max_pixels))
        if damages:
            said += f", yet {len(damages)} of the images or windows drawn are other ones now; extract to another path"
    emit([damage._asdict() for damage in damages], as_json=as_json)
    talk(said)
    if damages:
        raise typer.Exit(EXIT_REJECTS)


@app.command()
def repair(
    path: CacheArg,
    manifest: ManifestArg,
    root: RootOpt = None,
    weights: WeightsOpt = None,
    allow_mixed: Annotated[bool, typer.Option("--allow-mixed", help="Repair though the execution differs.")] = False,
    max_pixels: MaxPixelsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Compute again what is damaged or missing in a cache; exit with 3 if other bytes come out than were recorded."""
    from dlprobe.data import Manifest
    from dlprobe.extraction import backbone_of
    from dlprobe.extraction import repair as run

    with progress_bar("repair", "windows") as progress:
        report = run(
            Manifest.read(manifest, root),
            backbone_of(path, weights=weights),
            path,
            allow_mixed=allow_mixed,
            **pixel_limit(max_pixels),
            progress=progress,
        )
    emit([report.row()], as_json=as_json)
    if count := len(report.set_apart):
        files = "file that is no part of the cache was" if count == 1 else "files that are no part of the cache were"
        talk(f"{count} {files} moved to {report.path}/strays")
    if report.different:
        talk(f"blocks {', '.join(map(str, report.different))} came out other than they were recorded")
        raise typer.Exit(EXIT_REJECTS)


@app.command()
def convert(
    path: CacheArg,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new cache; run again to resume.")],
    store: StoreOpt = "hdf5",
    compress: CompressOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Write the same cache in another back end, without loss."""
    from dlprobe.cache import convert as run
    from dlprobe.cache import describe

    with progress_bar("convert", "blocks") as progress:
        run(path, out, store=store, compress=compress, progress=progress)
    emit([_size(describe(out))], as_json=as_json)


@app.command()
def merge(
    paths: Annotated[list[Path], typer.Argument(help="Caches of one model and one set of settings.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new cache; run again to resume.")],
    prefix: Annotated[
        list[str] | None, typer.Option("--prefix", help="One a cache, put before its image paths, such as 'tgif/'.")
    ] = None,
    store: StoreOpt = "zarr",
    compress: CompressOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Put several caches of one model together in a new one."""
    from dlprobe.cache import describe
    from dlprobe.cache import merge as run

    with progress_bar("merge", "blocks") as progress:
        run(paths, out, prefixes=prefix, store=store, compress=compress, progress=progress)
    emit([_size(describe(out))], as_json=as_json)


@app.command()
def diff(left: CacheArg, right: OtherArg, as_json: JsonOpt = False) -> None:
    """Print the identity fields, pins and versions in which two caches differ."""
    from dlprobe.cache import diff as run

    found = run(left, right)
    emit([item._asdict() for item in found], as_json=as_json)
    if not found:
        talk("the caches have one identity, the same pins and the same versions")


@app.command()
def parity(left: CacheArg, right: OtherArg, as_json: JsonOpt = False) -> None:
    """Print how far two caches are apart: their embeddings, and the test IoU of a probe fitted on the left one."""
    from dlprobe.studies import compare_caches

    with progress_bar("parity", "steps") as progress:
        found = compare_caches(left, right, progress=progress).row()
    fields = [{"field": k, "value": f"{v:.9g}" if isinstance(v, float) else str(v)} for k, v in found.items()]
    emit([found] if as_json else fields, as_json=as_json)


@app.command()
def export(
    path: CacheArg,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    kind: Annotated[str, typer.Option("--format", help="'npy', or 'parquet' with one row a patch.")] = "npy",
    split: Annotated[str | None, typer.Option("--split", help="Only windows of this split.")] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Only of this source_id; may be repeated.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option("--variant", help="Only of this variant; may be repeated.")
    ] = None,
    generator: Annotated[
        list[str] | None, typer.Option("--generator", help="Only of this generator; may be repeated.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="Only of this data set; may be repeated.")
    ] = None,
    windows: Annotated[
        Path | None, typer.Option("--windows", exists=True, dir_okay=False, help="Text file of window numbers.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Write a window table and embeddings of all windows, or of those that meet every condition, for other programs."""
    from dlprobe.cache import export as run

    asked = {"source_id": source, "variant": variant, "generator": generator, "dataset": dataset}
    where = {name: values for name, values in asked.items() if values}
    numbers = None if windows is None else _numbers(windows)
    count = run(path, out, format=kind, split=split, windows=numbers, where=where)
    emit([{"folder": str(out), "windows": count}], as_json=as_json)


@app.command()
def unlock(path: CacheArg, as_json: JsonOpt = False) -> None:
    """Remove the locks of killed writers from a cache on S3; make sure that they no longer run."""
    from dlprobe.cache import unlock as run

    emit([{"removed": lock} for lock in run(path)], as_json=as_json)


def _numbers(path: Path) -> list[int]:
    try:
        found = [int(word) for word in path.read_text(encoding="utf-8").split()]
        max(map(abs, found), default=0).to_bytes(_INDEX_BYTES, signed=True)
    except (ValueError, OverflowError) as error:
        msg = f"{path} is no list of window numbers ({error}); write numbers with spaces or line breaks between them"
        raise DataError(msg) from None
    return found


def _size(fields: dict[str, object]) -> dict[str, object]:
    return {name: fields[name] for name in ("path", "windows", "blocks", "complete", "bytes", "files")}
