"""Irregular masks of a stated area."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from dlprobe.data.tiling import tile, working_size
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Mask kinds and the share of a window that each covers.
MASK_SHARES: dict[str, float] = {"blob-02": 0.02, "blob-10": 0.10, "blob-25": 0.25, "blob-50": 0.50}
#: Random cells along the side of a square of the mask's area: more make a more ragged outline.
_CELLS = 3.0
#: Weight of the random field against the distance from the centre.
_ROUGHNESS = 0.35


class Frame(NamedTuple):
    """A window in the pixels of a stored image, in fractions of a pixel: corner and sides."""

    y: float
    x: float
    h: float
    w: float


def window_frame(rng: np.random.Generator, size: tuple[int, int], window_px: int) -> Frame:
    """Return one of the windows of an image, drawn at random, in the pixels of the stored file.

    Windows of a small image are cut after it was enlarged, and wide images leave a strip between windows that nobody
    looks at: a mask belongs where it is seen.

    Parameters
    ----------
    rng : Generator
        Draws the window.
    size : tuple of int
        Height and width of the image as stored.
    window_px : int
        Side of a window, and distance between two.
    """
    working = working_size(*size, window_px)
    boxes = tile(*working, window_px, window_px, "spread")
    box = boxes[int(rng.integers(len(boxes)))]
    scale_y, scale_x = size[0] / working[0], size[1] / working[1]
    return Frame(box.y * scale_y, box.x * scale_x, box.h * scale_y, box.w * scale_x)


def blob_mask(rng: np.random.Generator, size: tuple[int, int], frame: Frame, share: float) -> NDArray[np.bool_]:
    """Return a random irregular shape: the highest pixels of a tilted ellipse plus a smooth random field.

    Parameters
    ----------
    rng : Generator
        Decides shape and place.
    size : tuple of int
        Height and width, in pixels.
    frame : Frame
        The shape's centre lies in its inner half; what is outside it may belong to the shape too.
    share : float
        Area of the shape in units of the frame's area, exact to a pixel.

    Returns
    -------
    ndarray of bool, shape `size`

    Raises
    ------
    DataError
        If the area is below one pixel or not below that of the image.
    """
    height, width = size
    area_px = round(share * frame.h * frame.w)
    if not 0 < area_px < height * width:
        msg = f"a mask of {area_px} px does not fit an image of {width}x{height} px; give a share between 0 and 1"
        raise DataError(msg)
    scale_px = np.sqrt(area_px)
    cells = [max(4, round(_CELLS * side / scale_px)) for side in size]
    field = cv2.resize(rng.standard_normal(cells), (width, height), interpolation=cv2.INTER_CUBIC)
    score = _ROUGHNESS * field - _ellipse(rng, size, frame, scale_px)
    mask = np.zeros(height * width, bool)
    mask[np.argpartition(score.ravel(), -area_px)[-area_px:]] = True
    return mask.reshape(size)


def _ellipse(rng: np.random.Generator, size: tuple[int, int], frame: Frame, scale_px: float) -> NDArray[np.float64]:
    """Return the elliptic distance from a random centre, about 1 at the outline of a shape of area `scale_px` ** 2."""
    centre_y, centre_x = frame.y + frame.h * rng.uniform(0.25, 0.75), frame.x + frame.w * rng.uniform(0.25, 0.75)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.6)
    y = (np.arange(size[0])[:, None] - centre_y) * np.sqrt(np.pi) / scale_px
    x = (np.arange(size[1])[None, :] - centre_x) * np.sqrt(np.pi) / scale_px
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance: NDArray[np.float64] = np.hypot(along / np.sqrt(stretch), across * np.sqrt(stretch))
    return distance
