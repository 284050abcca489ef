"""Spend windows where they can change the mask: a coarse pass first, then dense windows where it is undecided.

Both passes take their windows from the one dense grid: where all is undecided, the whole budget gives what the dense
grid gives. A patch is undecided where its coarse score is near the threshold, or near the border of the region that the
coarse pass marks. Dense windows are taken greedily, each time the one that most lowers the sum of 1 / (number of
windows) over the undecided patches: the variance of a mean of so many windows, were they independent.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dlprobe.data.tiling import Box
    from dlprobe.localization.settings import Adaptive


def coarse_windows(dense: Sequence[Box], every: int, stride_px: int) -> list[Box]:
    """Return every n-th row and column of a grid of windows, and the last ones.

    Raises
    ------
    DataError
        If pixels between them would not be seen.
    """
    if dense and every * stride_px > (side := dense[0].h):
        msg = (
            f"a coarse pass of every {every} windows at stride {stride_px} leaves gaps between windows of {side} px; "
            f"every {side // stride_px} at most, and at least 2"
        )
        raise DataError(msg)
    rows = _every(sorted({box.y for box in dense}), every)
    columns = _every(sorted({box.x for box in dense}), every)
    return [box for box in dense if box.y in rows and box.x in columns]


def undecided_patches(
    boxes: Sequence[Box], logits: NDArray[np.float32], patch_px: int, threshold: float, settings: Adaptive
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Average the windows of a coarse pass on a grid of patches and tell where it is undecided.

    Parameters
    ----------
    boxes : sequence of Box
        Windows of the coarse pass, which see every pixel.
    logits : ndarray of float32, shape (windows, rows, cols, logits)
        Of their patches. A window that lies between patches of the grid counts at the nearest ones.
    patch_px : int
        Side of a patch.
    threshold : float
        From which a pixel is marked.
    settings : Adaptive

    Returns
    -------
    tuple of ndarray
        Undecided, and the number of windows that saw each; shape (rows, cols) of the whole image in patches.
    """
    from scipy.ndimage import maximum_filter
    from scipy.special import expit, softmax

    grid, k = logits.shape[1], logits.shape[-1]
    rows, columns = (max(round(start / patch_px) for start in starts) + grid for starts in _starts(boxes))
    total, seen = np.zeros((rows, columns, k)), np.zeros((rows, columns), np.int64)
    for box, window in zip(boxes, logits, strict=True):
        place = _place(box, patch_px, grid)
        total[place] += window
        seen[place] += 1
    mean = total / seen[..., None]
    scores = expit(mean[..., 0]) if k == 1 else softmax(mean, axis=-1)[..., -1]
    marked = scores >= threshold
    reach = 2 * math.ceil(settings.edge_px / patch_px) + 1
    border = maximum_filter(marked, reach) & maximum_filter(~marked, reach)
    return (np.abs(scores - threshold) < settings.margin) | border, seen


def dense_windows(
    dense: Sequence[Box],
    coarse: Sequence[Box],
    undecided: NDArray[np.bool_],
    seen: NDArray[np.int64],
    *,
    patch_px: int,
    budget: float,
) -> list[Box]:
    """Return the windows that a dense pass should add.

    Parameters
    ----------
    dense, coarse : sequence of Box
        All windows, and those that were looked at.
    undecided, seen : ndarray, shape (rows, cols)
        As `undecided_patches` returns them.
    patch_px : int
        Side of a patch.
    budget : float
        Largest share of `dense` that both passes take together.

    Returns
    -------
    list of Box
        The most useful first.
    """
    left = int(budget * len(dense)) - len(coarse)
    taken, grid = set(coarse), dense[0].h // patch_px
    seen = seen.copy()

    def gain(number: int) -> float:
        place = _place(dense[number], patch_px, grid)
        n = seen[place][undecided[place]]
        return float((1 / (n * (n + 1))).sum())

    heap = [(-gain(number), number) for number, box in enumerate(dense) if box not in taken]
    heapq.heapify(heap)
    chosen: list[Box] = []
    while heap and len(chosen) < left:
        _, number = heapq.heappop(heap)
        current = gain(number)  # gains only fall, so that one that is still the largest is the largest of all
        if current <= 0:
            continue
        if heap and -heap[0][0] > current:
            heapq.heappush(heap, (-current, number))
            continue
        chosen.append(dense[number])
        seen[_place(dense[number], patch_px, grid)] += 1
    return chosen


def _every(starts: Sequence[int], every: int) -> set[int]:
    return {*starts[::every], starts[-1]}


def _starts(boxes: Sequence[Box]) -> tuple[list[int], list[int]]:
    return [box.y for box in boxes], [box.x for box in boxes]


def _place(box: Box, patch_px: int, grid: int) -> tuple[slice, slice]:
    top, left = round(box.y / patch_px), round(box.x / patch_px)
    return slice(top, top + grid), slice(left, left + grid)
