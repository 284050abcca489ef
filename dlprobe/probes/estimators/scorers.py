"""Scores for model selection that leave out the rows that an estimator ignores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import _safe_indexing

from dlprobe.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from numpy.typing import ArrayLike

_IGNORE = "ignore_label"


class EstimatorError(ProbeError, ValueError):
    """What scikit-learn expects as a ValueError: data or settings that an estimator cannot be fitted with."""


class KnownRowsScorer:
    """A scorer of scikit-learn, on the rows whose label the estimator does not ignore.

    What is ignored is read from the estimator, or from the step of a pipeline, that has an ``ignore_label``. It is a
    scorer like those of `sklearn.metrics.make_scorer`: ``GridSearchCV(DiceProbe(ignore_label=-1), grid,
    scoring=KnownRowsScorer("f1"), cv=GroupKFold())``. With metadata routing,
    ``KnownRowsScorer("f1").set_score_request(sample_weight=True)`` lets a search weight its scores.

    Parameters
    ----------
    scoring : str or callable
        A name that `sklearn.metrics.get_scorer` knows, such as ``f1``, ``roc_auc``, ``average_precision`` or
        ``accuracy``, or a scorer.
    """

    def __init__(self, scoring: str | Callable[..., float] = "accuracy") -> None:
        from sklearn.metrics import get_scorer  # draws from Python's random numbers when it is imported

        self.scoring = scoring
        self._scorer: Any = get_scorer(scoring)

    def __call__(
        self, estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, **params: Any
    ) -> float:
        """Return the score.

        Parameters
        ----------
        estimator : estimator
            Fitted.
        X : array-like, shape (rows, width)
        y : array-like, shape (rows,)
        sample_weight : array-like, shape (rows,), optional
            How many times each row counts.
        **params
            What else the scorer takes.

        Returns
        -------
        float

        Raises
        ------
        EstimatorError
            If every row is ignored.
        """
        if ignored := _ignored_labels(estimator):
            labels = np.asarray(y)
            known = np.flatnonzero(np.all([labels != each for each in ignored], axis=0))
            if not len(known):
                msg = f"all {len(labels)} rows to score have an ignored label; give rows with others"
                raise EstimatorError(msg)
            X, y = _safe_indexing(X, known), labels[known]
            sample_weight = None if sample_weight is None else np.asarray(sample_weight)[known]
        if sample_weight is not None:
            params["sample_weight"] = sample_weight
        return float(self._scorer(estimator, X, y, **params))

    def __repr__(self) -> str:
        return f"KnownRowsScorer({self.scoring!r})"

    def set_score_request(self, **requests: Any) -> Self:
        """Ask for metadata, as ``set_score_request`` of the scorer does; return itself."""
        self._scorer = self._scorer.set_score_request(**requests)
        return self

    def get_metadata_routing(self) -> Any:
        """Return what metadata the scorer asks for."""
        return self._scorer.get_metadata_routing()


def _ignored_labels(estimator: Any) -> list[Any]:
    """Return the labels that an estimator, or one inside it, is told to ignore."""
    names = estimator.get_params(deep=True)
    found = [value for name, value in names.items() if name == _IGNORE or name.endswith(f"__{_IGNORE}")]
    return [label for label in found if label is not None]
