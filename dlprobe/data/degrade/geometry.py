"""What moves or removes pixels: resizing, cropping, cutting out. Region maps follow by nearest neighbour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from dlprobe.data.degrade.base import Degradation, named, require_known, require_within
from dlprobe.data.provenance import Provenance

if TYPE_CHECKING:
    from dlprobe.data.degrade.base import Pixels

#: Pillow's filters widen when they shrink an image (no aliasing); OpenCV's, from ``cv-`` on, look at four to 64 pixels
#: whatever the factor, except ``cv-area``. Their bicubic kernels differ (a = -0.5 and -0.75).
PILLOW_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
OPENCV_FILTERS = {
    "cv-nearest": "INTER_NEAREST",
    "cv-linear": "INTER_LINEAR",
    "cv-cubic": "INTER_CUBIC",
    "cv-lanczos": "INTER_LANCZOS4",
    "cv-area": "INTER_AREA",
}
FILTERS = (*PILLOW_FILTERS, *OPENCV_FILTERS)


def resample(array: Pixels, size: tuple[int, int], filter_: str) -> Pixels:
    """Return pixels or a region map at another size.

    Parameters
    ----------
    array : ndarray of uint8, shape (height, width) or (height, width, 3)
        Pixels or a region map.
    size : tuple of int
        New height and width in pixels.
    filter_ : str
        One of `FILTERS`; ``nearest`` for region maps.
    """
    if array.shape[:2] == size:
        return array
    height, width = size
    if filter_ in PILLOW_FILTERS:
        return np.array(Image.fromarray(array).resize((width, height), PILLOW_FILTERS[filter_]))
    import cv2

    return np.asarray(cv2.resize(array, (width, height), interpolation=getattr(cv2, OPENCV_FILTERS[filter_])), np.uint8)


@named("resize")
@dataclass(frozen=True, slots=True)
class Resize(Degradation):
    """Another number of pixels, and back to the first number if wished.

    Parameters
    ----------
    factor : float
        New side over old side; sides are rounded as Python's ``round`` does.
    filter : str
        One of `FILTERS`.
    back : str
        The filter of the way back, or ``no``. On the way back every pixel returns to its place: the region map stays.
    """

    geometric: ClassVar[bool] = True

    factor: float
    filter: str = "bicubic"
    back: str = "no"

    def __post_init__(self) -> None:
        require_within(0.01, 16, factor=self.factor)
        require_known("filter", self.filter, FILTERS)
        require_known("filter for the way back", self.back, ("no", *FILTERS))

    def apply(self, pixels: Pixels, regions: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:  # noqa: ARG002
        """Return resampled pixels and the region map on the same grid."""
        height, width = regions.shape
        size = max(1, round(height * self.factor)), max(1, round(width * self.factor))
        there = resample(pixels, size, self.filter)
        if self.back != "no":
            return resample(there, (height, width), self.back), regions
        return there, resample(regions, size, "nearest")


@named("limit")
@dataclass(frozen=True, slots=True)
class Limit(Degradation):
    """Shrink an image whose longer side exceeds a limit, as platforms do; leave others alone.

    Parameters
    ----------
    side_px : int
        Largest longer side.
    filter : str
        One of `FILTERS`.
    """

    geometric: ClassVar[bool] = True

    side_px: int
    filter: str = "lanczos"

    def __post_init__(self) -> None:
        require_within(1, 65_500, side_px=self.side_px)
        require_known("filter", self.filter, FILTERS)

    def apply(self, pixels: Pixels, regions: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:  # noqa: ARG002
        """Return pixels and region map, shrunk where needed."""
        height, width = regions.shape
        factor = min(1.0, self.side_px / max(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        return resample(pixels, size, self.filter), resample(regions, size, "nearest")


@named("crop")
@dataclass(frozen=True, slots=True)
class Crop(Degradation):
    """Keep a part of the image.

    Parameters
    ----------
    keep_share : float
        Of each side, above 0 and up to 1.
    y_share, x_share : float
        Where the part lies: 0 at the top or left border, 1 at the other, 0.5 in the middle.
    """

    geometric: ClassVar[bool] = True

    keep_share: float
    y_share: float = 0.5
    x_share: float = 0.5

    def __post_init__(self) -> None:
        require_within(0.01, 1, keep_share=self.keep_share)
        require_within(0, 1, y_share=self.y_share, x_share=self.x_share)

    def apply(self, pixels: Pixels, regions: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:  # noqa: ARG002
        """Return the part of pixels and region map."""
        rows = _span(regions.shape[0], self.keep_share * regions.shape[0], self.y_share)
        columns = _span(regions.shape[1], self.keep_share * regions.shape[1], self.x_share)
        return pixels[rows, columns].copy(), regions[rows, columns].copy()


@named("cutout")
@dataclass(frozen=True, slots=True)
class CutOut(Degradation):
    """Paint a grey square over the image; its pixels are no longer of any provenance: VOID.

    Parameters
    ----------
    side_share : float
        Side of the square over the image's shorter side, above 0 and up to 1.
    y_share, x_share : float
        Where the square lies, as in `Crop`.
    level : int
        Its grey level.
    """

    geometric: ClassVar[bool] = True

    side_share: float
    y_share: float = 0.5
    x_share: float = 0.5
    level: int = 127

    def __post_init__(self) -> None:
        require_within(0.001, 1, side_share=self.side_share)
        require_within(0, 1, y_share=self.y_share, x_share=self.x_share)
        require_within(0, 255, level=self.level)

    def apply(self, pixels: Pixels, regions: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:  # noqa: ARG002
        """Return pixels and region map with the square in them."""
        side = self.side_share * min(regions.shape)
        box = _span(regions.shape[0], side, self.y_share), _span(regions.shape[1], side, self.x_share)
        pixels, regions = pixels.copy(), regions.copy()
        pixels[box] = self.level
        regions[box] = Provenance.VOID
        return pixels, regions


def _span(side_px: int, wanted_px: float, share: float) -> slice:
    length = min(side_px, max(1, round(wanted_px)))
    start = round((side_px - length) * share)
    return slice(start, start + length)
