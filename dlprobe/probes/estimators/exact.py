"""The estimators that have one right answer: logistic and ridge regression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.probes.estimators.linear import LinearProbe, ProbabilityMixin
from dlprobe.probes.exact import ClassMoments, Rows, ridge_path, stream_logistic

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import ArrayLike


class StreamingLogisticRegression(ProbabilityMixin, LinearProbe):
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
    converged_ : bool
        Whether the gradient is below `tol`; a `ConvergenceWarning` says so if not.
    separable_ : bool or None
        Whether a plane separates the classes, whatever C is; None in the rare case that it is not known. See
        `dlprobe.probes.exact.LogisticSolution`.
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

        Raises
        ------
        EstimatorError
            If a setting is out of its range, or there are not two classes.
        """
        self._require("C", 0, open_end=True)
        self._require("tol", 0, open_end=True)
        self._require("max_iter", 1)
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
        self._warn_unless_converged(found.gradient)
        return self


class RidgeProbe(LinearProbe):
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

        Raises
        ------
        EstimatorError
            If a setting is out of its range, or there are not two classes.
        """
        self._require("alpha", 0)
        values, target, weight, _ = self._training(X, y, sample_weight)
        origin = weight @ values / weight.sum()
        centred = values - origin
        by_class = np.stack([weight * (target == each) for each in (0, 1)])
        gram = (centred * weight[:, None]).T @ centred
        moments = ClassMoments(by_class.sum(axis=1), by_class @ centred, gram, origin)
        (found,) = ridge_path(moments, [self.alpha])
        self._learn(found.weights, found.bias)
        return self
