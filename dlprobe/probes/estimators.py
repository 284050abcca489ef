"""scikit-learn estimators: full batch, float64, two classes; the larger label is the positive class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from dlprobe.errors import ProbeError
from dlprobe.probes.exact import ClassMoments, Rows, ridge_path, stream_logistic
from dlprobe.probes.losses import SMOOTH, dice_terms
from dlprobe.probes.moments import CONSTANT_SHARE

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import ArrayLike, NDArray


class EstimatorError(ProbeError, ValueError):
    """What scikit-learn expects as a ValueError: data that an estimator cannot be fitted on."""


class _Training(NamedTuple):
    """Rows that count, with their targets 0 and 1, their weights, and which rows of the input they were."""

    X: NDArray[np.float64]
    y: NDArray[np.float64]
    weight: NDArray[np.float64]
    kept: NDArray[np.bool_]


class _LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What the estimators share: one row of weights, two classes."""

    ignore_label: Any
    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]
    classes_: NDArray[Any]

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return logits of the positive class.

        Parameters
        ----------
        X : array-like, shape (rows, width)

        Returns
        -------
        ndarray of float64, shape (rows,)
        """
        check_is_fitted(self)
        values = validate_data(self, X, reset=False, dtype=np.float64)
        logits: NDArray[np.float64] = values @ self.coef_[0] + self.intercept_[0]
        return logits

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of each row: the positive one where the logit is above 0.

        Parameters
        ----------
        X : array-like, shape (rows, width)

        Returns
        -------
        ndarray, shape (rows,)
        """
        logits = self.decision_function(X)
        return self.classes_[(logits > 0).astype(np.int64)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _training(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None) -> _Training:
        """Check the data, learn the classes, and drop rows that are ignored or have no weight."""
        values, labels = validate_data(self, X, y, dtype=np.float64)
        weight = _check_sample_weight(sample_weight, values, dtype=np.float64, ensure_non_negative=True)
        kept = weight > 0
        if self.ignore_label is not None:
            kept &= labels != self.ignore_label
        check_classification_targets(labels)
        kind = type_of_target(labels[kept], input_name="y") if kept.any() else "empty"
        self.classes_ = np.unique(labels[kept])
        if len(self.classes_) > 2:
            msg = f"Only binary classification is supported. The type of the target is {kind}."
            raise EstimatorError(msg)
        if len(self.classes_) < 2:
            msg = f"{type(self).__name__} needs rows of two classes, there is {len(self.classes_)} class in y; add rows"
            raise EstimatorError(msg)
        target = (labels[kept] == self.classes_[1]).astype(np.float64)
        return _Training(values[kept], target, weight[kept], kept)

    def _learn(self, weights: NDArray[np.float64], bias: float) -> None:
        self.coef_ = weights[None, :]
        self.intercept_ = np.array([bias])


class _ProbabilityMixin:
    """Probabilities as sigmoids of the logits."""

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores of both classes.

        Parameters
        ----------
        X : array-like, shape (rows, width)

        Returns
        -------
        ndarray of float64, shape (rows, 2)
        """
        positive = expit(self.decision_function(X))  # type: ignore[attr-defined]  # a mixin of _LinearProbe
        return np.stack([1 - positive, positive], axis=1)


class DiceProbe(_ProbabilityMixin, _LinearProbe):
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
        """
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
        return self


class StreamingLogisticRegression(_ProbabilityMixin, _LinearProbe):
    """Logistic regression by damped Newton; see `dlprobe.probes.exact.stream_logistic`, which needs no X in memory.

    Parameters
    ----------
    C : float
        Inverse of the L2 penalty, as in scikit-learn's LogisticRegression.
    tol : float
        Stops when the largest component of the gradient of the mean loss is below it.
    max_iter : int
        Newton steps at most.
    ignore_label : object
        Rows with this label are left out; None leaves out none.

    Attributes
    ----------
    coef_ : ndarray, shape (1, width)
    intercept_ : ndarray, shape (1,)
    classes_ : ndarray, shape (2,)
    n_iter_ : int
    converged_, separable_ : bool
        Whether the gradient is below `tol`, and whether a plane separates the classes.
    n_features_in_ : int
    """

    def __init__(self, C: float = 1.0, *, tol: float = 1e-9, max_iter: int = 100, ignore_label: Any = None) -> None:
        self.C = C
        self.tol = tol
        self.max_iter = max_iter
        self.ignore_label = ignore_label

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the probe.

        Parameters
        ----------
        X : array-like, shape (rows, width)
        y : array-like, shape (rows,)
        sample_weight : array-like, shape (rows,), optional
            How many times each row counts.

        Returns
        -------
        StreamingLogisticRegression
            Itself.
        """
        values, target, weight, _ = self._training(X, y, sample_weight)
        found = stream_logistic(
            lambda: [Rows(values, target, weight)],
            values.shape[1],
            C=self.C,
            tolerance=self.tol,
            max_iterations=self.max_iter,
        )
        self._learn(found.weights, found.bias)
        self.n_iter_ = found.iterations
        self.converged_ = found.converged
        self.separable_ = found.separable
        return self


class RidgeProbe(_LinearProbe):
    """Ridge regression on targets -1 and 1, from second moments.

    Parameters
    ----------
    alpha : float
        L2 penalty, as in scikit-learn's RidgeClassifier on standardised features.
    ignore_label : object
        Rows with this label are left out; None leaves out none.

    Attributes
    ----------
    coef_ : ndarray, shape (1, width)
        On raw features.
    intercept_ : ndarray, shape (1,)
    classes_ : ndarray, shape (2,)
    n_features_in_ : int
    """

    def __init__(self, alpha: float = 1.0, *, ignore_label: Any = None) -> None:
        self.alpha = alpha
        self.ignore_label = ignore_label

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the probe.

        Parameters
        ----------
        X : array-like, shape (rows, width)
        y : array-like, shape (rows,)
        sample_weight : array-like, shape (rows,), optional
            How many times each row counts.

        Returns
        -------
        RidgeProbe
            Itself.
        """
        values, target, weight, _ = self._training(X, y, sample_weight)
        origin = weight @ values / weight.sum()
        centred = values - origin
        by_class = np.stack([weight * (target == each) for each in (0, 1)])
        gram = (centred * weight[:, None]).T @ centred
        moments = ClassMoments(by_class.sum(axis=1), by_class @ centred, gram, origin)
        (found,) = ridge_path(moments, [self.alpha])
        self._learn(found.weights, found.bias)
        return self


def _standardisation(rows: _Training) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and one over the deviation of each feature, 0 where it is constant."""
    share = rows.weight / rows.weight.sum()
    mean = share @ rows.X
    variance = share @ np.square(rows.X - mean)
    varies = variance > CONSTANT_SHARE * (variance + mean**2)
    return mean, np.divide(1.0, np.sqrt(variance), out=np.zeros_like(variance), where=varies)


def _dice_and_gradient(
    point: NDArray[np.float64],
    X: NDArray[np.float64],
    rows: _Training,
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
