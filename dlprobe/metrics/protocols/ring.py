"""Protocols that leave out a ring around the mask and let the better of map and inverse count: TruFor and SAFIRE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from dlprobe.metrics.protocols.averages import Tally, group, means
from dlprobe.metrics.protocols.base import Pair, Protocol, confusion, everything, register, shares
from dlprobe.metrics.ranking import best_f1, rank

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dlprobe.metrics.counts import Counts
    from dlprobe.metrics.protocols.averages import Average, Columns

#: Sides of the square windows that shrink the mask and grow it, in pixels.
ERODE_PX = 15
DILATE_PX = 11


def ring_free(pair: Pair) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which of the pair's flat pixels lie outside the ring, and the truth there (``extractGTs``).

    Notes
    -----
    Inside counts where a 15 px window is all mask, outside where an 11 px window has none of it. An object narrower
    than 15 px vanishes, and with it every true positive.
    """
    mask = pair.mask.astype(np.uint8)
    inside = minimum_filter1d(minimum_filter1d(mask, ERODE_PX, axis=0), ERODE_PX, axis=1).astype(np.bool_)
    outside = maximum_filter1d(maximum_filter1d(mask, DILATE_PX, axis=0), DILATE_PX, axis=1) == 0
    scored = (inside | outside)[pair.kept]
    return scored, pair.truth[scored]


def permuted_f1(counts: Counts) -> float:
    """Return the better F1 of a prediction and its inverse; 0, not nan, where there is nothing to divide."""
    tp, fp, fn, tn = counts
    straight, inverse = 2 * tp + fn + fp, 2 * fn + tp + tn
    return max(2 * tp / straight if straight else 0.0, 2 * fn / inverse if inverse else 0.0)


def permuted_best_f1(score: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Return the best F1 over all thresholds of a map and its inverse, compared in float32 as published."""
    if not truth.size:
        return float("nan")
    if not truth.any():
        return 0.0
    values = score.astype(np.float32)
    return max(best_f1(values, truth).f1, best_f1(-values, truth).f1)


def trufor_map(pair: Pair, threshold: float) -> dict[str, float]:
    """Score one image as TruFor does: nan at the fixed threshold if only one class occurs in truth and prediction."""
    scored, truth = ring_free(pair)
    score = pair.score[scored]
    counts = confusion(score > threshold, truth)
    full = everything(counts)
    return {
        "f1": permuted_f1(counts) if _two_classes(counts) else float("nan"),
        "best_f1": permuted_best_f1(score, truth),
        "predict_everything_f1": permuted_f1(full) if _two_classes(full) else float("nan"),
        **shares(confusion(pair.score > threshold, pair.truth)),
    }


def safire_map(pair: Pair, threshold: float) -> dict[str, float]:
    """Score one image as SAFIRE does: TruFor's F1 with both classes forced, and ``st_`` metrics without a ring.

    Where the ring is everything, the ring-free metrics are nan (an error that SAFIRE catches, since scikit-learn
    refuses empty arrays; with old releases of it they were 0).
    """
    scored, truth = ring_free(pair)
    score = pair.score[scored]
    counts = confusion(score > threshold, truth)
    ranking = rank(pair.score, pair.truth)
    tp, fp, fn, tn = strict = confusion(pair.score >= threshold, pair.truth)
    return {
        "f1": permuted_f1(counts) if counts.size else float("nan"),
        "best_f1": permuted_best_f1(score, truth),
        "auc": ranking.roc_auc,
        "ap": ranking.average_precision,
        "mcc": _absolute_mcc(counts) if counts.size else float("nan"),
        "st_f1": permuted_f1(strict),
        "st_accuracy": max(tp + tn, fp + fn) / strict.size,
        "predict_everything_f1": permuted_f1(everything(counts)) if counts.size else float("nan"),
        "predict_everything_st_f1": permuted_f1(everything(strict)),
        **shares(strict),
    }


def _two_classes(counts: Counts) -> bool:
    """Return whether `confusion_matrix` without given labels has two rows: both classes in truth or prediction."""
    return counts.size > 0 and counts.tn < counts.size and counts.tp < counts.size


def _skipped(columns: Columns) -> float:
    """Return how many fakes have no F1, at the fixed or at the best threshold."""
    undefined = np.isnan(columns["f1"]) | np.isnan(columns["best_f1"])
    return float((undefined & group(columns, "fake")).sum())


def _absolute_mcc(counts: Counts) -> float:
    tp, fp, fn, tn = (float(value) for value in counts)
    product = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
    return float(abs(tp * tn - fp * fn) / max(product, 1e-32))


TRUFOR_AVERAGES: dict[str, Average] = {
    **means(("f1", "best_f1", "predict_everything_f1"), "fake"),
    "skipped": Tally(_skipped),
}
SAFIRE_AVERAGES: dict[str, Average] = {
    **means(("f1", "best_f1", "auc", "ap", "mcc", "st_f1", "st_accuracy"), "fake"),
    **means(("predict_everything_f1", "predict_everything_st_f1"), "fake"),
    "skipped": Tally(_skipped),
}
TRUFOR = register(
    Protocol(
        name="trufor",
        grid="original_px",
        comparison=">",
        images="fake",
        average="mean over images that are not nan",
        permutation="F1 of the better of map and inverse, also at the best threshold of each image",
        border="ring excluded: truth eroded by 15 px, background beyond 11 px",
        all_pristine="not evaluated",
        source="grip-unina/TruFor, test_docker/metrics.py (confusion_matrix without labels)",
        score_map=trufor_map,
        averages=TRUFOR_AVERAGES,
    )
)
SAFIRE = register(
    Protocol(
        name="safire",
        grid="original_px",
        comparison=">",
        images="fake",
        average="mean over images that are not nan",
        permutation="as TruFor; MCC is absolute; st_ metrics too take the better of map and inverse",
        border="as TruFor; none for auc, ap, st_f1 and st_accuracy, and those st_ metrics compare with >=",
        all_pristine="not evaluated",
        source="mjkwon2021/SAFIRE, test_binary.py and ForensicsEval/metric/metrics_functions.py, two sources",
        score_map=safire_map,
        averages=SAFIRE_AVERAGES,
    )
)
