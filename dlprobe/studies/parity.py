"""What another storage type, engine or precision costs: in the embeddings, and in what a probe makes of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from dlprobe import plotting
from dlprobe.cache import open_cache, parity
from dlprobe.data.labels import TRUTH_SCHEME
from dlprobe.errors import DataError, ProbeError
from dlprobe.metrics import paired_difference
from dlprobe.studies.fitting.census import require_scorable
from dlprobe.studies.fitting.methods.base import Task
from dlprobe.studies.fitting.pool import CachePool
from dlprobe.studies.fitting.scoring import score_images
from dlprobe.studies.fitting.selection import select
from dlprobe.studies.fitting.settings import FitSettings
from dlprobe.studies.fitting.splits import assign

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from matplotlib.axes import Axes

    from dlprobe.cache import Parity
    from dlprobe.metrics import PairedDifference
    from dlprobe.studies.fitting.splits import Assignment

#: One scheme and no baselines: the question is how far two scores of one probe are apart.
SETTINGS = FitSettings(schemes=(TRUTH_SCHEME,), baselines=())


@dataclass(frozen=True, slots=True)
class CacheComparison:
    """How close two caches are on their common windows.

    Parameters
    ----------
    embeddings : Parity
        Of the embeddings.
    iou_left, iou_right : float or None
        Mean test IoU, on the patch grid at the threshold chosen on validation, of probes that were fitted on the left
        cache alone: over tested photographs of their mean over images with inpainted patches. None without a fit.
    note : str
        The split, or why no probe could be fitted.
    change : PairedDifference or None
        IoU on the right minus the left, over tested photographs, with its interval.
    """

    embeddings: Parity
    iou_left: float | None
    iou_right: float | None
    note: str
    change: PairedDifference | None = None

    @property
    def iou_change(self) -> float | None:
        """Right minus left."""
        return None if self.iou_left is None or self.iou_right is None else self.iou_right - self.iou_left

    def row(self) -> dict[str, Any]:
        """Return everything as one flat row of JSON values."""
        ious = {"iou_left": self.iou_left, "iou_right": self.iou_right, "iou_change": self.iou_change}
        return {**asdict(self.embeddings), **ious, "note": self.note}

    def frame(self) -> pd.DataFrame:
        """Return everything as a table of one row, with the interval of the change of IoU."""
        nan = float("nan")
        low, high = (self.change.low, self.change.high) if self.change else (nan, nan)
        return pd.DataFrame([{**self.row(), "iou_change_low": low, "iou_change_high": high}])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the change of IoU with its interval over photographs; without a fit, the deviations of embeddings."""
        if self.change is None:
            return self.embeddings.plot(ax)
        ends = {"value": self.change.estimate, "low": self.change.low, "high": self.change.high}
        row = pd.DataFrame([{"what": "test IoU", "series": "right - left", **ends}])
        ax = plotting.dots(row, rows="what", series="series", ax=ax)
        ax.axvline(0, color="black", linestyle=":", linewidth=1)
        ax.set_xlabel(f"change of test IoU, right - left, on {self.change.n} photographs")
        return ax


def compare_caches(
    left: str | os.PathLike[str],
    right: str | os.PathLike[str],
    *,
    settings: FitSettings = SETTINGS,
    progress: Callable[[int, int], None] | None = None,
) -> CacheComparison:
    """Compare the embeddings of two caches, and the test IoU on both of probes fitted on the left one.

    Parameters
    ----------
    left, right : path
        Complete caches of the same grid and width. Windows are matched by image path, view and box.
    settings : FitSettings, optional
        Of the fit, whose split of sources holds for both.
    progress : callable, optional
        Called with the steps of the fit done and in all.

    Raises
    ------
    CacheError
        If a cache is incomplete or damaged, grid or width differ, or no window is common.
    """
    embeddings = parity(left, right)
    pools = [CachePool([open_cache(path)]) for path in (left, right)]
    keys = pools[0].keys().intersection(pools[1].keys())
    for pool in pools:
        pool.keep_only(keys)
    try:
        splits = [_split(pool, settings) for pool in pools]
        moments = pools[0].group_moments(splits[0].groups)
        chosen = select(Task(pools[0], splits[0], settings, moments, None, progress)).tested
    except (DataError, ProbeError) as error:
        return CacheComparison(embeddings, None, None, f"no probe: {error}")
    tables = [score_images(pool, split, chosen) for pool, split in zip(pools, splits, strict=True)]
    left_means, right_means = (
        shown.groupby("source_id")["iou_val"].mean()
        for table in tables
        for shown in [table[(table["method"] != "everything") & (table["share"] > 0)]]
    )
    change = paired_difference(left_means, right_means, bounds=(-1, 1))
    return CacheComparison(
        embeddings, float(left_means.mean()), float(right_means.mean()), splits[0].description, change
    )


def _split(pool: CachePool, settings: FitSettings) -> Assignment:
    split = assign(
        pool.windows, kept=pool.kept, n_folds=settings.n_folds, hold_out=settings.hold_out, seed=settings.seed
    )
    require_scorable(pool, split)
    return split
