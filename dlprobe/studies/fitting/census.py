"""What a pool holds, looked at before anything is fitted, so that what cannot be fitted is one clear line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dlprobe.data import label_patches
from dlprobe.data.labels import IGNORE, TRUTH_SCHEME
from dlprobe.errors import CacheError, DataError
from dlprobe.studies.fitting.splits import CALIBRATION, UNUSED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dlprobe.probes import GroupMoments
    from dlprobe.studies.fitting.pool import CachePool
    from dlprobe.studies.fitting.splits import Assignment

_CHUNK_WINDOWS = 1024


def require_scorable(pool: CachePool, assignment: Assignment, *, calibration: int = 0) -> None:
    """Raise unless embeddings are finite, patches count, and the validation sources of each fold show INPAINTED.

    Parameters
    ----------
    pool, assignment
        Windows, and who trains, chooses, is tested and calibrates.
    calibration : int
        Sources with authentic images that a promise needs.

    Raises
    ------
    CacheError
        If an embedding is not finite.
    DataError
        If all patches are ignored, no patch to be found is in the caches or in a fold's validation sources, or too few
        of the sources set apart for calibration have an authentic image whose patches count.
    """
    inpainted, known = np.zeros(len(pool.windows), np.int64), np.zeros(len(pool.windows), np.int64)
    used = pool.kept & (assignment.groups != UNUSED)
    for part, coverage, moments in _chunks(pool, used):
        if not (finite := np.isfinite(moments).all(axis=(1, 2))).all():
            row = pool.windows.iloc[part[np.argmin(finite)]]
            cache = pool.caches[row["cache"]].path
            where = f"{row['path']} at y={row['y']}, x={row['x']}"
            advice = "verify it with `dlprobe cache verify`, or extract in a precision with a wider range"
            msg = f"{cache} holds embeddings that are not finite (first: {where}); {advice}"
            raise CacheError(msg)
        labels = label_patches(coverage, TRUTH_SCHEME)
        inpainted[part] = (labels == 1).sum(axis=(1, 2))
        known[part] = (labels != IGNORE).sum(axis=(1, 2))
    if not known.any():
        msg = "every patch is ignored: VOID covers more than half of each; check masks and regions of the data set"
        raise DataError(msg)
    if not inpainted.any():
        msg = "no patch is inpainted: there is nothing to find in these caches; extract images of the kinds sp or fr"
        raise DataError(msg)
    _require_calibration(pool, assignment, known, calibration)
    for number, fold in enumerate(assignment.folds):
        chooses = np.isin(assignment.groups, fold.val) & (pool.windows["view"] == 0).to_numpy()
        if not inpainted[chooses].any():
            msg = f"the validation sources of fold {number} show no inpainted patch; use fewer folds or another split"
            raise DataError(msg)


def require_varied(pool: CachePool, assignment: Assignment, moments: GroupMoments) -> None:
    """Raise if all patches that a fold trains on have the same embedding, from which no method can learn anything.

    Raises
    ------
    CacheError
        Naming the caches.
    """
    for number, train in enumerate(fold.train for fold in assignment.folds):
        if not moments.standardisation(train).inverse.any():
            names = " and ".join(str(cache.path) for cache in pool.caches)
            msg = (
                f"all patches of {names} that fold {number} trains on have the same embedding: nothing can be learned "
                "from them; check the backbone and its weights, and extract again"
            )
            raise CacheError(msg)


def _require_calibration(pool: CachePool, assignment: Assignment, known: NDArray[np.int64], needed: int) -> None:
    windows = pool.windows
    usable = (assignment.groups == CALIBRATION) & (windows["variant"] == "real").to_numpy()
    usable &= (windows["view"] == 0).to_numpy() & (known > 0)
    there = windows["source_id"][usable].nunique()
    if there < needed:
        msg = (
            f"the promise needs {needed} sources with authentic images for calibration alone; of those set apart only "
            f"{there} have one with patches that count; add sources or ask for a larger rate"
        )
        raise DataError(msg)


def _chunks(
    pool: CachePool, used: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float32]]]:
    """Yield window numbers, coverage and moments of the windows in use."""
    first = 0
    for cache in pool.caches:
        numbers = first + np.flatnonzero(used[first : first + len(cache)])
        for low in range(0, len(numbers), _CHUNK_WINDOWS):
            part = numbers[low : low + _CHUNK_WINDOWS]
            yield part, cache.coverage(part - first), cache.moments(part - first)
        first += len(cache)
