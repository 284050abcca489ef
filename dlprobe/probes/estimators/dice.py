"""The estimator that minimises Dice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from dlprobe.probes.estimators.linear import LinearProbe, ProbabilityMixin, Training
from dlprobe.probes.estimators.scorers import EstimatorError
from dlprobe.probes.losses import SMOOTH, dice_terms
from dlprobe.probes.moments import CONSTANT_SHARE

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import ArrayLike, NDArray


class DiceProbe(ProbabilityMixin, LinearProbe):
    """Minimises the Dice loss of a linear map on standardised features by L-BFGS, from zero weights.

    Parameters
    ----------
    alpha : float
        L2 penalty: ``alpha / 2`` times the squared norm of the standardised weights is added to the loss.
    smooth : float
        Added to numerator and denominator of Dice.
    tol : float
        Stops when the largest component of the gradient is below it.
    max_iter : int
        Iterations at most.
    ignore_label : object
        Rows with this label are left out; None leaves out none.

    Attributes
    ----------
    coef_ : ndarray, shape (1, width)
        On raw features.
    intercept_ : ndarray, shape (1,)
    classes_ : ndarray, shape (2,)
    loss_ : float
        Dice loss at the end, without the penalty.
    n_iter_ : int
    converged_ : bool
        Whether the gradient is below `tol`; a `ConvergenceWarning` says so if not.
    n_features_in_ : int

    Notes
    -----
    The scores maximise overlap; they saturate, and are no probabilities to calibrate decisions on.
    """

    def __init__(
        self,
        alpha: float = 1e-3,
        *,
        smooth: float = SMOOTH,
        tol: float = 1e-8,
        max_iter: int = 1000,
        ignore_label: Any = None,
    ) -> None:
        self.alpha = alpha
        self.smooth = smooth
        self.tol = tol
        self.max_iter = max_iter
        self.ignore_label = ignore_label

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, windows: ArrayLike | None = None
    ) -> Self:
        """Fit the probe.

        Parameters
        ----------
        X : array-like, shape (rows, width)
        y : array-like, shape (rows,)
        sample_weight : array-like, shape (rows,), optional
            How many times each row counts.
        windows : array-like, shape (rows,), optional
            Window of each row: the loss is then the mean of one Dice per window; by default it is one Dice over all.

        Returns
        -------
        DiceProbe
            Itself.

        Raises
        ------
        EstimatorError
            If a setting is out of its range, or there are not two classes.
        """
        self._require("alpha", 0)
        self._require("smooth", 0)
        self._require("tol", 0, open_end=True)
        self._require("max_iter", 1)
        rows = self._training(X, y, sample_weight)
        if windows is None:
            window_of = np.zeros(len(rows.y), np.int64)
        else:
            given = np.asarray(windows)
            if given.shape != rows.kept.shape:
                msg = f"windows have shape {given.shape}, there are {len(rows.kept)} rows; give one number for each"
                raise EstimatorError(msg)
            window_of = np.unique(given[rows.kept], return_inverse=True)[1]
        mean, inverse = _standardisation(rows)
        values = (rows.X - mean) * inverse
        found = minimize(
            lambda point: _dice_and_gradient(point, values, rows, window_of, alpha=self.alpha, smooth=self.smooth),
            np.zeros(values.shape[1] + 1),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": self.max_iter, "gtol": self.tol, "ftol": 0.0, "maxls": 50},
        )
        weights = found.x[:-1] * inverse
        self._learn(weights, float(found.x[-1] - weights @ mean))
        self.loss_ = float(found.fun - 0.5 * self.alpha * found.x[:-1] @ found.x[:-1])
        self.n_iter_ = int(found.nit)
        size = float(np.abs(found.jac).max())
        self.converged_ = size <= self.tol
        self._warn_unless_converged(size)
        return self


def _standardisation(rows: Training) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and one over the deviation of each feature, 0 where it is constant."""
    share = rows.weight / rows.weight.sum()
    mean = share @ rows.X
    variance = share @ np.square(rows.X - mean)
    varies = variance > CONSTANT_SHARE * (variance + mean**2)
    return mean, np.divide(1.0, np.sqrt(variance), out=np.zeros_like(variance), where=varies)


def _dice_and_gradient(
    point: NDArray[np.float64],
    X: NDArray[np.float64],
    rows: Training,
    window_of: NDArray[np.int64],
    *,
    alpha: float,
    smooth: float,
) -> tuple[float, NDArray[np.float64]]:
    """Return the mean Dice loss over windows with its penalty, and the gradient by weights and bias."""
    n_windows = int(window_of.max()) + 1
    p = expit(X @ point[:-1] + point[-1])
    each = (rows.weight * rows.y * p, rows.weight * p, rows.weight * rows.y)
    overlap, predicted, positives = (np.bincount(window_of, values, n_windows) for values in each)
    terms = dice_terms(overlap, predicted, positives, smooth=smooth)
    slope = rows.weight * (terms.slope[window_of] * rows.y + terms.level[window_of]) * p * (1 - p) / n_windows
    penalty = alpha * point[:-1]
    gradient = np.append(slope @ X + penalty, slope.sum())
    return float(terms.loss.mean() + 0.5 * penalty @ point[:-1]), gradient
