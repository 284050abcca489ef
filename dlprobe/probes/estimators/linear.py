"""What the estimators share: checks of data and settings, logits, classes, scores that know what is ignored."""

from __future__ import annotations

import math
import warnings
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from dlprobe.probes.estimators.scorers import EstimatorError, KnownRowsScorer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class Training(NamedTuple):
    """Rows that count, with their targets 0 and 1, their weights, and which rows of the input they were."""

    X: NDArray[np.float64]
    y: NDArray[np.float64]
    weight: NDArray[np.float64]
    kept: NDArray[np.bool_]


class LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What the estimators share: one row of weights, two classes."""

    ignore_label: Any
    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]
    classes_: NDArray[Any]
    converged_: bool
    n_iter_: int

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

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the share of rows whose class is predicted, among those whose label is not ignored.

        Parameters
        ----------
        X : array-like, shape (rows, width)
        y : array-like, shape (rows,)
        sample_weight : array-like, shape (rows,), optional
            How many times each row counts.

        Returns
        -------
        float

        Raises
        ------
        EstimatorError
            If every row is ignored.
        """
        return KnownRowsScorer("accuracy")(self, X, y, sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _training(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None) -> Training:
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
        return Training(values[kept], target, weight[kept], kept)

    def _require(self, name: str, least: float, *, open_end: bool = False) -> None:
        """Raise `EstimatorError` unless a setting is a finite number from `least` up, or with `open_end` above it."""
        value = getattr(self, name)
        number = isinstance(value, Real) and math.isfinite(value)
        if not number or value < least or (open_end and value == least):
            where = "above" if open_end else "from"
            msg = f"{type(self).__name__} has {name}={value!r}; give a finite number {where} {least:g}"
            raise EstimatorError(msg + ("" if open_end else " up"))

    def _warn_unless_converged(self, gradient: float) -> None:
        if not self.converged_:
            advice = "raise max_iter or tol, or scale the features"
            msg = f"{type(self).__name__} stopped after {self.n_iter_} steps at a gradient of {gradient:.1e}; {advice}"
            warnings.warn(msg, ConvergenceWarning, stacklevel=3)

    def _learn(self, weights: NDArray[np.float64], bias: float) -> None:
        self.coef_ = weights[None, :]
        self.intercept_ = np.array([bias])


class ProbabilityMixin:
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
        positive = expit(self.decision_function(X))  # type: ignore[attr-defined]  # a mixin of LinearProbe
        return np.stack([1 - positive, positive], axis=1)
