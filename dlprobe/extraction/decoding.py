"""Decode the images of the next block while the backbone works on this one."""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlprobe.data.degrade import view_sample
from dlprobe.data.images import MAX_PIXELS
from dlprobe.data.labels import patch_coverage
from dlprobe.data.samples import read_sample
from dlprobe.data.tiling import Box
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from dlprobe.data.degrade import Preset
    from dlprobe.data.manifest import Manifest
    from dlprobe.data.samples import Sample
    from dlprobe.spec import ModelSpec

#: Threads that decode: some more than cores on a small machine, because they wait for the disk.
DECODERS = max(4, min(16, os.cpu_count() or 1))


class Crops(NamedTuple):
    """Windows of one image.

    ``pixels`` uint8 (n, window_px, window_px, 3), ``regions`` uint8 (n, window_px, window_px), ``coverage`` uint8
    (n, rows, cols, 4), ``sha256`` of the file.
    """

    pixels: NDArray[np.uint8]
    regions: NDArray[np.uint8]
    coverage: NDArray[np.uint8]
    sha256: str


class Unreadable(NamedTuple):
    """Why an image has no windows, in one line, without the folder that the manifest lies in."""

    reason: str


class Degradations(NamedTuple):
    """What makes the degraded views of an image."""

    preset: Preset
    seed: int


class ImageWindows(NamedTuple):
    """Windows of one view of an image in a block: row of the manifest, view, positions in the block, and boxes."""

    image: int
    view: int
    positions: NDArray[np.int64]
    boxes: tuple[Box, ...]


def images_of(windows: NDArray[np.int32]) -> list[ImageWindows]:
    """Group the windows of a block by image and view.

    Parameters
    ----------
    windows : ndarray of int32, shape (n, 6)
        Rows of the windows table.
    """
    borders = np.flatnonzero(np.diff(windows[:, :2], axis=0).any(axis=1)) + 1
    found = []
    for positions in np.split(np.arange(len(windows)), borders):
        image, view = windows[positions[0], :2].tolist()
        boxes = tuple(Box(*box) for box in windows[positions, 2:].tolist())
        found.append(ImageWindows(image, view, positions, boxes))
    return found


def decode(
    manifest: Manifest,
    part: ImageWindows,
    model: ModelSpec,
    degradations: Degradations | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Crops | Unreadable:
    """Read one image and its mask, degrade them for a view other than the clean one, and cut the windows."""
    [crops] = decode_views(manifest, [part], model, degradations, max_pixels)
    return crops


def decode_views(
    manifest: Manifest,
    parts: Sequence[ImageWindows],
    model: ModelSpec,
    degradations: Degradations | None = None,
    max_pixels: int = MAX_PIXELS,
) -> list[Crops | Unreadable]:
    """Read one image and its mask once, and cut the windows of some of its views; they are asked for part by part."""
    row = manifest.frame.iloc[parts[0].image]
    try:
        sample = read_sample(manifest.root, row, model.window_px, max_pixels=max_pixels)
    except DataError as error:
        return [_unreadable(error, manifest)] * len(parts)
    return [_cut(sample, manifest, part, model, degradations) for part in parts]


def _cut(
    sample: Sample, manifest: Manifest, part: ImageWindows, model: ModelSpec, degradations: Degradations | None
) -> Crops | Unreadable:
    try:
        if degradations is not None:
            path = manifest.frame["path"].iloc[part.image]
            sample = view_sample(sample, degradations.preset, degradations.seed, part.view, path)
    except DataError as error:
        return _unreadable(error, manifest)
    regions = np.stack([sample.regions[box.slices] for box in part.boxes])
    pixels = np.stack([sample.pixels[box.slices] for box in part.boxes])
    return Crops(pixels, regions, patch_coverage(regions, model.patch_px), sample.sha256)


def _unreadable(error: DataError, manifest: Manifest) -> Unreadable:
    return Unreadable(str(error).replace(f"{manifest.root}/", ""))


Decoded = list[tuple[ImageWindows, Crops | Unreadable]]
#: Views of one image in a block, and what they will be.
_Views = tuple[list[ImageWindows], Future[list[Crops | Unreadable]]]


@contextmanager
def decoded_ahead(
    manifest: Manifest,
    blocks: Sequence[NDArray[np.int32]],
    model: ModelSpec,
    degradations: Degradations | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Iterator[Decoded]]:
    """Give an iterator over the decoded images of each block; those of one further block are read meanwhile.

    Parameters
    ----------
    manifest : Manifest
        Of the images.
    blocks : sequence of ndarray of int32, shape (n, 6)
        Rows of the windows table, block by block.
    model : ModelSpec
        Side of window and patch.
    degradations : Degradations, optional
        Of views other than the clean one.
    max_pixels : int
        Larger images are unreadable.
    """
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="dlprobe-decode") as pool:
        try:
            yield _ahead(
                lambda parts: pool.submit(decode_views, manifest, parts, model, degradations, max_pixels), blocks
            )
        finally:
            pool.shutdown(cancel_futures=True)


def _ahead(
    submit: Callable[[list[ImageWindows]], Future[list[Crops | Unreadable]]], blocks: Sequence[NDArray[np.int32]]
) -> Iterator[Decoded]:
    def start(windows: NDArray[np.int32]) -> list[_Views]:
        by_image = defaultdict(list)
        for part in images_of(windows):
            by_image[part.image].append(part)
        return [(views, submit(views)) for views in by_image.values()]

    ahead = start(blocks[0]) if blocks else []
    for number in range(len(blocks)):
        current = ahead
        ahead = start(blocks[number + 1]) if number + 1 < len(blocks) else []
        yield _in_order(current)


def _in_order(begun: list[_Views]) -> Decoded:
    """Return what has been decoded image by image in the order of a block's windows, which its record keeps."""
    done = ((views, future.result()) for views, future in begun)
    found = [pair for views, crops in done for pair in zip(views, crops, strict=True)]
    return sorted(found, key=lambda pair: int(pair[0].positions[0]))
