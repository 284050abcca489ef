"""Baselines by scikit-learn on a stated subsample: what a Dice head has to beat."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.errors import ProbeError

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
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rows, n_available = _subsample(X, y, seed, max_patches)
    labels = y[rows]
    values = X[rows].astype(np.float64)
    if not np.isfinite(values).all():
        msg = "a logistic regression was given embeddings that are not finite; verify the cache they come from"
        raise ProbeError(msg)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    inverse = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-7 * np.abs(mean))
    values -= mean
    values *= inverse
    model = LogisticRegression(C=C, max_iter=max_iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as a field of the result
        model.fit(values, labels)
    weights = model.coef_[0].astype(np.float64) * inverse
    iterations = int(model.n_iter_[0])
    return LogisticFit(
        weights=weights,
        bias=float(model.intercept_[0] - weights @ mean),
        C=C,
        n_patches=len(rows),
        n_available=n_available,
        iterations=iterations,
        converged=iterations < max_iterations,
    )


def _subsample(
    X: NDArray[np.floating], y: NDArray[np.integer], seed: int, max_patches: int
) -> tuple[NDArray[np.int64], int]:
    if X.ndim != 2 or y.shape != X.shape[:1]:
        msg = f"embeddings of shape {X.shape} and labels of shape {y.shape} do not fit; give (n, width) and (n,)"
        raise ProbeError(msg)
    known = np.flatnonzero(y >= 0)
    chosen = known
    if len(known) > max_patches:
        chosen = np.sort(np.random.default_rng(seed).choice(known, max_patches, replace=False))
    if (classes := np.unique(y[chosen])).tolist() != [0, 1]:
        found = ", ".join(map(str, classes.tolist())) or "none"
        msg = f"a logistic regression needs patches of both classes, 0 and 1; among {len(chosen)} there are: {found}"
        raise ProbeError(msg)
    return chosen, len(known)
