"""Write families of photographs as files that any user's data could be, with every parameter beside them."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from dlprobe import plotting
from dlprobe.data.layouts.base import Reject
from dlprobe.data.manifest import TEXT_COLUMNS
from dlprobe.data.provenance import Variant
from dlprobe.data.scan import scan
from dlprobe.data.synthesis.generator.backends import Synthesizer, open_backend
from dlprobe.data.synthesis.generator.settings import SynthesisSettings
from dlprobe.data.synthesis.generator.shapes import Shape, box_around, draw_mask, given_mask
from dlprobe.data.synthesis.generator.sources import Source, donors, find_images, survey
from dlprobe.data.synthesis.masks import window_frame
from dlprobe.errors import DataError, OutputError
from dlprobe.publish import publish
from dlprobe.spec import sha256_of_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dlprobe.data.manifest import Manifest
    from dlprobe.data.synthesis.generator.backends import Made
    from dlprobe.data.synthesis.masks import Frame
    from dlprobe.data.synthesis.photographs import Photograph

#: Beside ``manifest.csv``: one JSON object a line and image, and the settings of the run with its photographs.
PARAMETERS, RUN = "parameters.jsonl", "synthesis.json"
_PNG_LEVEL = 3
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SynthesisReport:
    """What was written.

    Parameters
    ----------
    path : Path
        The data set's folder.
    manifest : Manifest
        As the layout ``csv`` reads it.
    rejects : list of Reject
        Photographs that are not in it, with reasons.
    """

    path: Path
    manifest: Manifest
    rejects: list[Reject]

    def frame(self) -> pd.DataFrame:
        """Return what was written, one row a variant and generator: ``images``, ``photographs``."""
        groups = self.manifest.frame.groupby(["variant", "generator"], sort=True)["source_id"]
        return groups.agg(images="size", photographs="nunique").reset_index()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how many images of each variant and generator were written."""
        table = self.frame()
        names = [" ".join(filter(None, pair)) for pair in zip(table["variant"], table["generator"], strict=True)]
        return plotting.bars(names, table["images"], ax=ax, words=f"images, {len(self.rejects)} photographs rejected")


class _Task(NamedTuple):
    """One photograph to be altered, with what it takes."""

    source: Source
    donor: Source | None
    turn: int


