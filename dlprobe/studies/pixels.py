"""The grid of pixels, on which models with different patches and windows are compared.

A model's logits are enlarged to the pixels of its windows as the sliding window does it (bicubic, half-pixel centres).
Only pixels count that windows of every model show, each of them once: where windows of one model overlap, the first
one has the pixel. The truth is the cached region map, so that no image is read again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from dlprobe.data.labels import TRUTH_SCHEME, label_patches
from dlprobe.data.provenance import Provenance
from dlprobe.data.tiling import Box, working_size

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from dlprobe.cache.reader import FeatureCache
    from dlprobe.studies.fitting.pool import CachePool

#: What makes two images of different caches the same one.
IMAGE_KEY = ["dataset", "path"]


class _Shown(NamedTuple):
    """Where one model's windows of an image lie, on a canvas of its working size."""

    boxes: tuple[Box, ...]
    size: tuple[int, int]


class PixelGrid:
    """Which pixels of which images every model shows.

    Parameters
    ----------
    pools : sequence of CachePool
        One a model.

    Attributes
    ----------
    images : frozenset of (str, str)
        Keys (`IMAGE_KEY`) of the images that all pools hold at one working size.
    n_left_out : int
        Images that some pool lacks, or that two models enlarge to different sizes.
    """

    def __init__(self, pools: Sequence[CachePool]) -> None:
        self._shown = [_shown(pool) for pool in pools]
        everything = set().union(*self._shown)
        alike = {
            key for key in everything if len({shown[key].size if key in shown else None for shown in self._shown}) == 1
        }
        self.images: frozenset[tuple[str, ...]] = frozenset(alike)
        self.n_left_out = len(everything) - len(alike)

    def common(self, *key: str) -> NDArray[np.bool_]:
        """Return the pixels that windows of every model show of the image with this key, shape (height, width)."""
        canvas = np.ones(self._shown[0][key].size, np.bool_)
        for shown in self._shown:
            seen = np.zeros_like(canvas)
            for box in shown[key].boxes:
                seen[box.slices] = True
            canvas &= seen
        return canvas


def owned_pixels(boxes: Sequence[Box], common: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Return which pixels of each window count, so that every common pixel counts in one window.

    Parameters
    ----------
    boxes : sequence of Box
        Of the windows of one image.
    common : ndarray of bool, shape (height, width)
        As `PixelGrid.common` returned it.

    Returns
    -------
    list of ndarray of bool, shape (box height, box width)
    """
    left, owned = common.copy(), []
    for box in boxes:
        owned.append(left[box.slices].copy())
        left[box.slices] = False
    return owned


def inpainted_windows(cache: FeatureCache, images: Collection[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
    """Return how many windows the inpainted pixels of some images would fill; where windows overlap, a pixel is one.

    Parameters
    ----------
    cache : FeatureCache
        Whose region maps say what was inpainted.
    images : collection of (str, str)
        Keys (`IMAGE_KEY`) of the images to look at; no region map of another one is read.

    Returns
    -------
    dict of (str, str) to float
        By key, of those images that have clean windows in this cache.
    """
    windows = cache.windows
    clean = windows[(windows["view"] == 0) & windows["stored"] & ~windows["rejected"]]
    found = {}
    for names, part in clean.groupby(IMAGE_KEY, sort=False):
        key = tuple(map(str, names))
        if key not in images:
            continue
        boxes = boxes_of(part)
        everywhere = np.ones((max(box.y + box.h for box in boxes), max(box.x + box.w for box in boxes)), np.bool_)
        inpainted = cache.regions(part.index.to_numpy()) == Provenance.INPAINTED
        count = sum(int(own[seen].sum()) for own, seen in zip(inpainted, owned_pixels(boxes, everywhere), strict=True))
        found[key] = count / cache.model_spec.window_px**2
    return found


def enlarge_logits(logits: NDArray[np.float32], height_px: int, width_px: int) -> NDArray[np.float32]:
    """Return logits of patches (rows, cols) as logits of pixels, bicubic with half-pixel centres.

    The same map as ``torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`` (a = -0.75).
    """
    grid = np.ascontiguousarray(logits, dtype=np.float32)
    return np.asarray(cv2.resize(grid, (width_px, height_px), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def label_pixels(classes: NDArray[np.uint8], scheme: str = TRUTH_SCHEME) -> NDArray[np.int8]:
    """Return the target of pixels under a labelling scheme: that of a patch which one class covers wholly."""
    pure = np.eye(4, dtype=np.uint8) * 255
    table = np.full(256, -1, np.int8)
    table[[Provenance.PRISTINE, Provenance.AUTOENCODED, Provenance.INPAINTED]] = label_patches(pure, scheme)[:3]
    return table[classes]


def _shown(pool: CachePool) -> dict[tuple[str, ...], _Shown]:
    clean = pool.windows[pool.kept & (pool.windows["view"].to_numpy() == 0)]
    found: dict[tuple[str, ...], _Shown] = {}
    for (number, image), part in clean.groupby(["cache", "image"], sort=False):
        row = pool.caches[int(number)].manifest.frame.iloc[int(image)]
        size = working_size(int(row["height"]), int(row["width"]), pool.model_spec.window_px)
        key = (str(part["dataset"].iloc[0]), str(part["path"].iloc[0]))
        found[key] = _Shown(boxes_of(part), size)
    return found


def boxes_of(windows: pd.DataFrame) -> tuple[Box, ...]:
    """Return the boxes of rows of `CachePool.windows`."""
    return tuple(Box(*map(int, row)) for row in windows[["y", "x", "h", "w"]].to_numpy())
