"""Masks of a photograph: along its edges, boxes, free strokes, and blobs of an exact area."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from dlprobe.data.images import read_mask
from dlprobe.data.synthesis.masks import Frame, blob_mask
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

#: Longest side at which a photograph is segmented, in pixels.
_SEGMENTED_PX = 192
#: Superpixels to a region, and bounds of their number in a photograph.
_PER_REGION, _SUPERPIXELS = 8, (60, 1500)
_COMPACTNESS = 10.0
#: Width of a brush stroke against the side of a square of the mask's area, and bends of a stroke.
_BRUSH, _BENDS = 0.2, 8


class Shape(NamedTuple):
    """A mask with the share of a window that was wanted of it; None for a mask that the user brought."""

    kind: str
    wanted: float | None
    mask: NDArray[np.bool_]

    @property
    def name(self) -> str:
        """The mask kind of the manifest, such as ``sized-0.5pct``."""
        return self.kind if self.wanted is None else f"{self.kind}-{100 * self.wanted:g}pct"


def draw_mask(
    kind: str, rng: np.random.Generator, pixels: NDArray[np.uint8], frame: Frame, share: float
) -> NDArray[np.bool_]:
    """Return a mask of one of `MASK_KINDS`.

    Parameters
    ----------
    kind : str
        ``sized`` is exact to a pixel, the others come near the share: measure it.
    rng : Generator
        Decides shape and place.
    pixels : ndarray of uint8, shape (height, width, 3)
        The photograph.
    frame : Frame
        The window that `share` refers to, and in which the mask begins.
    share : float
        Area wanted, in units of the frame's area.

    Returns
    -------
    ndarray of bool, shape (height, width)

    Raises
    ------
    DataError
        If the photograph has no room for it.
    """
    size = pixels.shape[0], pixels.shape[1]
    area_px = round(share * frame.h * frame.w)
    if not 0 < area_px < size[0] * size[1]:
        msg = f"a mask of {area_px} px does not fit an image of {size[1]}x{size[0]} px; give another share or window"
        raise DataError(msg)
    if kind == "sized":
        return blob_mask(rng, size, frame, share)
    if kind == "random":
        return stroke_mask(rng, size, frame, area_px)
    if kind == "box":
        return _scaled_box(object_mask(rng, pixels, frame, area_px), area_px)
    return object_mask(rng, pixels, frame, area_px)


def object_mask(rng: np.random.Generator, pixels: NDArray[np.uint8], frame: Frame, area_px: int) -> NDArray[np.bool_]:
    """Return a connected region whose outline follows the edges of the photograph.

    Superpixels (SLIC, Achanta et al., IEEE TPAMI 2012, as in scikit-image) are joined from a random one on, the most
    alike in colour first, until the area is reached. It stands in for an object where nobody has segmented any.
    """
    height, width = pixels.shape[:2]
    labels, colours, sizes = _superpixels(pixels, area_px)
    place_y, place_x = frame.y + frame.h * rng.uniform(0.25, 0.75), frame.x + frame.w * rng.uniform(0.25, 0.75)
    start = labels[
        min(int(place_y * labels.shape[0] / height), labels.shape[0] - 1),
        min(int(place_x * labels.shape[1] / width), labels.shape[1] - 1),
    ]
    goal = area_px * labels.size / (height * width)
    region = _grown(int(start), goal, _neighbours(labels), colours, sizes)
    chosen = np.isin(labels, list(region)).astype(np.float32)
    mask: NDArray[np.bool_] = cv2.resize(chosen, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    return mask


def stroke_mask(rng: np.random.Generator, size: tuple[int, int], frame: Frame, area_px: int) -> NDArray[np.bool_]:
    """Return broken brush strokes within the frame, drawn until they cover the area.

    The free-form masks of the inpainting literature (Yu et al., Free-Form Image Inpainting with Gated Convolution,
    2019), but of a stated size.
    """
    canvas = np.zeros(size, np.uint8)
    brush_px = max(1, round(_BRUSH * float(np.sqrt(area_px))))
    low = np.array([frame.x, frame.y])
    high = np.minimum([frame.x + frame.w, frame.y + frame.h], [size[1], size[0]]) - 1
    point = rng.uniform(low, high)
    bends = 0
    while cv2.countNonZero(canvas) < area_px:
        if bends == _BENDS:
            point, bends = rng.uniform(low, high), 0
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 2.0) * brush_px
        following = np.clip(point + length * np.array([np.cos(angle), np.sin(angle)]), low, high)
        ends = [(int(x), int(y)) for x, y in (point, following)]
        cv2.line(canvas, ends[0], ends[1], 1, brush_px)
        point, bends = following, bends + 1
    return canvas.astype(bool)


def box_around(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the filled bounding box of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def given_mask(folder: Path, stem: str, size: tuple[int, int], cut: tuple[slice, slice]) -> NDArray[np.bool_]:
    """Return the user's mask of a photograph, cut as the photograph was.

    Parameters
    ----------
    folder : Path
        Has ``STEM.png`` or ``STEM_mask.png``.
    stem : str
        Name of the photograph's file without its ending.
    size : tuple of int
        Height and width of the photograph as stored.
    cut : tuple of slice
        Part of it that is used.

    Raises
    ------
    DataError
        If there is no such mask, it is of another size, or it marks nothing or everything of the part.
    """
    names = [folder / f"{stem}.png", folder / f"{stem}_mask.png"]
    path = next((path for path in names if path.is_file()), None)
    if path is None:
        msg = f"no mask {names[0]}, nor {names[1].name}; give each photograph one"
        raise DataError(msg)
    mask = read_mask(path, size)[cut]
    if not mask.any() or mask.all():
        msg = (
            f"mask {path} marks {'everything' if mask.any() else 'nothing'} of what is used; give one that marks a part"
        )
        raise DataError(msg)
    return mask


def _scaled_box(region: NDArray[np.bool_], area_px: int) -> NDArray[np.bool_]:
    """Return the bounding box of a region, shrunk about its centre to the area."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    spans = [(int(line[0]), int(line[-1]) + 1) for line in (rows, columns)]
    scale = np.sqrt(area_px / np.prod([end - start for start, end in spans]))
    box = np.zeros_like(region)
    slices = []
    for (start, end), limit in zip(spans, region.shape, strict=True):
        side = min(limit, max(1, round((end - start) * scale)))
        first = min(max(0, (start + end - side) // 2), limit - side)
        slices.append(slice(first, first + side))
    box[slices[0], slices[1]] = True
    return box


def _superpixels(
    pixels: NDArray[np.uint8], area_px: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    from skimage.color import rgb2lab
    from skimage.segmentation import slic

    height, width = pixels.shape[:2]
    scale = min(1.0, _SEGMENTED_PX / max(height, width))
    small_size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, small_size, interpolation=cv2.INTER_AREA)
    number = int(np.clip(_PER_REGION * height * width / area_px, *_SUPERPIXELS))
    labels = slic(small, number, compactness=_COMPACTNESS, start_label=0, channel_axis=-1)
    flat = labels.ravel()
    sizes = np.bincount(flat)
    lab = rgb2lab(small).reshape(-1, 3)
    sums = np.stack([np.bincount(flat, lab[:, channel]) for channel in range(3)], axis=1)
    return labels, sums / np.maximum(sizes, 1)[:, None], sizes


def _neighbours(labels: NDArray[np.int64]) -> dict[int, set[int]]:
    touching: dict[int, set[int]] = {}
    for left, right in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        differ = left != right
        for one, other in np.unique(np.stack([left[differ], right[differ]], axis=1), axis=0).tolist():
            touching.setdefault(one, set()).add(other)
            touching.setdefault(other, set()).add(one)
    return touching


def _grown(
    start: int,
    goal: float,
    neighbours: dict[int, set[int]],
    colours: NDArray[np.float64],
    sizes: NDArray[np.int64],
) -> set[int]:
    """Return superpixels joined from `start`; one that would overshoot by more than it helps ends it."""
    region, area = {start}, int(sizes[start])
    seen = {start}
    queue: list[tuple[float, int]] = []
    latest = start
    while True:
        for label in sorted(neighbours.get(latest, set()) - seen):
            seen.add(label)
            heapq.heappush(queue, (float(np.linalg.norm(colours[label] - colours[start])), label))
        if not queue:
            return region
        _, latest = heapq.heappop(queue)
        if area + int(sizes[latest]) - goal > goal - area:
            return region
        region.add(latest)
        area += int(sizes[latest])
