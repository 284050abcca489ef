"""The user's photographs: found, read once, cut, named, paired with donors."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlprobe.data.images import IMAGE_SUFFIXES, read_image
from dlprobe.data.layouts.base import COCO_STEM, Reject
from dlprobe.data.synthesis.photographs import Photograph
from dlprobe.errors import DataError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

_UNSAFE = re.compile(r"[^\w-]+", re.ASCII)
_HASH_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Source:
    """A photograph that can be used; its pixels stay in its file.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        Folder in the data set.
    source_id : str
        The photograph's name in the manifest.
    sha256 : str
        Of the pixels that are used.
    size : tuple of int
        Height and width as stored, upright.
    cut : tuple of slice
        Rows and columns that are used.
    grey : bool
        Whether the three channels are equal everywhere.
    """

    path: Path
    name: str
    source_id: str
    sha256: str
    size: tuple[int, int]
    cut: tuple[slice, slice]
    grey: bool

    def read(self) -> Photograph:
        """Return the part that is used; raise `DataError` if the file can no longer be read."""
        return Photograph(self.source_id, read_image(self.path)[self.cut].copy())


def find_images(given: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return files as given and the image files below folders, sorted, each once.

    Raises
    ------
    DataError
        If there are none.
    """
    found: dict[Path, None] = {}
    for place in map(Path, given):
        if place.is_dir():
            inside = (path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
            found.update(dict.fromkeys(sorted(inside)))
        else:
            found[place] = None
    if not found:
        msg = "no image to make a data set of; give image files, or folders that hold some"
        raise DataError(msg)
    return list(found)


def survey(
    paths: Sequence[Path],
    side_px: int,
    multiple_px: int,
    dataset: str,
    progress: Callable[[int], None],
) -> tuple[list[Source], list[Reject]]:
    """Decode every photograph once.

    Parameters
    ----------
    paths : sequence of Path
        Image files.
    side_px : int
        Longer sides are cut to it, about the centre.
    multiple_px : int
        Sides are cut to a multiple of it.
    dataset : str
        Namespace of source_ids.
    progress : callable
        Called with the number of photographs done.

    Returns
    -------
    list of Source
        With unique names and source_ids.
    list of Reject
        Photographs that cannot be read, are too small, or stand among the sources already.
    """
    sources: dict[str, Source] = {}
    rejects: list[Reject] = []
    hashes: dict[str, Path] = {}
    for done, path in enumerate(paths, start=1):
        try:
            source = _surveyed(path, side_px, multiple_px, dataset)
            _refuse_again(source, sources, hashes)
        except DataError as error:
            rejects.append(Reject(str(path), str(error), "unreadable"))
        else:
            if source.name.lower() in sources:  # another photograph of that name
                source = _renamed(source, dataset)
            sources[source.name.lower()] = source
            hashes[source.sha256] = path
        progress(done)
    return list(sources.values()), rejects


def donors(sources: Sequence[Source]) -> dict[str, Source]:
    """Return for each source_id the photograph whose content it may be given.

    Neighbours are each other's donors, grey with grey and colour with colour where it comes out even; of an odd number
    the last three go round. So groups of sources that no split may part stay small.
    """
    ordered = sorted(sources, key=lambda source: (source.grey, source.source_id))
    partners: dict[str, Source] = {}
    for start in range(0, len(ordered) - 1, 2):
        group = ordered[start : start + (3 if start == len(ordered) - 3 else 2)]
        for place, source in enumerate(group):
            partners[source.source_id] = group[(place + 1) % len(group)]
    return partners


def _surveyed(path: Path, side_px: int, multiple_px: int, dataset: str) -> Source:
    pixels = read_image(path)
    height, width = pixels.shape[:2]
    cut = _centre(height, side_px, multiple_px), _centre(width, side_px, multiple_px)
    used = Photograph("", pixels[cut])
    if not used.pixels.size:
        msg = f"{path} is {width}x{height} px, below the {multiple_px} px that the back end needs; give a larger image"
        raise DataError(msg)
    digest = hashlib.sha256(repr(used.pixels.shape).encode() + used.pixels.tobytes()).hexdigest()
    match = COCO_STEM.match(path.stem)
    name = match[1] if match else _UNSAFE.sub("_", path.stem).strip("_") or "image"
    source_id = f"{'coco' if match else dataset}:{name}"
    return Source(path, name, source_id, digest, (height, width), cut, used.grey)


def _centre(side: int, side_px: int, multiple_px: int) -> slice:
    used = min(side, side_px) // multiple_px * multiple_px
    start = (side - used) // 2
    return slice(start, start + used)


def _refuse_again(source: Source, sources: dict[str, Source], hashes: dict[str, Path]) -> None:
    """Raise for a photograph that is there already: under two source_ids it could stand in two splits."""
    twin = hashes.get(source.sha256)
    namesake = sources.get(source.name.lower())
    if twin is None and namesake is not None and source.source_id.startswith("coco:"):
        twin = namesake.path
    if twin is not None:
        msg = f"{source.path} is the same photograph as {twin}; give each photograph once"
        raise DataError(msg)


def _renamed(source: Source, dataset: str) -> Source:
    name = f"{source.name}-{source.sha256[:_HASH_DIGITS]}"
    return Source(source.path, name, f"{dataset}:{name}", source.sha256, source.size, source.cut, source.grey)
