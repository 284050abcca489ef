"""What one pass over embeddings keeps: sums by class and group of sources, and an even sample. States merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.linalg.blas import dsyrk

from dlprobe.data.labels import CLASSES, FULL
from dlprobe.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Index of a patch that belongs to no class.
NO_CLASS = -1
#: Rows that are converted to float64 at a time.
_TILE_ROWS = 4096


def patch_classes(coverage: NDArray[np.uint8], min_share: float = 0.5) -> NDArray[np.int64]:
    """Return the provenance class of each patch.

    Parameters
    ----------
    coverage : ndarray of uint8, shape (..., 4)
        See `dlprobe.data.patch_coverage`.
    min_share : float
        In [0.5, 1]: a patch belongs to the class that covers more than half of it, and at least this share.

    Returns
    -------
    ndarray of int64, shape (...)
        Index into `CLASSES`; -1 for a patch that is mixed, or mostly VOID.

    Raises
    ------
    MetricError
        If the share lies outside its range.
    """
    if not 0.5 <= min_share <= 1:
        msg = f"the least share of a class in a patch is {min_share}; it must lie in [0.5, 1]"
        raise MetricError(msg)
    known = coverage[..., : len(CLASSES)]
    needed = max(FULL // 2 + 1, int(np.ceil(min_share * FULL)))
    return np.where(known.max(axis=-1) >= needed, known.argmax(axis=-1), NO_CLASS).astype(np.int64)


class Gaussian(NamedTuple):
    """Mean and covariance of a class.

    Parameters
    ----------
    patches : float
        How many there are.
    mean : ndarray of float64, shape (width,)
    covariance : ndarray of float64, shape (width, width)
        Divided by the number of patches, not by one less.
    """

    patches: float
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


class MomentsState:
    """Count, sum and sum of outer products of every class in every group of sources, in float64.

    Memory is ``groups x 3 x width^2`` numbers, whatever the number of patches.

    Parameters
    ----------
    origin : ndarray of float64, shape (width,)
        A point near the mean, which is subtracted first so that sums do not cancel.
    groups : int
        Groups of sources that can be left out.
    """

    def __init__(self, origin: NDArray[np.floating], groups: int) -> None:
        self.origin, self.groups = np.asarray(origin, np.float64), groups
        width = len(self.origin)
        self.count = np.zeros((groups, len(CLASSES)))
        self.sum = np.zeros((groups, len(CLASSES), width))
        self.gram = np.zeros((groups, len(CLASSES), width, width))

    def update(
        self, embeddings: NDArray[np.floating], classes: NDArray[np.int64], groups: NDArray[np.int64]
    ) -> MomentsState:
        """Add patches.

        Parameters
        ----------
        embeddings : ndarray of float, shape (n, width)
        classes : ndarray of int64, shape (n,)
            Index into `CLASSES`; patches of -1 are left out.
        groups : ndarray of int64, shape (n,)
            Group of the source of each.

        Returns
        -------
        MomentsState
            Itself.

        Raises
        ------
        MetricError
            If the width is another, or an embedding that counts is not finite.
        """
        if embeddings.shape[1:] != self.origin.shape:
            msg = f"moments of width {len(self.origin)} were given embeddings of shape {embeddings.shape}"
            raise MetricError(msg)
        for group in np.unique(groups).tolist():
            for kind in range(len(CLASSES)):
                rows = np.flatnonzero((groups == group) & (classes == kind))
                for start in range(0, len(rows), _TILE_ROWS):
                    tile = embeddings[rows[start : start + _TILE_ROWS]].astype(np.float64) - self.origin
                    require_finite(tile)
                    self.count[group, kind] += len(tile)
                    self.sum[group, kind] += tile.sum(axis=0)
                    self.gram[group, kind] += dsyrk(1.0, tile.T, lower=1)
        return self

    def merge(self, other: MomentsState) -> MomentsState:
        """Add what another state of the same origin and groups has seen; return itself."""
        if self.groups != other.groups or not np.array_equal(self.origin, other.origin):
            msg = "moments of another origin or number of groups cannot be merged; begin both states alike"
            raise MetricError(msg)
        self.count += other.count
        self.sum += other.sum
        self.gram += other.gram
        return self

    def counts(self, groups: Sequence[int]) -> NDArray[np.float64]:
        """Return the patches of each class in some groups, shape (3,)."""
        found: NDArray[np.float64] = self.count[list(groups)].sum(axis=0)
        return found

    def sums(self, kind: int, groups: Sequence[int]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """Return count, sum and whole symmetric Gram matrix of a class in some groups, about the origin."""
        chosen = list(groups)
        lower = self.gram[chosen, kind].sum(axis=0)
        return (
            float(self.count[chosen, kind].sum()),
            self.sum[chosen, kind].sum(axis=0),
            lower + np.tril(lower, -1).T,
        )

    def gaussian(self, kind: int, groups: Sequence[int]) -> Gaussian | None:
        """Return mean and covariance of a class in some groups; None without any of its patches there."""
        count, total, gram = self.sums(kind, groups)
        if not count:
            return None
        mean = total / count
        return Gaussian(count, mean + self.origin, gram / count - np.outer(mean, mean))


def require_finite(tile: NDArray[np.float64]) -> None:
    """Raise `MetricError` if an embedding is nan or infinite."""
    if not np.isfinite(tile).all():
        msg = "embeddings are not finite (nan, or too large for float16); run `dlprobe cache verify`, or extract again"
        raise MetricError(msg)


class Sample(NamedTuple):
    """Patches drawn evenly.

    Parameters
    ----------
    embeddings : ndarray of float64, shape (n, width)
    classes, groups, sources, places : ndarray of int64, shape (n,)
        Class, group of sources that is left out together, source, and place in the source of each; variants of a
        photograph have their places in common.
    """

    embeddings: NDArray[np.float64]
    classes: NDArray[np.int64]
    groups: NDArray[np.int64]
    sources: NDArray[np.int64]
    places: NDArray[np.int64]

    def take(self, rows: NDArray[np.generic]) -> Sample:
        """Return some of the patches."""
        return Sample(*(column[rows] for column in self))


class SampleState:
    """An even sample of each class: the patches whose number, hashed with the seed, comes first.

    Which patches are drawn depends on their numbers and the seed alone, not on the order in which they come.

    Parameters
    ----------
    per_class : int
        Patches that are kept of each class.
    seed : int
    """

    def __init__(self, per_class: int, seed: int = 0) -> None:
        self._per_class, self._seed = per_class, seed
        self._kept: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64], Sample]] = {}

    def update(
        self,
        embeddings: NDArray[np.floating],
        classes: NDArray[np.int64],
        groups: NDArray[np.int64],
        sources: NDArray[np.int64],
        *,
        places: NDArray[np.int64],
        numbers: NDArray[np.int64],
    ) -> SampleState:
        """Add patches.

        Parameters
        ----------
        embeddings, classes, groups
            As in `MomentsState.update`.
        sources, places : ndarray of int64, shape (n,)
            Source of each patch, and its place in it.
        numbers : ndarray of int64, shape (n,)
            A number of its own for each patch.

        Returns
        -------
        SampleState
            Itself.
        """
        order = _hashed(numbers, self._seed)
        for kind in range(len(CLASSES)):
            rows = np.flatnonzero(classes == kind)
            if len(rows) > self._per_class:
                rows = rows[np.lexsort((numbers[rows], order[rows]))[: self._per_class]]
            columns = (column[rows] for column in (classes, groups, sources, places))
            part = Sample(embeddings[rows].astype(np.float64), *columns)
            self._keep(kind, order[rows], numbers[rows], part)
        return self

    def merge(self, other: SampleState) -> SampleState:
        """Add what another state of the same size and seed has seen; return itself."""
        if (self._per_class, self._seed) != (other._per_class, other._seed):
            msg = "samples of another size or seed cannot be merged; begin both states alike"
            raise MetricError(msg)
        for kind, (order, numbers, part) in other._kept.items():
            self._keep(kind, order, numbers, part)
        return self

    def sample(self) -> Sample:
        """Return the patches, class by class, each in the order of its hash."""
        parts = [part for _, (_, _, part) in sorted(self._kept.items())]
        columns = [np.concatenate([part[field] for part in parts]) for field in range(len(Sample._fields))]
        return Sample(*columns)

    def _keep(self, kind: int, order: NDArray[np.uint64], numbers: NDArray[np.int64], part: Sample) -> None:
        if kind in self._kept:
            before, their, kept = self._kept[kind]
            order, numbers = np.concatenate([before, order]), np.concatenate([their, numbers])
            part = Sample(*(np.concatenate(pair) for pair in zip(kept, part, strict=True)))
        first = np.lexsort((numbers, order))[: self._per_class]
        self._kept[kind] = (order[first], numbers[first], part.take(first))


def _hashed(numbers: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Return splitmix64 of each number (Steele, Lea and Flood 2014), begun at the seed."""
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z ^= np.uint64(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
