"""Whether a probability means what it says: calibration error, likelihood, and the one-number mend of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp

from dlprobe.errors import MetricError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

#: Between them a temperature is sought.
LOWEST, HIGHEST = 1e-2, 1e2


class Temperature(NamedTuple):
    """A divisor of logits.

    Parameters
    ----------
    value : float
        Above 1 where the logits are too sure.
    at_edge : bool
        True if the likelihood still rises at the end of the range: separable data, or logits without information.
    """

    value: float
    at_edge: bool


def expected_calibration_error(probabilities: ArrayLike, truth: ArrayLike, *, bins: int = 15) -> float:
    """Return the mean distance of probability and frequency over bins of equal width.

    Parameters
    ----------
    probabilities : array_like of float
        Of the positive class, in [0, 1]; any shape.
    truth : array_like of bool
        As many.
    bins : int
        Of equal width; the last one holds 1.

    Returns
    -------
    float
        ``sum_b n_b / n |mean truth - mean probability|`` (Guo et al. 2017, eq. 3, for the positive class); nan without
        data. Few rows or many bins push it up, so compare at equal numbers of both.
    """
    p, y = _pair(probabilities, truth)
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        msg = f"probabilities run from {p.min():g} to {p.max():g}, not within [0, 1]; pass sigmoids, not logits"
        raise MetricError(msg)
    if not p.size:
        return float("nan")
    index = np.minimum((p * bins).astype(np.intp), bins - 1)
    gaps = np.bincount(index, y - p, minlength=bins)
    return float(np.abs(gaps).sum() / p.size)


def negative_log_likelihood(logits: ArrayLike, truth: ArrayLike) -> float:
    """Return the mean negative log-likelihood, in nats; finite also where the sigmoid saturates.

    Parameters
    ----------
    logits : array_like of float, shape (n,) or (n, classes)
        One logit of the positive class, or one a class (softmax).
    truth : array_like, shape (n,)
        Boolean for one logit; class numbers for several.

    Returns
    -------
    float
        nan without data.
    """
    scores, labels = _logits(logits, truth)
    return _likelihood(scores, labels, 1.0) if labels.size else float("nan")


def fit_temperature(logits: ArrayLike, truth: ArrayLike) -> Temperature:
    """Return the temperature that makes ``logits / temperature`` most likely (Guo et al. 2017).

    Parameters
    ----------
    logits, truth
        As in `negative_log_likelihood`, of data that the probe was not fitted on.

    Notes
    -----
    The likelihood is concave in the reciprocal of the temperature, so there is one best value; rankings and maps at
    threshold 0.5 do not change.
    """
    scores, labels = _logits(logits, truth)
    if not labels.size:
        msg = "a temperature needs labelled logits; pass at least one of each class"
        raise MetricError(msg)
    found = minimize_scalar(
        lambda log: _likelihood(scores, labels, float(np.exp(-log))),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    value = float(np.exp(found.x))
    return Temperature(value, not 1.001 * LOWEST < value < HIGHEST / 1.001)


def _likelihood(scores: NDArray[np.float64], labels: NDArray[np.intp], scale: float) -> float:
    """Return the mean negative log-likelihood of scaled logits; one column stands for a positive class."""
    if scores.shape[1] == 1:
        margins = np.where(labels > 0, scores[:, 0], -scores[:, 0]) * scale
        return float(np.mean(np.logaddexp(0.0, -margins)))
    scaled = scores * scale
    return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(labels.size), labels]))


def sigmoid(logits: ArrayLike) -> NDArray[np.float64]:
    """Return the probabilities of logits in float64, without overflow."""
    found: NDArray[np.float64] = expit(np.asarray(logits, np.float64))
    return found


def _pair(values: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, y = np.asarray(values, np.float64).ravel(), np.asarray(truth).astype(np.bool_).ravel().astype(np.float64)
    if p.size != y.size or np.isnan(p).any():
        msg = f"{p.size} probabilities ({int(np.isnan(p).sum())} nan) and {y.size} labels; pass as many, without nan"
        raise MetricError(msg)
    return p, y


def _logits(logits: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    scores, labels = np.asarray(logits, np.float64), np.asarray(truth).ravel().astype(np.intp)
    scores = scores[:, None] if scores.ndim == 1 else scores
    classes = max(scores.shape[-1], 2)
    if scores.ndim != 2 or len(scores) != labels.size or not np.isfinite(scores).all():
        msg = (
            f"logits of shape {scores.shape} and {labels.size} labels do not fit, or are not finite; pass one row each"
        )
        raise MetricError(msg)
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        msg = f"labels run from {labels.min()} to {labels.max()} for {classes} classes; leave ignored rows out"
        raise MetricError(msg)
    return scores, labels
