"""How alike two representations of the same patches are: linear CKA, streamed, on a common grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dlprobe.errors import MetricError
from dlprobe.separability.states import require_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class KernelState:
    """Sums from which the linear CKA of two representations of the same patches follows, by group of sources.

    Memory is ``groups x (left + right)^2`` numbers, whatever the number of patches.

    Parameters
    ----------
    origins : pair of ndarray of float64, shapes (left,) and (right,)
        Points near the means, which are subtracted first.
    groups : int
        Groups of sources that can be left out.
    """

    def __init__(self, origins: tuple[NDArray[np.floating], NDArray[np.floating]], groups: int) -> None:
        self._left = len(origins[0])
        self._origin = np.concatenate(origins).astype(np.float64)
        width = len(self._origin)
        self._count = np.zeros(groups)
        self._sum = np.zeros((groups, width))
        self._gram = np.zeros((groups, width, width))

    def update(self, left: NDArray[np.floating], right: NDArray[np.floating], groups: NDArray[np.int64]) -> KernelState:
        """Add patches.

        Parameters
        ----------
        left, right : ndarray of float, shapes (n, left) and (n, right)
            Embeddings of the same patches.
        groups : ndarray of int64, shape (n,)
            Group of the source of each.

        Returns
        -------
        KernelState
            Itself.

        Raises
        ------
        MetricError
            If the shapes do not fit, or an embedding is not finite.
        """
        if left.shape[1] + right.shape[1] != len(self._origin) or len(left) != len(right):
            msg = f"embeddings of shapes {left.shape} and {right.shape} do not fit together or to what came before"
            raise MetricError(msg)
        both = np.concatenate([left, right], axis=1, dtype=np.float64) - self._origin
        require_finite(both)
        for group in np.unique(groups).tolist():
            rows = both[groups == group]
            self._count[group] += len(rows)
            self._sum[group] += rows.sum(axis=0)
            self._gram[group] += rows.T @ rows
        return self

    def merge(self, other: KernelState) -> KernelState:
        """Add what another state of the same origins and groups has seen; return itself."""
        if len(self._count) != len(other._count) or not np.array_equal(self._origin, other._origin):
            msg = "kernels of other origins or another number of groups cannot be merged; begin both states alike"
            raise MetricError(msg)
        self._count += other._count
        self._sum += other._sum
        self._gram += other._gram
        return self

    def count(self, groups: Sequence[int]) -> int:
        """Return the patches in some groups."""
        return int(self._count[list(groups)].sum())

    def cka(self, groups: Sequence[int]) -> float:
        """Return the linear CKA in some groups (Kornblith et al. 2019, eq. 3, features centred).

        Returns
        -------
        float
            ``|X'Y|^2 / (|X'X| |Y'Y|)`` in Frobenius norms: 1 for a rotated and scaled copy. nan where a representation
            does not vary.
        """
        chosen = list(groups)
        count, total = self._count[chosen].sum(), self._sum[chosen].sum(axis=0)
        if not count:
            return float("nan")
        scatter = self._gram[chosen].sum(axis=0) - np.outer(total, total) / count
        left, right = slice(self._left), slice(self._left, None)
        own = np.linalg.norm(scatter[left, left]) * np.linalg.norm(scatter[right, right])
        return float(np.linalg.norm(scatter[left, right]) ** 2 / own) if own > 0 else float("nan")


def on_common_grid(values: NDArray[np.generic], cells: int) -> NDArray[np.float64]:
    """Return the values of a coarser grid over the same windows: means of patches, weighted by common area.

    Parameters
    ----------
    values : ndarray, shape (n, side, side, width)
        Embeddings or coverage.
    cells : int
        Along a side of the coarser grid; at most ``side``.

    Returns
    -------
    ndarray of float64, shape (n, cells, cells, width)
    """
    numbers = values.astype(np.float64)
    if values.shape[1] == cells:
        return numbers
    weights = overlap(cells, values.shape[1])
    half = np.tensordot(weights, numbers, axes=(1, 1))
    return np.moveaxis(np.tensordot(weights, half, axes=(1, 2)), (0, 1, 2), (2, 1, 0))


def overlap(cells: int, patches: int) -> NDArray[np.float64]:
    """Return which share of each cell each patch covers, along one side, shape (cells, patches); rows add to 1."""
    starts = np.arange(cells)[:, None] * patches
    # in units of 1/(cells * patches) of the side: a cell is `patches` long, a patch `cells`
    at = np.arange(patches)[None, :] * cells
    common = np.minimum(starts + patches, at + cells) - np.maximum(starts, at)
    return np.asarray(np.maximum(common, 0) / patches)
