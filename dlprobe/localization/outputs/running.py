"""Localize many images: read ahead, look, write behind; what is there already is left alone."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlprobe.data.images import MAX_PIXELS
from dlprobe.errors import DataError
from dlprobe.localization.outputs.inputs import (
    TABLE_NAMES,
    Decoded,
    Folders,
    Known,
    Rejected,
    check_target,
    image_paths,
    read_record,
)
from dlprobe.localization.outputs.loading import load_probe
from dlprobe.localization.outputs.writing import UNKNOWN, Work, write_result
from dlprobe.localization.postprocess import PostProcessing
from dlprobe.localization.settings import SlidingSettings
from dlprobe.localization.sliding import require_workable, score_maps
from dlprobe.publish import publish, sigterm_raises

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dlprobe.backbones import Backbone
    from dlprobe.probes import Probe

#: Images that wait decoded, and threads that write results: packing pictures takes longer than a GPU's look at them.
READ_AHEAD = 2
WRITERS = max(1, min(8, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True, slots=True)
class Localization:
    """What was written for one image, or why nothing was.

    Attributes
    ----------
    image : str
        Path as given.
    folder : Path or None
        Where its files are; None if the image was rejected.
    image_score : float
        99th percentile of the score map at working size; NaN if rejected.
    area : float
        Share of the working-size map at or above the threshold; NaN if rejected.
    reason : str
        Why it was rejected, or empty.
    verdict : str
        ``nothing``, ``region`` or ``whole image``; empty if rejected.
    n_regions : int
        Connected regions of the mask.
    mask_area : float
        Share of the image that the mask marks, after post-processing; NaN if rejected.
    height, width : int
        Of the image; 0 if rejected.
    sha256 : str
        Of the image's file; empty if rejected.
    seen : str
        What the probe owes to this photograph by the bytes of the file: ``trained on``, ``chosen on``, ``calibrated
        on``, or ``unknown`` where its card lists no files; empty if the card lists others, or if rejected.
    skipped : bool
        Whether the result was there already.
    """

    image: str
    folder: Path | None
    image_score: float
    area: float
    reason: str = ""
    verdict: str = ""
    n_regions: int = 0
    mask_area: float = float("nan")
    height: int = 0
    width: int = 0
    sha256: str = ""
    seen: str = ""
    skipped: bool = False


def localize(
    images: Sequence[str | os.PathLike[str]],
    backbone: Backbone,
    probe: Probe,
    out: str | os.PathLike[str],
    *,
    threshold: float | None = None,
    sliding: SlidingSettings | None = None,
    postprocessing: PostProcessing | None = None,
    recursive: bool = False,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[Localization]:
    """Write the score map, mask, overlay and record of each image into a folder of its own below `out`.

    ``docs/localize.md`` lists the files. An image's folder has the name of its file; another image of that name gets a
    folder of name and hash. A table of all images that were ever localized into `out` is kept beside the folders.

    Parameters
    ----------
    images : sequence of path
        Images, and folders of images; one that cannot be read is rejected, and the others go on.
    backbone, probe : Backbone, Probe
        As for `score_map`.
    out : path
        Folder to write into. An image whose result for this probe and these settings is there is skipped; a result for
        others is replaced.
    threshold : float, optional
        Score at or above which a pixel is marked; the one on the probe's card by default.
    sliding : SlidingSettings, optional
    postprocessing : PostProcessing, optional
        What is done after the threshold; nothing by default.
    recursive : bool
        Look into folders of folders.
    overwrite : bool
        Replace also results for this probe and these settings.
    max_pixels : int
        Larger images are rejected; raise it for files that you trust.
    progress : callable, optional
        Called with the number of images done and in all.
    **options
        Fields of `SlidingSettings`, instead of `sliding`.

    Returns
    -------
    list of Localization
        In the order of `images`.

    Raises
    ------
    DataError
        If not one image can be read, or a folder holds none.
    OutputError
        If `out` exists and is no folder, or holds something else where results should go.
    """
    paths = image_paths(images, recursive=recursive)
    target = Path(out)
    check_target(target, paths)
    cut = probe.threshold if threshold is None else threshold
    work = Work(backbone, probe, cut, sliding or SlidingSettings(**options), postprocessing or PostProcessing())
    run = _Run(work, Folders(target, work.identity, overwrite=overwrite, max_pixels=max_pixels), paths, progress)
    try:
        with sigterm_raises():
            run.go()
    finally:
        run.write_table(target)
    results = [run.results[number] for number in range(len(paths))]
    if results and all(result.folder is None for result in results):
        raise DataError(results[0].reason)
    return results


def localize_files(
    probe: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    weights: str | None = None,
    device: str = "auto",
    engine: str = "torch",
    precision: str = "auto",
    batch_size: int | None = None,
    **options: Any,
) -> list[Localization]:
    """Load a probe and the backbone that its card names, and localize images.

    Parameters
    ----------
    probe : path
        A probe file.
    images, out
        As for `localize`.
    weights : str, optional
        Where the backbone's weights are, if not where the card says; their content must be the same.
    device, engine, precision, batch_size
        As for `dlprobe.backbones.load_backbone`.
    **options
        Further arguments of `localize`.

    Raises
    ------
    ProbeError
        If the card does not name a backbone.
    IdentityError
        If the backbone that was loaded is not the one that the probe was fitted on.
    """
    head, backbone = load_probe(
        probe, weights=weights, device=device, engine=engine, precision=precision, batch_size=batch_size
    )
    return localize(images, backbone, head, out, **options)


class _Run:
    """One pass over the images: who is read, looked at and written at any time is bounded."""

    def __init__(
        self, work: Work, folders: Folders, paths: list[str], progress: Callable[[int, int], None] | None
    ) -> None:
        self.results: dict[int, Localization] = {}
        self._work, self._folders, self._paths, self._progress = work, folders, paths, progress
        self._known: dict[int, Known] = {}
        self._side = work.backbone.spec.window_px

    def go(self) -> None:
        behind: deque[tuple[int, Decoded, Future[dict[str, Any]]]] = deque()
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="dlprobe-write") as disk:
            maps = score_maps(self._wanted(), self._work.backbone, self._work.probe, self._work.sliding)
            for (number, image), found in maps:
                while len(behind) >= WRITERS:
                    self._written(*behind.popleft())
                behind.append((number, image, disk.submit(write_result, image, found, self._work)))
            while behind:
                self._written(*behind.popleft())
        for number, known in self._known.items():
            self._done(
                number, self._from_record(known.path, known.folder, read_record(known.folder) or {}, skipped=True)
            )

    def write_table(self, target: Path) -> None:
        """Write what is known of all images into the table, over what an earlier run knew of them."""
        import pandas as pd

        if not any(result.folder for result in self.results.values()):
            return
        ordered = [asdict(self.results[number]) for number in sorted(self.results)]
        for row in ordered:
            row["folder"] = row["folder"].name if row["folder"] else ""
            del row["skipped"]
        table = pd.DataFrame(ordered)
        parquet, csv = (target / name for name in TABLE_NAMES)
        if parquet.is_file():
            before = pd.read_parquet(parquet)
            before = before.assign(seen=before.get("seen", UNKNOWN))  # earlier tables do not say
            table = pd.concat([before[~before["image"].isin(table["image"])], table], ignore_index=True)
        with publish(parquet) as scratch:
            table.to_parquet(scratch, index=False)
        with publish(csv) as scratch:
            table.to_csv(scratch, index=False)

    def _wanted(self) -> Iterator[tuple[tuple[int, Decoded], NDArray[np.uint8]]]:
        """Yield the images that must be looked at, decoded ahead by a thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="dlprobe-read") as reader:
            ahead: deque[Future[Decoded | Known | Rejected]] = deque()
            waiting = iter(self._paths)
            try:
                for number in range(len(self._paths)):
                    ahead.extend(reader.submit(self._folders.open, path) for path in _some(waiting, ahead))
                    image = self._workable(ahead.popleft().result())
                    if isinstance(image, Decoded):
                        yield (number, image), image.pixels
                    elif isinstance(image, Known):
                        self._known[number] = image
                    else:
                        nan = float("nan")
                        self._done(number, Localization(image.path, None, nan, nan, image.reason))
            finally:
                reader.shutdown(cancel_futures=True)

    def _workable(self, image: Decoded | Known | Rejected) -> Decoded | Known | Rejected:
        if isinstance(image, Decoded):
            try:
                require_workable(image.pixels.shape[0], image.pixels.shape[1], self._side)
            except DataError as error:
                return Rejected(image.path, f"{image.path}: {error}")
        return image

    def _written(self, number: int, image: Decoded, future: Future[dict[str, Any]]) -> None:
        self._done(number, self._from_record(image.path, image.folder, future.result()))

    def _from_record(self, path: str, folder: Path, record: dict[str, Any], *, skipped: bool = False) -> Localization:
        return Localization(
            path,
            folder,
            record["image_score"],
            record["area"],
            verdict=record["verdict"]["kind"],
            n_regions=record["n_regions"],
            mask_area=record["mask_area"],
            height=record["image"]["height"],
            width=record["image"]["width"],
            sha256=record["image"]["sha256"],
            seen=self._work.seen(record["image"]["sha256"]),
            skipped=skipped,
        )

    def _done(self, number: int, result: Localization) -> None:
        self.results[number] = result
        if self._progress:
            self._progress(len(self.results), len(self._paths))


def _some(waiting: Iterable[str], ahead: Sequence[object]) -> Iterator[str]:
    """Yield as many further paths as may wait."""
    for _, path in zip(range(READ_AHEAD - len(ahead)), waiting, strict=False):
        yield path
