"""Baselines by scikit-learn on a stated subsample: what a Dice head has to beat."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dlprobe.errors import ProbeError
from dlprobe.probes.moments import CONSTANT_SHARE

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PATCHES = 50_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogisticFit:
    """A logistic regression on raw embeddings, and what it was fitted on.

    Parameters
    ----------
    weights : ndarray of float64, shape (width,)
        On raw embeddings.
    bias : float
    C : float
        Inverse of the penalty, on standardised embeddings.
    n_patches, n_available : int
        Patches that were fitted, and patches that could have been.
    iterations : int
    converged : bool
        False if scikit-learn stopped at its limit of iterations.
    """

    weights: NDArray[np.float64]
    bias: float
    C: float
    n_patches: int
    n_available: int
    iterations: int
    converged: bool


def fit_logistic(
    X: NDArray[np.floating],
    y: NDArray[np.integer],
    *,
    C: float = 1.0,
    seed: int = 0,
    max_patches: int = MAX_PATCHES,
    max_iterations: int = 1000,
) -> LogisticFit:
    """Fit scikit-learn's logistic regression on a uniform subsample of standardised patches.

    Parameters
    ----------
    X : ndarray, shape (patches, width)
        Raw embeddings.
    y : ndarray of int, shape (patches,)
        1 positive, 0 negative, below 0 ignored.
    C : float
        Inverse of the L2 penalty.
    seed : int
        Of the subsample.
    max_patches : int
        At most so many are fitted.
    max_iterations : int
        Limit of L-BFGS; reaching it is reported by `LogisticFit.converged`.

    Returns
    -------
    LogisticFit

    Raises
    ------
    ProbeError
        If the shapes do not fit, a value is not finite, or a class is missing.
    """
    from sklearn.linear_model import LogisticRegression

    sample = _subsample(X, y, seed, max_patches)
    return _fit_linear(LogisticRegression(C=C, max_iter=max_iterations), sample, C, max_iterations)


def fit_sgd(
    X: NDArray[np.floating],
    y: NDArray[np.integer],
    *,
    C: float = 1.0,
    seed: int = 0,
    max_patches: int = MAX_PATCHES,
    max_iterations: int = 50,
) -> LogisticFit:
    """Fit the same objective by scikit-learn's SGDClassifier, on the same subsample.

    Parameters
    ----------
    X, y, C, seed, max_patches
        As for `fit_logistic`; scikit-learn's ``alpha`` is ``1 / (C * n_patches)``.
    max_iterations : int
        Epochs at most.

    Returns
    -------
    LogisticFit

    Raises
    ------
    ProbeError
        As `fit_logistic`.
    """
    from sklearn.linear_model import SGDClassifier

    sample = _subsample(X, y, seed, max_patches)
    alpha = 1 / (C * len(sample.y))
    model = SGDClassifier(loss="log_loss", alpha=alpha, max_iter=max_iterations, random_state=seed)
    return _fit_linear(model, sample, C, max_iterations)


@dataclass(frozen=True, slots=True, eq=False)
class NearestPatches:
    """The k-nearest-neighbours baseline: no map to save, but a floor for what distances alone tell.

    Parameters
    ----------
    model : sklearn.neighbors.KNeighborsClassifier
        Fitted on standardised patches.
    mean, inverse : ndarray of float64, shape (width,)
        Of the standardisation.
    n_patches, n_available : int
        Patches that are kept, and patches that could have been.
    """

    model: Any
    mean: NDArray[np.float64]
    inverse: NDArray[np.float64]
    n_patches: int
    n_available: int

    def scores(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the share of positives among the nearest patches.

        Parameters
        ----------
        X : ndarray, shape (patches, width)
            Raw embeddings.

        Returns
        -------
        ndarray of float64, shape (patches,)
        """
        values = (X.astype(np.float64) - self.mean) * self.inverse
        scores: NDArray[np.float64] = self.model.predict_proba(values)[:, 1]
        return scores


def fit_nearest(
    X: NDArray[np.floating],
    y: NDArray[np.integer],
    *,
    neighbours: int = 20,
    seed: int = 0,
    max_patches: int = 10_000,
) -> NearestPatches:
    """Keep a uniform subsample of standardised patches to look up neighbours in.

    Parameters
    ----------
    X, y, seed, max_patches
        As for `fit_logistic`.
    neighbours : int
        How many nearest patches vote.

    Returns
    -------
    NearestPatches

    Raises
    ------
    ProbeError
        As `fit_logistic`, and if there are fewer patches than neighbours.
    """
    from sklearn.neighbors import KNeighborsClassifier

    sample = _subsample(X, y, seed, max_patches)
    if not 1 <= neighbours <= len(sample.y):
        msg = f"{neighbours} neighbours were asked for among {len(sample.y)} patches; ask for 1 to {len(sample.y)}"
        raise ProbeError(msg)
    model = KNeighborsClassifier(neighbours, algorithm="brute").fit(sample.X, sample.y)
    return NearestPatches(model, sample.mean, sample.inverse, len(sample.y), sample.n_available)


class _Sample(NamedTuple):
    """Standardised patches with both classes."""

    X: NDArray[np.float64]
    y: NDArray[np.integer]
    mean: NDArray[np.float64]
    inverse: NDArray[np.float64]
    n_available: int


def _fit_linear(model: Any, sample: _Sample, C: float, max_iterations: int) -> LogisticFit:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as a field of the result
        model.fit(sample.X, sample.y)
    weights = model.coef_[0].astype(np.float64) * sample.inverse
    iterations = int(np.max(model.n_iter_))
    return LogisticFit(
        weights=weights,
        bias=float(model.intercept_[0] - weights @ sample.mean),
        C=C,
        n_patches=len(sample.y),
        n_available=sample.n_available,
        iterations=iterations,
        converged=iterations < max_iterations,
    )


def _subsample(X: NDArray[np.floating], y: NDArray[np.integer], seed: int, max_patches: int) -> _Sample:
    if X.ndim != 2 or y.shape != X.shape[:1]:
        msg = f"embeddings of shape {X.shape} and labels of shape {y.shape} do not fit; give (n, width) and (n,)"
        raise ProbeError(msg)
    known = np.flatnonzero(y >= 0)
    chosen = known
    if len(known) > max_patches:
        chosen = np.sort(np.random.default_rng(seed).choice(known, max_patches, replace=False))
    if (classes := np.unique(y[chosen])).tolist() != [0, 1]:
        found = ", ".join(map(str, classes.tolist())) or "none"
        msg = f"a baseline needs patches of both classes, 0 and 1; among {len(chosen)} there are: {found}"
        raise ProbeError(msg)
    values = X[chosen].astype(np.float64)
    if not np.isfinite(values).all():
        msg = "a baseline was given embeddings that are not finite; verify the cache they come from"
        raise ProbeError(msg)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    varies = deviation**2 > CONSTANT_SHARE * (deviation**2 + mean**2)
    inverse = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
    values -= mean
    values *= inverse
    return _Sample(values, y[chosen], mean, inverse, len(known))
