"""Irregular masks of a stated area."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from dlprobe.data.tiling import working_size
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Mask kinds and the share of a window that each covers.
MASK_SHARES: dict[str, float] = {"blob-02": 0.02, "blob-10": 0.10, "blob-25": 0.25, "blob-50": 0.50}
#: Random cells along the side of a square of the mask's area: more make a more ragged outline.
_CELLS = 3.0
#: Weight of the random field against the distance from the centre.
_ROUGHNESS = 0.35


def window_area_px(size: tuple[int, int], window_px: int) -> float:
    """Return how many pixels of an image one window shows.

    Parameters
    ----------
    size : tuple of int
        Height and width of the image as stored; it may be enlarged before windows are cut.
    window_px : int
        Side of a window.
    """
    height, width = working_size(*size, window_px)
    return window_px**2 * (size[0] * size[1]) / (height * width)


def blob_mask(rng: np.random.Generator, size: tuple[int, int], area_px: int) -> NDArray[np.bool_]:
    """Return a random irregular shape: the highest pixels of a tilted ellipse plus a smooth random field.

    Parameters
    ----------
    rng : Generator
        Decides shape and place.
    size : tuple of int
        Height and width, in pixels.
    area_px : int
        Pixels that the mask covers, exactly.

    Returns
    -------
    ndarray of bool, shape `size`

    Raises
    ------
    DataError
        If the area is not positive or the image too small for it.
    """
    height, width = size
    if not 0 < area_px < height * width:
        msg = f"a mask of {area_px} px does not fit an image of {width}x{height} px; give a share between 0 and 1"
        raise DataError(msg)
    scale_px = np.sqrt(area_px)
    cells = [max(4, round(_CELLS * side / scale_px)) for side in size]
    field = cv2.resize(rng.standard_normal(cells), (width, height), interpolation=cv2.INTER_CUBIC)
    score = _ROUGHNESS * field - _ellipse(rng, size, scale_px)
    mask = np.zeros(height * width, bool)
    mask[np.argpartition(score.ravel(), -area_px)[-area_px:]] = True
    return mask.reshape(size)


def _ellipse(rng: np.random.Generator, size: tuple[int, int], scale_px: float) -> NDArray[np.float64]:
    """Return the elliptic distance from a random centre, about 1 at the outline of a shape of area `scale_px` ** 2."""
    centre_y, centre_x = rng.uniform(0.25, 0.75, 2) * size
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.6)
    y = (np.arange(size[0])[:, None] - centre_y) * np.sqrt(np.pi) / scale_px
    x = (np.arange(size[1])[None, :] - centre_x) * np.sqrt(np.pi) / scale_px
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance: NDArray[np.float64] = np.hypot(along / np.sqrt(stretch), across * np.sqrt(stretch))
    return distance
