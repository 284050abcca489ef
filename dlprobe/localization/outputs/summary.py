"""What is said of an image as a whole: its score, its marked regions, how sure the windows were, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.localization.planes import long_axis, strips
from dlprobe.localization.postprocess import label_regions

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Percentile of the working-size map that stands for the whole image.
IMAGE_SCORE_PERCENTILE = 99.0
#: Marked share of the working-size map from which no region is claimed.
SATURATED_AREA = 0.8
#: Regions that are listed, the largest first.
LISTED_REGIONS = 100

_RULES = {
    "whole image": f"at least {SATURATED_AREA:.0%} of the map is at or above the threshold, so that it tells no region "
    "from the rest: the image may be generated as a whole, or be unlike all that the probe was fitted on",
    "region": f"more than nothing and less than {SATURATED_AREA:.0%} of the map is at or above the threshold",
    "nothing": "no pixel is at or above the threshold",
}


def verdict(area: float) -> dict[str, str]:
    """Return what may be claimed of an image of which this share is marked: nothing, a region, or the whole image.

    The rule is a guard and not a detector: probes fire all over images that are generated as a whole, and a mask of
    such an image would point at nothing.
    """
    kind = "whole image" if area >= SATURATED_AREA else "region" if area > 0 else "nothing"
    return {"kind": kind, "rule": _RULES[kind]}


def area_above(scores: NDArray[np.float32], threshold: float) -> float:
    """Return the share of a map at or above a threshold."""
    return sum(int((piece >= threshold).sum()) for _, piece in strips(scores)) / scores.size


def percentile(values: NDArray[np.float32], percent: float) -> float:
    """Return a percentile as `numpy.percentile` does, without sorting or copying the whole.

    Values must not be negative: then their bits are ordered as they are, and two histograms, of the upper and of the
    lower half of the bits, find a value by its rank.

    Parameters
    ----------
    values : ndarray of float32, shape (height, width)
        Not negative, finite; may be a memory map.
    percent : float
        From 0 to 100.
    """
    rank = percent / 100 * (values.size - 1)
    below = int(np.floor(rank))
    upper = _histogram(values, lambda bits: bits >> 16)
    low, high = (_by_rank(values, upper, min(below + i, values.size - 1)) for i in (0, 1))
    return low + (high - low) * (rank - below)


def regions(
    mask: NDArray[np.bool_], scores: NDArray[np.float32], disagreement: NDArray[np.float32]
) -> tuple[list[dict[str, Any]], int]:
    """Return the connected regions of a mask with half-open boxes, areas and scores, and how many there are.

    Parameters
    ----------
    mask : ndarray of bool, shape (height, width)
    scores, disagreement : ndarray of float32, shape (height, width)
        May be memory maps.

    Returns
    -------
    tuple of (list of dict, int)
        At most `LISTED_REGIONS`, the largest first, each with ``y, x, h, w, area_px, score_mean, score_max,
        disagreement_mean``; and the number of all.
    """
    labels, stats = label_regions(mask)
    count = len(stats)
    sums, spreads, highest = np.zeros(count), np.zeros(count), np.zeros(count, np.float32)
    turned = long_axis(mask.shape) == 1
    for (part, score), (_, spread) in zip(strips(scores), strips(disagreement), strict=True):
        label = labels[:, part] if turned else labels[part]
        here = label > 0
        found = label[here]
        sums += np.bincount(found, score[here], count)
        spreads += np.bincount(found, spread[here], count)
        np.maximum.at(highest, found, score[here])
    order = 1 + np.argsort(-stats[1:, 4], kind="stable")
    listed = [
        {
            **dict(zip(("y", "x", "h", "w", "area_px"), map(int, stats[i]), strict=True)),
            "score_mean": float(sums[i] / stats[i, 4]),
            "score_max": float(highest[i]),
            "disagreement_mean": float(spreads[i] / stats[i, 4]),
        }
        for i in order[:LISTED_REGIONS]
    ]
    return listed, count - 1


def confidence(disagreement: NDArray[np.float32], n_windows: NDArray[np.int32]) -> dict[str, float | int]:
    """Return in numbers how far the windows agreed, and how many there were for a pixel."""
    total = sum(float(piece.sum(dtype=np.float64)) for _, piece in strips(disagreement))
    alone, fewest, most = 0, np.iinfo(np.int32).max, 0
    for _, piece in strips(n_windows):
        alone += int((piece == 1).sum())
        fewest, most = min(fewest, int(piece.min())), max(most, int(piece.max()))
    return {
        "disagreement_mean": total / disagreement.size,
        "disagreement_p99": percentile(disagreement, 99),
        "n_windows_min": fewest,
        "n_windows_max": most,
        "one_window_share": alone / n_windows.size,
    }


def _by_rank(values: NDArray[np.float32], upper: NDArray[np.int64], rank: int) -> float:
    ends = np.cumsum(upper)
    high = int(np.searchsorted(ends, rank, side="right"))
    lower = _histogram(values, lambda bits: bits[bits >> 16 == high] & 0xFFFF)
    low = int(np.searchsorted(np.cumsum(lower), rank - (ends[high] - upper[high]), side="right"))
    return float(np.array([high << 16 | low], np.uint32).view(np.float32)[0])


def _histogram(values: NDArray[np.float32], codes: Any) -> NDArray[np.int64]:
    counts = np.zeros(1 << 16, np.int64)
    for _, piece in strips(values):
        bits = np.ascontiguousarray(piece).view(np.uint32) & 0x7FFFFFFF  # minus zero is zero
        counts += np.bincount(codes(bits).ravel(), minlength=len(counts))
    return counts
