"""Threshold-free scores, exact: average precision, ROC-AUC and the pooled best F1.

Tied scores count as one step of the curve, as in scikit-learn, so that the order of the rows never matters. For scores
too many to sort, or of many heads at once, see `dlprobe.metrics.streaming`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlprobe.errors import MetricError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class BestF1(NamedTuple):
    """The highest F1 that one threshold reaches on scored data: an oracle where the data are the tested ones.

    Parameters
    ----------
    f1 : float
        The value; nan without positives.
    threshold : float
        The score from which on (``score >= threshold``) it is reached; the highest one if there are several.
    """

    f1: float
    threshold: float


class _Steps(NamedTuple):
    """Distinct scores, falling, and the weights of positives and negatives at or above each."""

    scores: NDArray[np.float64]
    positives: NDArray[np.float64]
    negatives: NDArray[np.float64]


def average_precision(scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the average precision, the sum over thresholds of precision times the gain in recall.

    Parameters
    ----------
    scores : array_like of float
        Any shape; higher means more likely positive.
    truth : array_like of bool
        As many.
    weights : array_like of float, optional
        As many, not negative.

    Returns
    -------
    float
        nan without positives. Equal to `sklearn.metrics.average_precision_score` elsewhere.
    """
    steps = _steps(scores, truth, weights)
    if not _last(steps.positives):
        return float("nan")
    marked = steps.positives + steps.negatives
    precision = np.divide(steps.positives, marked, out=np.zeros_like(marked), where=marked > 0)
    return float(np.diff(steps.positives, prepend=0.0) @ precision / steps.positives[-1])


def roc_auc(scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the probability that a positive scores higher than a negative, ties counting half.

    Parameters
    ----------
    scores, truth, weights
        As in `average_precision`.

    Returns
    -------
    float
        nan if only one class is there. Equal to `sklearn.metrics.roc_auc_score` elsewhere.
    """
    _, positives, negatives = _steps(scores, truth, weights)
    if not _last(positives) or not _last(negatives):
        return float("nan")
    here = np.diff(negatives, prepend=0.0)
    above = np.concatenate(([0.0], positives[:-1]))
    return float(here @ (above + positives) / (2 * positives[-1] * negatives[-1]))


def best_f1(scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> BestF1:
    """Return the best pooled F1 over all thresholds, and the threshold.

    Parameters
    ----------
    scores, truth, weights
        As in `average_precision`.

    Notes
    -----
    Chosen on the very data it is quoted for, it is an oracle and has to be marked as one; chosen on validation data,
    its threshold is a policy.
    """
    steps = _steps(scores, truth, weights)
    if not _last(steps.positives):
        return BestF1(float("nan"), float("nan"))
    f1 = 2 * steps.positives / (steps.positives + steps.negatives + steps.positives[-1])
    best = int(np.argmax(f1))
    return BestF1(float(f1[best]), float(steps.scores[best]))


def threshold_for_best_f1(scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the threshold of `best_f1`, to be used as ``score >= threshold``; nan without positives."""
    return best_f1(scores, truth, weights).threshold


def _steps(scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None) -> _Steps:
    flat, labels, mass = _columns(scores, truth, weights)
    order = np.argsort(flat)[::-1]
    flat, labels, mass = flat[order], labels[order], mass[order]
    positive = np.where(labels, mass, 0.0)
    last_of_tie = np.flatnonzero(np.append(flat[1:] != flat[:-1], flat.size > 0))
    return _Steps(flat[last_of_tie], np.cumsum(positive)[last_of_tie], np.cumsum(mass - positive)[last_of_tie])


def _columns(
    scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    flat = np.asarray(scores, np.float64).ravel()
    labels = np.asarray(truth).ravel()
    mass = np.ones(flat.size) if weights is None else np.asarray(weights, np.float64).ravel()
    if not flat.size == labels.size == mass.size:
        msg = f"{flat.size} scores, {labels.size} labels and {mass.size} weights do not belong together; pass as many"
        raise MetricError(msg)
    if np.isnan(flat).any():
        msg = f"{int(np.isnan(flat).sum())} of {flat.size} scores are nan; drop them, or mend what computed them"
        raise MetricError(msg)
    return flat, labels.astype(np.bool_), mass


def _last(sums: NDArray[np.float64]) -> float:
    return float(sums[-1]) if sums.size else 0.0
