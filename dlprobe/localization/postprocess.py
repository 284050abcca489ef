"""From a score map to a mask: the threshold, and steps after it, each of which can be left out.

The paper post-processes its heatmaps; how is not known. What stands here is ours, and nothing but the threshold is
applied unless it is asked for. The order is that of `STEPS`:

1. ``threshold``: a pixel is marked where its score is at or above the threshold of the probe's card;
2. ``guided``: the scores are refined along the edges of the image first (guided filter), then cut;
3. ``holes``: unmarked regions that a marked one encloses are marked;
4. ``small``: marked regions below an area are unmarked;
5. ``smooth``: opening and closing by a disk.

Marked pixels are neighbours by side or corner, unmarked ones by side.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.errors import DataError
from dlprobe.localization.planes import STRIP_PX, forget_pages, strips

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

STEPS = ("threshold", "guided", "holes", "small", "smooth")
_LUMA = np.array([0.299, 0.587, 0.114]) / 255


@dataclass(frozen=True, slots=True, kw_only=True)
class PostProcessing:
    """What is done after the threshold: nothing by default.

    Parameters
    ----------
    guided_radius_px : int
        Radius of the guided filter's square windows; 0 leaves it out.
    guided_epsilon : float
        Its regularisation, for a guide in [0, 1]: edges of a lower variance are smoothed over.
    fill_holes : bool
        Mark what a marked region encloses.
    min_area_px : int
        Unmark regions of fewer pixels of the image; 0 leaves it out.
    min_area_share : float
        And those below this share of the image.
    smooth_radius_px : int
        Radius of the disk that the mask is opened, then closed by; 0 leaves it out.

    Raises
    ------
    DataError
        If a value is out of range.
    """

    guided_radius_px: int = 0
    guided_epsilon: float = 1e-3
    fill_holes: bool = False
    min_area_px: int = 0
    min_area_share: float = 0.0
    smooth_radius_px: int = 0

    def __post_init__(self) -> None:
        for name in ("guided_radius_px", "min_area_px", "smooth_radius_px"):
            if getattr(self, name) < 0:
                msg = f"{name} is {getattr(self, name)}; write 0 to leave the step out, or more"
                raise DataError(msg)
        if not self.guided_epsilon > 0:
            msg = f"guided_epsilon is {self.guided_epsilon}; write a number above 0"
            raise DataError(msg)
        if not 0 <= self.min_area_share < 1:
            msg = f"min_area_share is {self.min_area_share}; write a share from 0 to below 1"
            raise DataError(msg)

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the steps that are applied, in order."""
        asked = {
            "threshold": True,
            "guided": self.guided_radius_px > 0,
            "holes": self.fill_holes,
            "small": self.min_area_px > 0 or self.min_area_share > 0,
            "smooth": self.smooth_radius_px > 0,
        }
        return tuple(name for name in STEPS if asked[name])

    def record(self) -> dict[str, Any]:
        """Return the settings as a dictionary of JSON values."""
        return asdict(self)


def masks_by_step(
    scores: NDArray[np.float32],
    image: NDArray[np.uint8],
    threshold: float,
    settings: PostProcessing | None = None,
) -> dict[str, NDArray[np.bool_]]:
    """Return the mask after each step that is applied; the last one is the result.

    Parameters
    ----------
    scores : ndarray of float32, shape (height, width)
        Score map in [0, 1]; may be a memory map.
    image : ndarray of uint8, shape (height, width, 3)
        The image that guides the refinement.
    threshold : float
        Score at or above which a pixel is marked.
    settings : PostProcessing, optional

    Returns
    -------
    dict of str to ndarray of bool, shape (height, width)
        By names of `STEPS`, in their order; ``threshold`` is always there.

    Raises
    ------
    DataError
        If scores and image differ in size.

    Notes
    -----
    Needs some 6 bytes a pixel beside the masks themselves.
    """
    if scores.shape != image.shape[:2]:
        msg = f"scores of shape {scores.shape} do not belong to an image of shape {image.shape[:2]}"
        raise DataError(msg)
    chosen = settings or PostProcessing()
    apply: dict[str, Callable[[Mask], Mask]] = {
        "threshold": lambda _: _marked(scores, threshold),
        "guided": lambda _: _guided_mask(scores, image, threshold, chosen),
        "holes": fill_holes,
        "small": lambda mask: remove_small(mask, _min_area(mask, chosen)),
        "smooth": lambda mask: smooth(mask, chosen.smooth_radius_px),
    }
    mask: Mask = np.zeros(scores.shape, np.bool_)
    found = {}
    for name in chosen.steps:
        mask = apply[name](mask)
        found[name] = mask
    return found


def fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark every unmarked region that does not reach the border of the image."""
    labels, stats = label_regions(~mask, connectivity=4)
    height, width = mask.shape
    y, x, h, w = stats[:, 0], stats[:, 1], stats[:, 2], stats[:, 3]
    inside = (y > 0) & (x > 0) & (y + h < height) & (x + w < width)
    inside[0] = False
    return np.asarray(mask | inside[labels])


def remove_small(mask: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
    """Unmark regions of fewer than `min_area_px` pixels."""
    labels, stats = label_regions(mask)
    kept = stats[:, 4] >= min_area_px
    kept[0] = False
    return np.asarray(kept[labels])


def smooth(mask: NDArray[np.bool_], radius_px: int) -> NDArray[np.bool_]:
    """Open, then close a mask by a disk; nothing is assumed of what lies beyond the border of the image."""
    opened = _dilated(~_dilated(~mask, radius_px), radius_px)
    return ~_dilated(~_dilated(opened, radius_px), radius_px)


def label_regions(mask: NDArray[np.bool_], connectivity: int = 8) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Give numbers to the connected regions of a mask.

    Parameters
    ----------
    mask : ndarray of bool, shape (height, width)
    connectivity : {8, 4}

    Returns
    -------
    labels : ndarray of int32, shape (height, width)
        0 outside.
    stats : ndarray of int32, shape (regions + 1, 5)
        Half-open box (y, x, h, w) and area of each label; row 0 is the outside.
    """
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    return np.asarray(labels), np.asarray(stats)[:, [1, 0, 3, 2, 4]]


def guided_filter(
    guide: NDArray[np.floating], values: NDArray[np.floating], radius_px: int, epsilon: float
) -> NDArray[np.float64]:
    """Smooth values but along the edges of a guide.

    He, Sun and Tang, Guided Image Filtering (IEEE TPAMI 35(6), 2013), algorithm 1: windows are cut at the border.

    Parameters
    ----------
    guide, values : ndarray, shape (height, width)
        Grey image in [0, 1], and what is smoothed.
    radius_px : int
        Windows have 2 * radius + 1 pixels a side.
    epsilon : float
        Regularisation.

    Returns
    -------
    ndarray of float64, shape (height, width)
    """
    count = _box_sums(np.ones(guide.shape), radius_px)

    def mean(array: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.asarray(_box_sums(array, radius_px) / count)

    mean_guide, mean_values = mean(guide), mean(values)
    slope = mean(guide * values) - mean_guide * mean_values
    slope /= mean(guide * guide) - mean_guide**2 + epsilon
    offset = mean_values - slope * mean_guide
    return np.asarray(mean(slope) * guide + mean(offset))


def _marked(scores: NDArray[np.float32], threshold: float) -> Mask:
    axis_first = scores.shape[0] >= scores.shape[1]
    mask = np.empty(scores.shape, np.bool_)
    for part, piece in strips(scores):
        mask[part if axis_first else (slice(None), part)] = piece >= threshold
    return mask


def _guided_mask(
    scores: NDArray[np.float32], image: NDArray[np.uint8], threshold: float, settings: PostProcessing
) -> Mask:
    """Refine and cut strip by strip; a pixel depends on those up to two radii away."""
    radius, (height, width) = settings.guided_radius_px, scores.shape
    step = max(2 * radius, STRIP_PX // (4 * width), 1)
    mask = np.empty(scores.shape, np.bool_)
    for start in range(0, height, step):
        top, bottom = max(0, start - 2 * radius), min(height, start + step + 2 * radius)
        refined = guided_filter(image[top:bottom] @ _LUMA, scores[top:bottom], radius, settings.guided_epsilon)
        mask[start : start + step] = refined[start - top : start - top + step] >= threshold
        forget_pages(scores)
    return mask


def _box_sums(array: NDArray[np.floating], radius_px: int) -> NDArray[np.float64]:
    import cv2

    side = (2 * radius_px + 1,) * 2
    return np.asarray(
        cv2.boxFilter(array.astype(np.float64), -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT)
    )


def _dilated(mask: Mask, radius_px: int) -> Mask:
    """Return where a mask lies within a Euclidean distance."""
    import cv2

    if not mask.any():
        return mask
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= radius_px)


def _min_area(mask: Mask, settings: PostProcessing) -> int:
    return max(settings.min_area_px, math.ceil(settings.min_area_share * mask.size))
