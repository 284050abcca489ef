"""Ridge regression and linear discriminant analysis from second moments that are gathered once.

One pass serves all schemes, folds and penalties. Patches fall into few patterns of labels (what each scheme says of
them); the sums of every pattern in every group of windows are kept, so that the moments of a scheme are a sum over
patterns, leaving a fold out is a subtraction, and a path of penalties costs one eigendecomposition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg.blas import ssyrk

from dlprobe.errors import ProbeError
from dlprobe.probes.moments import CONSTANT_SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MAX_GROUPS = 20
TILE_ROWS = 8192


@dataclass(frozen=True, slots=True, eq=False)
class ClassMoments:
    """Sums over negative and positive patches.

    Parameters
    ----------
    count : ndarray of float64, shape (2,)
    sum : ndarray of float64, shape (2, width)
    gram : ndarray of float64, shape (width, width)
        Sum of outer products over both classes.
    origin : ndarray of float64, shape (width,)
        What was subtracted from every embedding first.
    """

    count: NDArray[np.float64]
    sum: NDArray[np.float64]
    gram: NDArray[np.float64]
    origin: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearFit:
    """A linear map to one logit, on raw embeddings.

    Parameters
    ----------
    weights : ndarray of float64, shape (width,)
    bias : float
    penalty : float
        Ridge's alpha or LDA's shrinkage, both on standardised embeddings.
    """

    weights: NDArray[np.float64]
    bias: float
    penalty: float


class SecondMoments:
    """Gathers second moments of embeddings by group and pattern of labels.

    Parameters
    ----------
    origin : ndarray, shape (width,)
        A point near the mean of the embeddings; it is subtracted in float32, so that the sums do not cancel.
    n_groups : int
        At most 20: each keeps one matrix for each pattern.
    schemes : sequence of str
        Labelling schemes whose targets come with the embeddings.

    Raises
    ------
    ProbeError
        If there are too many groups, or none.
    """

    def __init__(self, origin: NDArray[np.floating], n_groups: int, schemes: Sequence[str]) -> None:
        if not 1 <= n_groups <= MAX_GROUPS:
            msg = f"second moments were asked for {n_groups} groups; give 1 to {MAX_GROUPS} folds of sources"
            raise ProbeError(msg)
        self._origin = np.asarray(origin, np.float32)
        self._n_groups = n_groups
        self._schemes = list(schemes)
        width = len(self._origin)
        self._cells: dict[tuple[int, int], _Cell] = {}
        self._width = width

    def add(
        self,
        embeddings: NDArray[np.floating],
        targets: Mapping[str, NDArray[np.int8]],
        groups: NDArray[np.int64],
    ) -> None:
        """Add a batch of windows.

        Parameters
        ----------
        embeddings : ndarray of float16 or float32, shape (n, patches, width)
        targets : mapping of str to ndarray of int8, shape (n, patches)
            1 positive, 0 negative, below 0 ignored, under each scheme.
        groups : ndarray of int64, shape (n,)
            Windows of a group below 0 are left out.

        Raises
        ------
        ProbeError
            If shapes do not fit, a group does not exist, or a sum is not finite.
        """
        patterns = self._patterns(embeddings, targets, groups)
        for group in np.unique(groups[groups >= 0]).tolist():
            inside = groups == group
            rows = embeddings[inside].reshape(-1, self._width)
            labels = patterns[inside].reshape(-1)
            for pattern in np.unique(labels[labels > 0]).tolist():
                cell = self._cells.setdefault((group, pattern), _Cell(self._width))
                cell.add(rows[labels == pattern], self._origin)

    def _patterns(
        self, embeddings: NDArray[np.floating], targets: Mapping[str, NDArray[np.int8]], groups: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the labels of all schemes as digits to the base 3; 0 where all of them ignore a patch."""
        shape = embeddings.shape
        if len(shape) != 3 or shape[2] != self._width or groups.shape != shape[:1]:
            msg = f"second moments of width {self._width} were given embeddings {shape} and groups {groups.shape}"
            raise ProbeError(msg)
        if groups.max(initial=-1) >= self._n_groups:
            msg = f"second moments have groups 0 to {self._n_groups - 1}, a window has group {groups.max()}"
            raise ProbeError(msg)
        patterns = np.zeros(shape[:2], np.int64)
        for power, scheme in enumerate(self._schemes):
            if scheme not in targets or targets[scheme].shape != shape[:2]:
                msg = f"a batch of {shape[:2]} patches has no targets of that shape for scheme {scheme!r}"
                raise ProbeError(msg)
            patterns += np.clip(targets[scheme].astype(np.int64) + 1, 0, 2) * 3**power
        return patterns

    def of(self, scheme: str, groups: Sequence[int]) -> ClassMoments:
        """Return the moments of a scheme's classes over some groups.

        Parameters
        ----------
        scheme : str
        groups : sequence of int

        Returns
        -------
        ClassMoments

        Raises
        ------
        ProbeError
            If the scheme was not gathered, or one of its classes has no patch in these groups.
        """
        if scheme not in self._schemes:
            msg = f"second moments hold no scheme {scheme!r}; they hold {', '.join(self._schemes)}"
            raise ProbeError(msg)
        place = 3 ** self._schemes.index(scheme)
        count, sums = np.zeros(2), np.zeros((2, self._width))
        gram = np.zeros((self._width, self._width))
        for (group, pattern), cell in self._cells.items():
            label = pattern // place % 3 - 1
            if group in groups and label >= 0:
                count[label] += cell.count
                sums[label] += cell.sum
                gram += cell.gram
        if not count.all():
            missing = "neither class" if not count.any() else ("no negative" if count[1] else "no positive")
            msg = f"groups {tuple(groups)} hold {missing} patch under scheme {scheme!r}; add sources or leave it out"
            raise ProbeError(msg)
        return ClassMoments(count, sums, gram, self._origin.astype(np.float64))


