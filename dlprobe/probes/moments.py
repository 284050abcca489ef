"""First and second moments of embeddings by group of windows: what standardisation needs, and nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlprobe.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: A variance below this share of the mean square is rounding of float32 sums of a constant, not variation.
CONSTANT_SHARE = 1e-7


class Standardisation(NamedTuple):
    """Mean and standard deviation of each feature, float64; the deviation of a constant feature is 0."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @property
    def inverse(self) -> NDArray[np.float64]:
        """One over the deviation; 0 for a constant feature, which so gets no weight."""
        varies = self.deviation > 0
        return np.divide(1.0, self.deviation, out=np.zeros_like(self.deviation), where=varies)


@dataclass(frozen=True, slots=True, eq=False)
class GroupMoments:
    """Sums over the patches of each group of windows; groups are folds of sources.

    Parameters
    ----------
    count : ndarray of float64, shape (groups,)
        Patches in each group.
    sum, sum_of_squares : ndarray of float64, shape (groups, width)
        Of the embeddings.
    """

    count: NDArray[np.float64]
    sum: NDArray[np.float64]
    sum_of_squares: NDArray[np.float64]

    @classmethod
    def from_windows(
        cls,
        groups: NDArray[np.int64],
        sums: NDArray[np.floating],
        sums_of_squares: NDArray[np.floating],
        patches: int,
        n_groups: int | None = None,
    ) -> GroupMoments:
        """Add up the moments of single windows.

        Parameters
        ----------
        groups : ndarray of int64, shape (windows,)
            Group of each window; those below 0 belong to none.
        sums, sums_of_squares : ndarray, shape (windows, width)
            Over the patches of each window.
        patches : int
            Patches in a window.
        n_groups : int, optional
            How many groups there are; as many as occur by default.

        Returns
        -------
        GroupMoments
        """
        total = n_groups if n_groups is not None else int(groups.max(initial=-1)) + 1
        count = np.zeros(total)
        added = np.zeros((2, total, sums.shape[1]))
        for group in range(total):
            rows = groups == group
            count[group] = rows.sum() * float(patches)
            added[0, group] = sums[rows].sum(axis=0, dtype=np.float64)
            added[1, group] = sums_of_squares[rows].sum(axis=0, dtype=np.float64)
        return cls(count, added[0], added[1])

    @classmethod
    def of(cls, embeddings: NDArray[np.floating], groups: NDArray[np.int64]) -> GroupMoments:
        """Compute the moments of embeddings that lie in memory.

        Parameters
        ----------
        embeddings : ndarray, shape (windows, patches, width)
        groups : ndarray of int64, shape (windows,)
            Group of each window; those below 0 belong to none.

        Returns
        -------
        GroupMoments
        """
        sums = np.stack([window.sum(axis=0, dtype=np.float64) for window in embeddings])
        squares = np.stack([np.square(window, dtype=np.float64).sum(axis=0) for window in embeddings])
        return cls.from_windows(groups, sums, squares, embeddings.shape[1])

    def standardisation(self, groups: Sequence[int]) -> Standardisation:
        """Return mean and deviation over some groups together.

        Parameters
        ----------
        groups : sequence of int
            Group numbers.

        Returns
        -------
        Standardisation

        Raises
        ------
        ProbeError
            If a group does not exist, the groups hold no patch, or their sums are not finite.
        """
        index = list(groups)
        if not index or min(index) < 0 or max(index) >= len(self.count):
            there = f"there are groups 0 to {len(self.count) - 1}"
            msg = f"train_groups {tuple(index)} name a group that has no moments; {there}"
            raise ProbeError(msg)
        count = self.count[index].sum()
        if count <= 0:
            msg = f"groups {tuple(index)} hold no patch to train on; give them windows or leave them out"
            raise ProbeError(msg)
        mean = self.sum[index].sum(axis=0) / count
        mean_square = self.sum_of_squares[index].sum(axis=0) / count
        if not (np.isfinite(mean).all() and np.isfinite(mean_square).all()):
            bad = int((~np.isfinite(mean) | ~np.isfinite(mean_square)).sum())
            advice = "verify the cache and extract its damaged blocks again"
            msg = f"{bad} features of groups {tuple(index)} are not finite; {advice}"
            raise ProbeError(msg)
        variance = mean_square - mean**2
        variance[variance <= CONSTANT_SHARE * mean_square] = 0
        return Standardisation(mean, np.sqrt(variance))
