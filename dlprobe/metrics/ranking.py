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


class Ranking(NamedTuple):
    """The threshold-free scores of one set of scores, from one sort.

    Parameters
    ----------
    average_precision, roc_auc, best_f1, threshold : float
        As `average_precision`, `roc_auc` and `best_f1` return them.
    """

    average_precision: float
    roc_auc: float
    best_f1: float
    threshold: float


class _Steps(NamedTuple):
    """Distinct scores of positives, rising, with the weights there, at or above, and (negatives) above each."""

    scores: NDArray[np.floating]
    here: NDArray[np.float64]
    positives: NDArray[np.float64]
    negatives: NDArray[np.float64]
    negatives_above: NDArray[np.float64]
    all_positives: float
    all_negatives: float


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
    return _average_precision(_steps(scores, truth, weights))


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
    return _roc_auc(_steps(scores, truth, weights))


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
    return _best_f1(_steps(scores, truth, weights))


def threshold_for_best_f1(scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the threshold of `best_f1`, to be used as ``score >= threshold``; nan without positives."""
    return best_f1(scores, truth, weights).threshold


def rank(scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> Ranking:
    """Return average precision, ROC-AUC and best F1 together, for the price of one sort."""
    steps = _steps(scores, truth, weights)
    return Ranking(_average_precision(steps), _roc_auc(steps), *_best_f1(steps))


def _average_precision(steps: _Steps) -> float:
    if not steps.all_positives:
        return float("nan")
    marked = steps.positives + steps.negatives
    precision = np.divide(steps.positives, marked, out=np.zeros_like(marked), where=marked > 0)
    return float(steps.here @ precision / steps.all_positives)


def _roc_auc(steps: _Steps) -> float:
    if not steps.all_positives or not steps.all_negatives:
        return float("nan")
    below = steps.all_negatives - (steps.negatives + steps.negatives_above) / 2
    return float(steps.here @ below / (steps.all_positives * steps.all_negatives))


def _best_f1(steps: _Steps) -> BestF1:
    if not steps.all_positives:
        return BestF1(float("nan"), float("nan"))
    f1 = 2 * steps.positives / (steps.positives + steps.negatives + steps.all_positives)
    best = f1.size - 1 - int(np.argmax(f1[::-1]))
    return BestF1(float(f1[best]), float(steps.scores[best]))


def _steps(scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None) -> _Steps:
    """Sort positives and negatives apart: only a positive's score can be a step of recall or of the best F1."""
    flat, labels, mass = _columns(scores, truth, weights)
    positive, positive_mass = _sorted(flat, mass, labels)
    negative, negative_mass = _sorted(flat, mass, ~labels)
    first = np.flatnonzero(np.append(positive.size > 0, positive[1:] != positive[:-1])[: positive.size])
    values = positive[first]
    below = positive_mass[first]
    return _Steps(
        values,
        np.diff(below, append=positive_mass[-1]),
        positive_mass[-1] - below,
        negative_mass[-1] - negative_mass[np.searchsorted(negative, values, "left")],
        negative_mass[-1] - negative_mass[np.searchsorted(negative, values, "right")],
        float(positive_mass[-1]),
        float(negative_mass[-1]),
    )


def _sorted(
    flat: NDArray[np.floating], mass: NDArray[np.float64] | None, chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """Return the chosen scores, rising, and the mass before each and after the last."""
    scores = flat[chosen]
    if mass is None:
        return np.sort(scores), np.arange(scores.size + 1, dtype=np.float64)
    order = np.argsort(scores)
    return scores[order], np.concatenate(([0.0], np.cumsum(mass[chosen][order])))


def _columns(
    scores: ArrayLike, truth: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[np.floating], NDArray[np.bool_], NDArray[np.float64] | None]:
    flat = np.asarray(scores).ravel()
    if flat.dtype != np.float32:
        flat = flat.astype(np.float64)
    labels = np.asarray(truth).ravel()
    mass = None if weights is None else np.asarray(weights, np.float64).ravel()
    if flat.size != labels.size or (mass is not None and mass.size != labels.size):
        msg = f"{flat.size} scores and {labels.size} labels (and weights) do not belong together; pass as many of each"
        raise MetricError(msg)
    if np.isnan(flat).any():
        msg = f"{int(np.isnan(flat).sum())} of {flat.size} scores are nan; drop them, or mend what computed them"
        raise MetricError(msg)
    return flat, labels.astype(np.bool_), mass
