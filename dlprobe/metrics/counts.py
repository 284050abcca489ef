"""Confusion counts that add, and the scores that are functions of them.

Counts of batches, images, folds and workers merge with no further code; a score is computed once, at the end. A score
without anything to find and without anything found is nan, never 0 or 1: callers that want a published protocol's
convention for that case use `dlprobe.metrics.protocols`.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlprobe.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


class Counts(NamedTuple):
    """How often prediction and truth agree and differ, in pixels, patches or images.

    Parameters
    ----------
    tp, fp, fn, tn : int
        True positives, false positives, false negatives and true negatives.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def merge(self, other: Counts) -> Counts:
        """Return the counts of both together."""
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def size(self) -> int:
        """How many decisions were counted."""
        return self.tp + self.fp + self.fn + self.tn


def count(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None) -> Counts:
    """Count agreements of two boolean arrays.

    Parameters
    ----------
    prediction, truth : ndarray of bool
        Equal shapes.
    ignore : ndarray of bool, optional
        Where True, nothing is counted; broadcastable to the same shape.

    Raises
    ------
    MetricError
        If shapes differ, or an array is not boolean (a score map compared to nothing, a mask in 0 and 255).
    """
    _check_masks(prediction, truth)
    if ignore is not None:
        kept = ~np.broadcast_to(ignore, truth.shape)
        prediction, truth = prediction[kept], truth[kept]
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return Counts(tp, fp, fn, truth.size - tp - fp - fn)


def total(counts: Iterable[Counts]) -> Counts:
    """Merge any number of counts; of none, return zeros."""
    return reduce(Counts.merge, counts, Counts())


def precision(counts: Counts) -> float:
    """Return tp / (tp + fp); nan when nothing was predicted."""
    return _ratio(counts.tp, counts.tp + counts.fp)


def recall(counts: Counts) -> float:
    """Return tp / (tp + fn); nan when there was nothing to find."""
    return _ratio(counts.tp, counts.tp + counts.fn)


def f1(counts: Counts) -> float:
    """Return 2 tp / (2 tp + fp + fn); nan when there was nothing to find and nothing was found."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def iou(counts: Counts) -> float:
    """Return tp / (tp + fp + fn); nan when there was nothing to find and nothing was found."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn)


def false_positive_rate(counts: Counts) -> float:
    """Return fp / (fp + tn); nan when everything was positive."""
    return _ratio(counts.fp, counts.fp + counts.tn)


def balanced_accuracy(counts: Counts) -> float:
    """Return the mean of recall and specificity; nan when a class is absent."""
    return (recall(counts) + _ratio(counts.tn, counts.fp + counts.tn)) / 2


def matthews(counts: Counts) -> float:
    """Return the Matthews correlation coefficient; nan when a row or a column of the table is empty."""
    tp, fp, fn, tn = counts
    squared = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / squared**0.5 if squared else float("nan")


def predict_everything_f1(p: float) -> float:
    """Return the F1 of a map that marks every pixel, 2p / (1 + p), where `p` is the mask's share of the image."""
    return 2 * p / (1 + p)


def predict_everything_iou(p: float) -> float:
    """Return the IoU of a map that marks every pixel: `p`, the mask's share of the image."""
    return p


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _check_masks(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
    if prediction.shape != truth.shape:
        msg = f"prediction has shape {prediction.shape} and truth {truth.shape}; bring both to one grid first"
        raise MetricError(msg)
    for name, array in (("prediction", prediction), ("truth", truth)):
        if array.dtype != np.bool_:
            msg = f"{name} has type {array.dtype} where bool is needed; compare it to a threshold first"
            raise MetricError(msg)