class _Cell:
    """Sums over the patches of one group and pattern."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.sum = np.zeros(width)
        self._lower = np.zeros((width, width))

    @property
    def gram(self) -> NDArray[np.float64]:
        return self._lower + np.tril(self._lower, -1).T

    def add(self, rows: NDArray[np.floating], origin: NDArray[np.float32]) -> None:
        self.count += len(rows)
        for start in range(0, len(rows), TILE_ROWS):
            tile = rows[start : start + TILE_ROWS].astype(np.float32) - origin
            self.sum += tile.sum(axis=0, dtype=np.float64)
            self._lower += np.tril(ssyrk(1.0, tile.T, trans=0, lower=1))
        if not np.isfinite(self.sum).all():
            msg = "second moments were given embeddings that are not finite; verify the cache they come from"
            raise ProbeError(msg)


def ridge_path(moments: ClassMoments, alphas: Sequence[float], *, standardise: bool = True) -> list[LinearFit]:
    """Return ridge classifiers (targets -1 and 1) for many penalties from one eigendecomposition.

    Parameters
    ----------
    moments : ClassMoments
    alphas : sequence of float
        Penalties as in ``sklearn.linear_model.RidgeClassifier``.
    standardise : bool
        Scale each feature to unit variance first; a constant feature gets no weight.

    Returns
    -------
    list of LinearFit
        In the order of `alphas`.
    """
    total = moments.count.sum()
    mean = moments.sum.sum(axis=0) / total
    scatter = moments.gram - total * np.outer(mean, mean)
    inverse = _inverse_deviation(scatter, moments, standardise=standardise)
    balance = (moments.count[1] - moments.count[0]) / total
    together = moments.sum[1] - moments.sum[0] - total * balance * mean
    values, vectors = np.linalg.eigh(scatter * np.outer(inverse, inverse))
    rotated = vectors.T @ (together * inverse)
    fits = []
    for alpha in alphas:
        shrunk = np.divide(rotated, values + alpha, out=np.zeros_like(rotated), where=values + alpha > 0)
        weights = (vectors @ shrunk) * inverse
        fits.append(LinearFit(weights=weights, bias=float(balance - weights @ (mean + moments.origin)), penalty=alpha))
    return fits


def lda(moments: ClassMoments, shrinkage: float = 0.0, *, standardise: bool = True) -> LinearFit:
    """Return the linear discriminant of two Gaussian classes with one covariance; see `lda_path`."""
    return lda_path(moments, [shrinkage], standardise=standardise)[0]


def lda_path(moments: ClassMoments, shrinkages: Sequence[float], *, standardise: bool = True) -> list[LinearFit]:
    """Return linear discriminants of two Gaussian classes with one covariance, from one eigendecomposition.

    Parameters
    ----------
    moments : ClassMoments
    shrinkages : sequence of float
        Each in [0, 1]: the covariance is mixed with the identity times its mean variance, as in
        ``sklearn.discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr")``. Directions in which the mixture
        does not vary get no weight, as in its least squares of smallest norm.
    standardise : bool
        Scale each feature to unit variance first; a constant feature gets no weight.

    Returns
    -------
    list of LinearFit
        In the order of `shrinkages`; each logit is the log odds of the positive class.

    Raises
    ------
    ProbeError
        If a shrinkage is out of its range.
    """
    for shrinkage in shrinkages:
        if not 0 <= shrinkage <= 1:
            msg = f"the shrinkage of a discriminant is {shrinkage}; it must lie in [0, 1]"
            raise ProbeError(msg)
    total = moments.count.sum()
    means = moments.sum / moments.count[:, None]
    within = (moments.gram - np.einsum("k,ki,kj->ij", moments.count, means, means)) / total
    grand = moments.sum.sum(axis=0) / total
    inverse = _inverse_deviation(moments.gram - total * np.outer(grand, grand), moments, standardise=standardise)
    values, vectors = np.linalg.eigh(within * np.outer(inverse, inverse))
    rotated = vectors.T @ ((means[1] - means[0]) * inverse)
    mean_variance = values.sum() / max(np.count_nonzero(inverse), 1)
    middle = means.mean(axis=0) + moments.origin
    odds = np.log(moments.count[1] / moments.count[0])
    fits = []
    for shrinkage in shrinkages:
        mixed = (1 - shrinkage) * values + shrinkage * mean_variance
        least = np.finfo(np.float64).eps * len(mixed) * np.abs(mixed).max()
        shrunk = np.divide(rotated, mixed, out=np.zeros_like(rotated), where=mixed > least)
        weights = (vectors @ shrunk) * inverse
        fits.append(LinearFit(weights=weights, bias=float(odds - weights @ middle), penalty=shrinkage))
    return fits


def _inverse_deviation(
    scatter: NDArray[np.float64], moments: ClassMoments, *, standardise: bool
) -> NDArray[np.float64]:
    if not standardise:
        return np.ones(len(scatter))
    variance = np.diag(scatter) / moments.count.sum()
    scale = np.diag(moments.gram) / moments.count.sum() + moments.origin**2
    varies = variance > CONSTANT_SHARE * scale
    inverse: NDArray[np.float64] = np.zeros_like(variance)
    np.divide(1.0, np.sqrt(np.maximum(variance, 0)), out=inverse, where=varies)
    return inverse