def synthesize(
    images: Iterable[str | os.PathLike[str]],
    out: Path,
    *,
    settings: SynthesisSettings | None = None,
    backend: str | Synthesizer = "offline",
    progress: Callable[[int, int], None] | None = None,
    **options: object,
) -> SynthesisReport:
    """Write a data set of families as B-Free's: each photograph as it is, auto-encoded, spliced and regenerated.

    Parameters
    ----------
    images : iterable of path
        Photographs, or folders of them.
    out : Path
        Folder to be made: ``manifest.csv``, ``parameters.jsonl`` (one line an image), ``synthesis.json`` and a
        sub-folder of PNG files a photograph. It is there when it is whole.
    settings : SynthesisSettings, optional
        Masks, sizes and seed.
    backend : str or Synthesizer
        A name of `BACKENDS`, or a back end that is open already.
    progress : callable, optional
        Called with the number of steps done and in all: a photograph is read in one step and altered in another.
    **options
        Of the back end, where it is a name; see `open_backend`.

    Returns
    -------
    SynthesisReport
        The manifest, and the photographs that could not be used.

    Raises
    ------
    OutputError
        If `out` exists, or lies in a folder of photographs, where the next run would take fakes for photographs.
    DataError
        If no photograph can be used, there are too few for the back end, or an option is out of range.
    RegistryError
        If no back end has that name.
    """
    settings = settings or SynthesisSettings()
    if out.exists():
        msg = f"{out} exists already; name a new folder for the data set or remove it"
        raise OutputError(msg)
    places = [Path(place) for place in images]
    if inside := next((place for place in places if out.resolve().is_relative_to(place.resolve())), None):
        msg = f"{out} lies in {inside}, where it would be taken for photographs next time; name a folder elsewhere"
        raise OutputError(msg)
    paths = find_images(places)
    engine = open_backend(backend, **options) if isinstance(backend, str) else backend
    side_px = engine.side_px if settings.side_px is None else settings.side_px
    settings = replace(settings, side_px=side_px)
    report = progress or _silent
    whole = 2 * len(paths)
    sources, rejects = survey(paths, side_px, engine.multiple_px, settings.dataset, lambda done: report(done, whole))
    _require_any(sources, rejects, "read")
    partners = donors(sources) if engine.donating else {}
    engine.prepare(sources, partners)
    tasks = [_Task(source, partners.get(source.source_id), turn) for turn, source in enumerate(sources)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with publish(out) as scratch:
        scratch.mkdir()
        rows = []
        for done, result in enumerate(_run(engine, settings, tasks, scratch), start=1):
            if isinstance(result, Reject):
                rejects.append(result)
            else:
                rows.extend(result)
            report(len(paths) + done, whole)
        _require_any(rows, rejects, "altered")
        _write_tables(scratch, rows, sources, rejects, settings=settings, backend=backend)
    return SynthesisReport(out, scan(out, layout="csv", sample=0).manifest, rejects)


def _silent(done: int, total: int) -> None:
    """Take no notice."""


def _require_any(kept: Sequence[object], rejects: Sequence[Reject], verb: str) -> None:
    if not kept:
        msg = f"not one of {len(rejects)} photographs could be {verb}; the first: {rejects[0].reason}"
        raise DataError(msg)


def _run(
    engine: Synthesizer, settings: SynthesisSettings, tasks: Sequence[_Task], root: Path
) -> Iterator[list[Row] | Reject]:
    workers = min(len(tasks), os.cpu_count() or 1) if engine.parallel else 1
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(lambda task: _family_or_reject(engine, settings, task, root), tasks)
    finally:
        pool.shutdown(cancel_futures=True)  # else Ctrl-C would wait for every photograph


def _family_or_reject(engine: Synthesizer, settings: SynthesisSettings, task: _Task, root: Path) -> list[Row] | Reject:
    folder = root / task.source.name
    folder.mkdir()
    try:
        return list(_family(engine, settings, task, root))
    except DataError as error:
        shutil.rmtree(folder)
        return Reject(str(task.source.path), str(error), "not-altered")


def _family(engine: Synthesizer, settings: SynthesisSettings, task: _Task, root: Path) -> Iterator[Row]:
    source, donor = task.source, task.donor.read() if task.donor else None
    photograph = source.read()
    basis = _basis(settings, source)
    yield _save(root, source, basis, Variant.REAL, photograph.pixels)
    for made in engine.autoencoded(photograph):
        yield _save(root, source, basis, Variant.AE, made.pixels, made=made)
    for number, (kind, share) in enumerate(settings.masks_wanted(task.turn)):
        rng = np.random.default_rng([settings.seed, zlib.crc32(source.source_id.encode()), number])
        frame = window_frame(rng, photograph.pixels.shape[:2], settings.window_px)
        shape = _shape(settings, source, photograph, kind=kind, share=share, rng=rng, frame=frame)
        measured = basis | _measured(shape, frame)
        _png(root / source.name / f"mask-{shape.name}.png", shape.mask.astype(np.uint8) * 255)
        for made in engine.inpainted(photograph, donor, shape.mask, rng):
            spliced = np.where(shape.mask[..., None], made.pixels, photograph.pixels)
            yield _save(root, source, measured, Variant.SP, spliced, made=made, shape=shape)
            yield _save(root, source, measured, Variant.FR, made.pixels, made=made, shape=shape)


def _shape(
    settings: SynthesisSettings,
    source: Source,
    photograph: Photograph,
    *,
    kind: str,
    share: float | None,
    rng: np.random.Generator,
    frame: Frame,
) -> Shape:
    if share is not None:
        mask = draw_mask(kind, rng, photograph.pixels, frame, share)
    elif settings.object_masks is not None:
        mask = given_mask(settings.object_masks, source.path.stem, source.size, source.cut)
        mask = box_around(mask) if kind == "box" else mask
    if not mask.any() or mask.all():
        msg = f"{source.path} has no room for a {kind} mask; give a larger photograph or another share"
        raise DataError(msg)
    return Shape(kind, share, mask)


def _basis(settings: SynthesisSettings, source: Source) -> Row:
    rows, columns = source.cut
    return {
        "seed": settings.seed,
        "photograph": source.path.name,
        "cut": {
            "y": rows.start,
            "x": columns.start,
            "h": rows.stop - rows.start,
            "w": columns.stop - columns.start,
        },
        "grey": source.grey,
    }


def _measured(shape: Shape, frame: Frame) -> Row:
    area_px = int(shape.mask.sum())
    return {
        "mask_share_wanted": shape.wanted,
        "mask_share_of_window": area_px / (frame.h * frame.w),
        "mask_share_of_image": area_px / shape.mask.size,
        "mask_px": area_px,
        "window": {name: float(value) for name, value in frame._asdict().items()},
    }


def _save(
    root: Path,
    source: Source,
    parameters: Mapping[str, object],
    variant: Variant,
    pixels: NDArray[np.uint8],
    *,
    made: Made | None = None,
    shape: Shape | None = None,
) -> Row:
    """Write one image; return its row of the manifest with its further parameters."""
    generator = made.generator if made else ""
    kind = shape.name if shape else ""
    stem = "-".join(part for part in (variant, generator.replace("+", "-"), kind) if part)
    path = f"{source.name}/{stem}.png"
    _png(root / path, pixels)
    named = {
        "path": path,
        "mask": f"{source.name}/mask-{kind}.png" if shape else "",
        "variant": str(variant),
        "source_id": source.source_id,
        "donor_id": made.donor_id if made else "",
        "generator": generator,
        "mask_kind": kind,
    }
    return named | dict(parameters) | (made.parameters if made else {})


def _png(path: Path, pixels: NDArray[np.uint8]) -> None:
    Image.fromarray(pixels).save(path, compress_level=_PNG_LEVEL)


def _write_tables(
    root: Path,
    rows: Sequence[Row],
    sources: Sequence[Source],
    rejects: Sequence[Reject],
    *,
    settings: SynthesisSettings,
    backend: str | Synthesizer,
) -> None:
    frame = pd.DataFrame(rows).assign(dataset=settings.dataset, split="")
    frame[list(TEXT_COLUMNS)].to_csv(root / "manifest.csv", index=False)
    name = backend if isinstance(backend, str) else type(backend).__name__
    with (root / PARAMETERS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({**row, "backend": name}) + "\n" for row in rows)
    run = {
        "backend": name,
        "settings": asdict(settings),
        "photographs": [
            {
                "source_id": source.source_id,
                "file": str(source.path),
                "file_sha256": sha256_of_file(source.path),
                "pixels_sha256": source.sha256,
            }
            for source in sources
        ],
        "rejects": [reject._asdict() for reject in rejects],
    }
    (root / RUN).write_text(json.dumps(run, indent=1, default=str) + "\n", encoding="utf-8")
