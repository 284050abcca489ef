"""Ridge regression and linear discriminant analysis from second moments that are gathered once.

One pass serves all schemes, folds and penalties. Patches fall into few patterns of labels (what each scheme says of
them); the sums of every pattern in every group of windows are kept, so that the moments of a scheme are a sum over
patterns, leaving a fold out is a subtraction, and a path of penalties costs one eigendecomposition. Products need to
know only which schemes ignore a patch: the three schemes with two sides make two such matrices a group.

Products and sums are float64, of embeddings less a point near their mean. A Gram matrix then is relatively wrong by the
rounding of its sums, about 1e-15, and weights by that times the condition number of the covariance with its penalty:
1e-9 at a condition of 1e6. In float32, it is some per cent; float64 costs 1.4 times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.linalg.lapack import dsfrk, dtfttr

from dlprobe.errors import ProbeError
from dlprobe.probes.moments import CONSTANT_SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MAX_GROUPS = 20
#: Rows that are converted to float64 at a time; at width 768 they take 13 MB.
TILE_ROWS = 2048
#: What products may take, as half matrices.
MAX_BYTES = 2_000_000_000


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
        A point near the mean of the embeddings; it is subtracted first, so that the sums do not cancel.
    n_groups : int
        At most 20: each keeps ``width * (width + 1) / 2`` numbers for each set of schemes that ignore some patch.
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
        self._origin = np.asarray(origin, np.float64)
        self._n_groups = n_groups
        self._schemes = list(schemes)
        self._width = len(self._origin)
        self._sums: dict[tuple[int, int], _Sums] = {}
        self._products: dict[tuple[int, int], NDArray[np.float64]] = {}

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
            If shapes do not fit, a group does not exist, a sum is not finite, or products need more than `MAX_BYTES`.
        """
        patterns = self._patterns(embeddings, targets, groups)
        for group in np.unique(groups[groups >= 0]).tolist():
            inside = groups == group
            rows = embeddings[inside].reshape(-1, self._width)
            labels = patterns[inside].reshape(-1)
            known = self._known(labels)
            for schemes in np.unique(known[known > 0]).tolist():
                chosen = known == schemes
                self._add(group, schemes, rows[chosen], labels[chosen])

    def _add(self, group: int, schemes: int, rows: NDArray[np.floating], labels: NDArray[np.int64]) -> None:
        """Add patches of one group that the same schemes know."""
        product = self._product(group, schemes)
        for start in range(0, len(rows), TILE_ROWS):
            tile = rows[start : start + TILE_ROWS] - self._origin
            found, which = np.unique(labels[start : start + TILE_ROWS], return_inverse=True)
            sums = (which == np.arange(len(found))[:, None]).astype(np.float64) @ tile
            if not np.isfinite(sums).all():
                msg = "second moments were given embeddings that are not finite; verify the cache they come from"
                raise ProbeError(msg)
            for pattern, count, total in zip(found.tolist(), np.bincount(which).tolist(), sums, strict=True):
                before = self._sums.get((group, pattern), _Sums(0, np.zeros(self._width)))
                self._sums[group, pattern] = _Sums(before.patches + count, before.sum + total)
            product = dsfrk(self._width, len(tile), 1.0, tile.T, 1.0, product, uplo="L", overwrite_c=1)
        self._products[group, schemes] = product

    def _product(self, group: int, schemes: int) -> NDArray[np.float64]:
        """Return the sum of outer products so far, in rectangular full packed format (Gustavson et al. 2010)."""
        if (group, schemes) not in self._products:
            size = self._width * (self._width + 1) // 2
            needed = 8 * size * (len(self._products) + 1)
            if needed > MAX_BYTES:
                what = f"second moments of {self._width} features in {self._n_groups} groups"
                advice = "take fewer folds or layers, or leave out ridge and lda"
                msg = f"{what} need {needed} bytes or more, above {MAX_BYTES}; {advice}"
                raise ProbeError(msg)
            self._products[group, schemes] = np.zeros(size)
        return self._products[group, schemes]

    def _known(self, patterns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which schemes do not ignore a patch, as digits to the base 2."""
        known = np.zeros_like(patterns)
        for power in range(len(self._schemes)):
            known += (patterns // 3**power % 3 > 0) * 2**power
        return known

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
        place = self._schemes.index(scheme)
        count, total = np.zeros(2), np.zeros((2, self._width))
        for (group, pattern), sums in self._sums.items():
            label = pattern // 3**place % 3 - 1
            if group in groups and label >= 0:
                count[label] += sums.patches
                total[label] += sums.sum
        if not count.all():
            missing = "neither class" if not count.any() else ("no negative" if count[1] else "no positive")
            msg = f"groups {tuple(groups)} hold {missing} patch under scheme {scheme!r}; add sources or leave it out"
            raise ProbeError(msg)
        return ClassMoments(count, total, self._gram(2**place, groups), self._origin)

    def _gram(self, scheme: int, groups: Sequence[int]) -> NDArray[np.float64]:
        packed = np.zeros(self._width * (self._width + 1) // 2)
        for (group, schemes), product in self._products.items():
            if group in groups and schemes & scheme:
                packed += product
        lower: NDArray[np.float64] = dtfttr(self._width, packed, uplo="L")[0]
        return np.tril(lower) + np.tril(lower, -1).T


class _Sums(NamedTuple):
    """Over the patches of one group and pattern."""

    patches: int
    sum: NDArray[np.float64]


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
