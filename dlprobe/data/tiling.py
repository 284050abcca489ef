"""Where windows lie in an image, and the one rule by which a small image is enlarged first.

`spread` serves extraction, `cover` localization; both look at the image at its working size, so that train and
test images are scaled alike. The rule is step 6 of DinoLizer's official inference (arXiv 2511.20722).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from dlprobe.errors import DataError

Tiling = Literal["spread", "cover"]
TILINGS: tuple[Tiling, ...] = ("spread", "cover")

#: Side of the square whose area a small image is enlarged to, for a window of 504 px (504 + 4 * 128).
REFERENCE_AREA_SIDE_PX = 1016
REFERENCE_WINDOW_PX = 504

#: Identifies `working_size` and the filters used with it; part of every model identity.
RESIZE_RULE = "pil-bicubic-to-area-1016/504-when-below-window"


class Box(NamedTuple):
    """Half-open pixel box: rows ``y`` to ``y + h``, columns ``x`` to ``x + w``."""

    y: int
    x: int
    h: int
    w: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the box in an array of shape (height, width, ...)."""
        return slice(self.y, self.y + self.h), slice(self.x, self.x + self.w)


def working_size(height_px: int, width_px: int, window_px: int) -> tuple[int, int]:
    """Return the size at which an image is looked at.

    An image whose sides both reach the window keeps its size. Another is enlarged, with its aspect ratio, to the area
    of a 1016 px square (for a window of 504 px; in proportion for others), and further if a side is still below
    the window. Sizes are rounded as Python's ``round`` does.

    Parameters
    ----------
    height_px, width_px : int
        Size of the image.
    window_px : int
        Side of the window.

    Returns
    -------
    tuple of int
        Height and width in pixels.

    Notes
    -----
    The rule for 504 px is read from the published inference of DinoLizer; the proportion for other windows is ours.
    """
    if min(height_px, width_px) < 1:
        msg = f"an image of {width_px}x{height_px} px has no pixels"
        raise DataError(msg)
    if min(height_px, width_px) >= window_px:
        return height_px, width_px
    side = REFERENCE_AREA_SIDE_PX * window_px / REFERENCE_WINDOW_PX
    scale = side / math.sqrt(height_px * width_px)
    scale = max(scale, window_px / min(height_px, width_px))
    return max(window_px, round(height_px * scale)), max(window_px, round(width_px * scale))


def tile(height_px: int, width_px: int, window_px: int, stride_px: int, tiling: str = "spread") -> list[Box]:
    """Return the windows of an image of working size, row by row.

    Parameters
    ----------
    height_px, width_px : int
        Working size of the image; no side below the window.
    window_px : int
        Side of the window.
    stride_px : int
        Intended distance between neighbours.
    tiling : {"spread", "cover"}
        ``spread``: ``max(1, 1 + round((side - window) / stride))`` windows a side, evenly spread from border to
        border (one window is centred), so that a 512 px image has one window of 504 px and not four near-copies.
        ``cover``: every `stride_px`, the last window clamped to the border, so that each pixel is seen.

    Returns
    -------
    list of Box

    Raises
    ------
    DataError
        If a side is below the window, the stride is not positive (or, to cover, above the window), or the tiling
        unknown.
    """
    if min(height_px, width_px) < window_px:
        msg = f"an image of {width_px}x{height_px} px has no window of {window_px} px; enlarge it to its working size"
        raise DataError(msg)
    if stride_px < 1:
        msg = f"stride_px is {stride_px}; it must be at least 1"
        raise DataError(msg)
    if tiling == "cover" and stride_px > window_px:
        msg = f"stride_px {stride_px} is above the window of {window_px} px, some pixels would never be seen; lower it"
        raise DataError(msg)
    if tiling not in TILINGS:
        msg = f"no tiling {tiling!r}; write one of {', '.join(TILINGS)}"
        raise DataError(msg)
    starts = _spread if tiling == "spread" else _cover
    return [
        Box(y, x, window_px, window_px)
        for y in starts(height_px - window_px, stride_px)
        for x in starts(width_px - window_px, stride_px)
    ]


def _spread(slack_px: int, stride_px: int) -> list[int]:
    steps = _nearest(slack_px / stride_px)
    return [_nearest(i * slack_px / steps) for i in range(steps + 1)] if steps else [slack_px // 2]


def _cover(slack_px: int, stride_px: int) -> list[int]:
    starts = list(range(0, slack_px, stride_px))
    return [*starts, slack_px]


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)  # halves go up; round() would send them to even numbers
