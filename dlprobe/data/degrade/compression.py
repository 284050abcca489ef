"""Lossy compression, there and back: JPEG, double JPEG with a grid shift, WebP.

The encoders are Pillow's (libjpeg-turbo with the standard tables scaled by quality, libwebp with method 4); the colour
path is RGB to YCbCr and back as JFIF says.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dlprobe.data.degrade.base import Photometric, named, require_known, require_within
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from dlprobe.data.degrade.base import Pixels

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
#: Sides of the largest coding unit, beyond which a grid shift repeats itself.
_GRID_PX = 16
_LARGEST_PX = {"JPEG": 65_500, "WEBP": 16_383}


@named("jpeg")
@dataclass(frozen=True, slots=True)
class Jpeg(Photometric):
    """JPEG compression.

    Parameters
    ----------
    quality_pct : int
        Of libjpeg, 1 to 100.
    subsampling : str
        Of chroma: ``4:4:4``, ``4:2:2`` or ``4:2:0`` (Pillow's and OpenCV's default).
    """

    quality_pct: int
    subsampling: str = "4:2:0"

    def __post_init__(self) -> None:
        require_within(1, 100, quality_pct=self.quality_pct)
        require_known("chroma subsampling", self.subsampling, SUBSAMPLINGS)

    def change(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:  # noqa: ARG002 (nothing random)
        """Return the pixels that a viewer of the file would see."""
        return _there_and_back(pixels, "JPEG", quality=self.quality_pct, subsampling=self.subsampling)


@named("double-jpeg")
@dataclass(frozen=True, slots=True)
class DoubleJpeg(Photometric):
    """Two JPEG compressions whose grids of blocks may lie apart.

    Parameters
    ----------
    q1_pct, q2_pct : int
        Quality of the first and of the second compression.
    shift_y_px, shift_x_px : int
        How far the second grid's origin, the image's corner, lies below and right of the first's: as if that
        many rows and columns had been cut off between the two. 0 to 15; at multiples of 8 the 8 px blocks are aligned.
    subsampling : str
        Of chroma, in both.
    """

    q1_pct: int
    q2_pct: int
    shift_y_px: int = 0
    shift_x_px: int = 0
    subsampling: str = "4:2:0"

    def __post_init__(self) -> None:
        require_within(1, 100, q1_pct=self.q1_pct, q2_pct=self.q2_pct)
        require_within(0, _GRID_PX - 1, shift_y_px=self.shift_y_px, shift_x_px=self.shift_x_px)
        require_known("chroma subsampling", self.subsampling, SUBSAMPLINGS)

    def change(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:  # noqa: ARG002 (nothing random)
        """Return the pixels after both; the rows and columns cut off between them are the border, repeated."""
        padded = np.pad(pixels, ((self.shift_y_px, 0), (self.shift_x_px, 0), (0, 0)), mode="edge")
        first = _there_and_back(padded, "JPEG", quality=self.q1_pct, subsampling=self.subsampling)
        cut = first[self.shift_y_px :, self.shift_x_px :]
        return _there_and_back(cut, "JPEG", quality=self.q2_pct, subsampling=self.subsampling)


@named("webp")
@dataclass(frozen=True, slots=True)
class Webp(Photometric):
    """Lossy WebP compression.

    Parameters
    ----------
    quality_pct : int
        Of libwebp, 0 to 100.
    """

    quality_pct: int

    def __post_init__(self) -> None:
        require_within(0, 100, quality_pct=self.quality_pct)

    def change(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:  # noqa: ARG002 (nothing random)
        """Return the pixels that a viewer of the file would see."""
        return _there_and_back(pixels, "WEBP", quality=self.quality_pct)


def _there_and_back(pixels: Pixels, format_: str, **options: Any) -> Pixels:
    height, width = pixels.shape[:2]
    if max(height, width) > _LARGEST_PX[format_]:
        msg = f"{format_} holds at most {_LARGEST_PX[format_]} px a side, the image is {width}x{height} px; resize it"
        raise DataError(msg)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, **options)
    with Image.open(buffer, formats=[format_]) as image:
        return np.array(image.convert("RGB"))
