"""Whether a probability means what it says: calibration error, likelihood, and the one-number mend of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp

from dlprobe import plotting
from dlprobe.errors import MetricError
from dlprobe.metrics.intervals.studentized import ratio_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
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


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """How often what is said to be probable is true.

    Attributes
    ----------
    table : DataFrame
        One row a bin that is not empty: ``probability`` (the mean of the bin), ``frequency``, ``low``, ``high`` (95 %
        interval over sources), ``n_sources``, ``n``.
    """

    table: pd.DataFrame

    def frame(self) -> pd.DataFrame:
        """Return the table."""
        return self.table

    def plot(self, ax: Axes | None = None, *, series: int = 0, label: str | None = None) -> Axes:
        """Draw the frequency against the probability, with intervals, beside the diagonal of a calibrated score.

        Parameters
        ----------
        ax : Axes, optional
            New ones otherwise; give those of another curve, and another `series`, to compare.
        series : int
            See `dlprobe.plotting.mark`.
        label : str, optional
            For the legend.
        """
        ax = plotting.axes(ax, width_in=4.6, height_in=4.6)
        rows = self.table
        ax.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
        x = rows["probability"].to_numpy()
        plotting.intervals(ax, x, rows["frequency"], rows["low"], rows["high"], series=series, label=label)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean probability", ylabel="frequency of the positive class")
        plotting.legend(ax)
        return ax


def reliability_curve(
    probabilities: ArrayLike, truth: ArrayLike, sources: Sequence[str] | NDArray[np.str_], *, bins: int = 15
) -> Reliability:
    """Return the frequency of the positive class in bins of probability, with intervals over sources.

    Parameters
    ----------
    probabilities, truth, bins
        As in `expected_calibration_error`; flat.
    sources : sequence of str
        The source_id of each.

    Returns
    -------
    Reliability
        Each interval is `dlprobe.metrics.ratio_interval` over the sources in the bin: nan where they are few.

    Raises
    ------
    MetricError
        If the columns differ in length, or a probability lies outside [0, 1].
    """
    expected_calibration_error(probabilities, truth, bins=bins)  # refuses what is no probability
    p, y = _pair(probabilities, truth)
    names, source = np.unique(np.asarray(sources, dtype=str), return_inverse=True)
    if source.shape != p.shape:
        msg = f"{p.size} probabilities and {source.size} source_ids; pass one source_id each"
        raise MetricError(msg)
    tally = ReliabilityTally(bins=bins)
    order = np.argsort(source, kind="stable")
    pieces = np.split(order, np.cumsum(np.bincount(source))[:-1])
    for name, piece in zip(names.tolist(), pieces, strict=True):
        tally.add(p[piece], y[piece], name)
    return tally.curve()


class ReliabilityTally:
    """The counts behind a reliability curve, gathered piece by piece.

    Parameters
    ----------
    bins : int
        Of equal width; the last one holds 1.
    """

    def __init__(self, *, bins: int = 15) -> None:
        self._bins = bins
        self._sums: dict[str, NDArray[np.float64]] = {}

    def add(self, probabilities: ArrayLike, truth: ArrayLike, source: str) -> None:
        """Count a piece of a source.

        Parameters
        ----------
        probabilities, truth : array_like
            As in `expected_calibration_error`.
        source : str
            Its source_id.

        Raises
        ------
        MetricError
            If they differ in length, or one is nan.
        """
        p, y = _pair(probabilities, truth)
        index = np.minimum((p * self._bins).astype(np.intp), self._bins - 1)
        sums = [np.bincount(index, weights, minlength=self._bins) for weights in (np.ones(p.size), y, p)]
        found = np.stack(sums).astype(np.float64)
        self._sums[source] = self._sums[source] + found if source in self._sums else found

    def curve(self) -> Reliability:
        """Return the curve of all that was counted."""
        columns = ["probability", "frequency", "low", "high", "n_sources", "n"]
        if not self._sums:
            return Reliability(pd.DataFrame(columns=columns))
        totals, positives, probabilities = np.stack(list(self._sums.values()), axis=1)
        rows = []
        for number in np.flatnonzero(totals.sum(axis=0)):
            total = totals[:, number]
            here = total > 0
            interval = ratio_interval(positives[here, number], total[here], bounds=(0, 1))
            rows.append((probabilities[:, number].sum() / total.sum(), *interval[:4], int(total.sum())))
        return Reliability(pd.DataFrame(rows, columns=columns))


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


def fit_temperature(logits: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None) -> Temperature:
    """Return the temperature that makes ``logits / temperature`` most likely (Guo et al. 2017).

    Parameters
    ----------
    logits, truth
        As in `negative_log_likelihood`, of data that the probe was not fitted on.
    weights : array_like of float, shape (n,), optional
        How often each counts, such as `LogitHistogram.points` returns.

    Notes
    -----
    The likelihood is concave in the reciprocal of the temperature, so there is one best value; rankings and maps at
    threshold 0.5 do not change.
    """
    scores, labels = _logits(logits, truth)
    mass = None if weights is None else np.asarray(weights, np.float64).ravel()
    if mass is not None and mass.size != labels.size:
        msg = f"{labels.size} logits and {mass.size} weights do not belong together; pass as many of each"
        raise MetricError(msg)
    if not labels.size:
        msg = "a temperature needs labelled logits; pass at least one of each class"
        raise MetricError(msg)
    found = minimize_scalar(
        lambda log: _likelihood(scores, labels, float(np.exp(-log)), mass),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    value = float(np.exp(found.x))
    return Temperature(value, not 1.001 * LOWEST < value < HIGHEST / 1.001)


def _likelihood(
    scores: NDArray[np.float64], labels: NDArray[np.intp], scale: float, mass: NDArray[np.float64] | None = None
) -> float:
    """Return the mean negative log-likelihood of scaled logits; one column stands for a positive class."""
    if scores.shape[1] == 1:
        margins = np.where(labels > 0, scores[:, 0], -scores[:, 0]) * scale
        return float(np.average(np.logaddexp(0.0, -margins), weights=mass))
    scaled = scores * scale
    return float(np.average(logsumexp(scaled, axis=1) - scaled[np.arange(labels.size), labels], weights=mass))


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
