"""How far apart two classes are, from their means and covariances alone.

Both classes weigh the same, whatever their numbers of patches, so that data sets with large and small masks can be
compared. Features are scaled to unit total variance first, and covariances are shrunk towards the identity:
``(1 - s) C + s tr(C)/width I``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.lapack import dpotrf

from dlprobe.errors import MetricError
from dlprobe.probes.moments import CONSTANT_SHARE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dlprobe.separability.states import Gaussian


class Pair(NamedTuple):
    """Two classes on common scales.

    Parameters
    ----------
    varies : ndarray of bool, shape (raw width,)
        Features that are not constant over both classes; the others are left out.
    scale : ndarray of float64, shape (width,)
        Deviation of each kept feature, over both classes at equal weights.
    shift : ndarray of float64, shape (width,)
        Second mean minus first, scaled.
    first, second : ndarray of float64, shape (width, width)
        Covariances, scaled; not shrunk.
    middle : ndarray of float64, shape (width,)
        Mean of the two means, raw.
    """

    varies: NDArray[np.bool_]
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    middle: NDArray[np.float64]

    @property
    def within(self) -> NDArray[np.float64]:
        """Mean of the two covariances."""
        return (self.first + self.second) / 2


def pair_of(first: Gaussian, second: Gaussian) -> Pair:
    """Bring two classes to common scales.

    Parameters
    ----------
    first, second : Gaussian

    Raises
    ------
    MetricError
        If every feature is constant.
    """
    difference = second.mean - first.mean
    variance = (np.diag(first.covariance) + np.diag(second.covariance)) / 2 + difference**2 / 4
    middle = (first.mean + second.mean) / 2
    varies = variance > CONSTANT_SHARE * (variance + middle**2)
    if not varies.any():
        msg = "every feature is constant"
        raise MetricError(msg)
    scale = np.sqrt(variance[varies])
    both = np.ix_(varies, varies)
    outer = np.outer(scale, scale)
    return Pair(
        varies,
        scale,
        difference[varies] / scale,
        first.covariance[both] / outer,
        second.covariance[both] / outer,
        middle[varies],
    )


def shrunk(covariance: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    """Return a covariance mixed with the identity times its mean variance."""
    found = (1 - shrinkage) * covariance
    found[np.diag_indices_from(found)] += shrinkage * np.trace(covariance) / len(covariance)
    return found


def fisher_ratio(pair: Pair) -> float:
    """Return the trace of the scatter between the classes over the trace of that within them.

    Both on scaled features, so that each counts the same; `Pair` weighs the classes alike.
    """
    return float(pair.shift @ pair.shift / 4 / np.trace(pair.within))


def mahalanobis(pair: Pair, shrinkage: float = 0.0) -> float:
    """Return the distance of the means in deviations of the mean covariance: ``sqrt(shift' C^-1 shift)``.

    Measured where the covariance was estimated, it is too large by about ``width (1/n1 + 1/n2)`` in its square.
    """
    return float(np.sqrt(pair.shift @ _solved(shrunk(pair.within, shrinkage), pair.shift)))


def bhattacharyya(pair: Pair, shrinkage: float = 0.0) -> float:
    """Return the Bhattacharyya distance of two Gaussian classes (Fukunaga 1990, section 3.3).

    ``shift' C^-1 shift / 8 + ln(det C / sqrt(det C1 det C2)) / 2`` with C the mean covariance; each is shrunk.
    """
    first, second = shrunk(pair.first, shrinkage), shrunk(pair.second, shrinkage)
    mean = (first + second) / 2
    volume = _log_determinant(mean) - (_log_determinant(first) + _log_determinant(second)) / 2
    return float(pair.shift @ _solved(mean, pair.shift) / 8 + volume / 2)


class Discriminant(NamedTuple):
    """A plane between two classes: the second lies where ``x . weights + bias`` is above 0."""

    weights: NDArray[np.float64]
    bias: float


def discriminant(pair: Pair, shrinkage: float = 0.0) -> Discriminant:
    """Return the linear discriminant of two classes of equal prior probability, on raw features.

    It is that of ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=[0.5, 0.5])`` on scaled
    features; a constant feature gets no weight.
    """
    weights = np.zeros(len(pair.varies))
    weights[pair.varies] = _solved(shrunk(pair.within, shrinkage), pair.shift) / pair.scale
    return Discriminant(weights, float(-weights[pair.varies] @ pair.middle))


def cohens_d(first: Gaussian, second: Gaussian) -> NDArray[np.float64]:
    """Return the effect size of each feature: difference of means over the root of the mean variance (Cohen 1988).

    Returns
    -------
    ndarray of float64, shape (width,)
        nan for a feature that is constant within both classes.
    """
    variance = (np.diag(first.covariance) + np.diag(second.covariance)) / 2
    size = variance + ((first.mean + second.mean) / 2) ** 2
    varies = variance > CONSTANT_SHARE * size
    sizes: NDArray[np.float64] = np.full(len(variance), np.nan)
    np.divide(second.mean - first.mean, np.sqrt(np.maximum(variance, 0)), out=sizes, where=varies)
    return sizes


def effective_rank(covariance: NDArray[np.float64]) -> float:
    """Return the exponential of the entropy of a covariance's normalised eigenvalues (Roy and Vetterli 2007).

    Returns
    -------
    float
        Between 1 and the width; nan if nothing varies.
    """
    values = np.maximum(np.linalg.eigvalsh(covariance), 0)
    total = values.sum()
    if not total > 0:
        return float("nan")
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _solved(matrix: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
    try:
        found: NDArray[np.float64] = cho_solve(cho_factor(matrix, lower=True), vector)
    except np.linalg.LinAlgError as error:
        raise _singular() from error
    return found


def _log_determinant(matrix: NDArray[np.float64]) -> float:
    factor, info = dpotrf(matrix, lower=1)
    if info:
        raise _singular()
    return float(2 * np.log(np.diag(factor)).sum())


def _singular() -> MetricError:
    return MetricError("a covariance is singular; raise the shrinkage")
