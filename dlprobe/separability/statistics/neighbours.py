"""What the distances in a sample say: intrinsic dimension, silhouette, purity of neighbourhoods.

All take a matrix of distances. `allowed` says which pairs count: patches of one photograph are no independent
neighbours, and a patch that is untouched in several variants of a photograph has itself as its nearest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Share of the largest ratios that TwoNN leaves out, as its authors do.
TWO_NN_DISCARDED = 0.1


def distances(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Euclidean distance of every two rows, shape (n, n)."""
    from scipy.spatial.distance import pdist, squareform

    found: NDArray[np.float64] = squareform(pdist(rows))
    return found


def allowed_pairs(sources: NDArray[np.int64], *, other_sources: bool) -> NDArray[np.bool_]:
    """Return which pairs count: all but a patch with itself, or only those of different sources."""
    if other_sources:
        return np.asarray(sources[:, None] != sources[None, :])
    return ~np.eye(len(sources), dtype=bool)


def two_nn(matrix: NDArray[np.float64], allowed: NDArray[np.bool_]) -> float:
    """Return the intrinsic dimension by the distances of the two nearest neighbours (Facco et al. 2017).

    Parameters
    ----------
    matrix : ndarray of float64, shape (n, n)
        Distances.
    allowed : ndarray of bool, shape (n, n)

    Returns
    -------
    float
        The slope through the origin of ``-log(1 - F)`` against ``log(r2 / r1)``, without the largest tenth of the
        ratios. A patch whose nearest neighbour is identical is left out; nan if fewer than 10 remain.
    """
    if len(matrix) < 3:
        return float("nan")
    nearest = np.partition(np.where(allowed, matrix, np.inf), 1, axis=1)[:, :2]
    usable = (nearest[:, 0] > 0) & np.isfinite(nearest[:, 1])
    logs = np.sort(np.log(nearest[usable, 1] / nearest[usable, 0]))
    n = len(logs)
    kept = int(n * (1 - TWO_NN_DISCARDED))
    if n < 10 or not logs[kept - 1] > 0:
        return float("nan")
    x, y = logs[:kept], -np.log(1 - np.arange(kept) / n)
    return float(x @ y / (x @ x))


def silhouette(matrix: NDArray[np.float64], classes: NDArray[np.int64], allowed: NDArray[np.bool_]) -> float:
    """Return the mean silhouette of the patches (Rousseeuw 1987): from -1 (in the wrong class) to 1 (far apart).

    Parameters
    ----------
    matrix : ndarray of float64, shape (n, n)
        Distances.
    classes : ndarray of int64, shape (n,)
    allowed : ndarray of bool, shape (n, n)

    Returns
    -------
    float
        As ``sklearn.metrics.silhouette_score`` where all pairs are allowed; nan with fewer than two classes. Patches
        without an allowed partner in a class are left out, but a class of one patch counts as 0, as there.
    """
    kinds = np.unique(classes)
    if len(kinds) < 2:
        return float("nan")
    members = (classes[:, None] == kinds).astype(np.float64)
    sums, counts = (matrix * allowed) @ members, allowed.astype(np.float64) @ members
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    own = members > 0
    inside = means[own]
    # a class that has no allowed pair with a patch cannot be its nearest
    outside = np.where(own | np.isnan(means), np.inf, means).min(axis=1)
    alone = members.sum(axis=0)[own.argmax(axis=1)] == 1
    known = (np.isfinite(inside) & np.isfinite(outside)) | alone
    larger = np.maximum(inside, outside)
    values = np.divide(outside - inside, larger, out=np.zeros_like(inside), where=known & (larger > 0))
    return float(values[known].mean()) if known.any() else float("nan")


def knn_purity(
    matrix: NDArray[np.float64], classes: NDArray[np.int64], allowed: NDArray[np.bool_], neighbours: int = 10
) -> float:
    """Return the share of a patch's nearest neighbours that are of its class, the mean over classes.

    Parameters
    ----------
    matrix : ndarray of float64, shape (n, n)
        Distances.
    classes : ndarray of int64, shape (n,)
    allowed : ndarray of bool, shape (n, n)
    neighbours : int
        How many are looked at; a patch that is allowed fewer is left out.

    Returns
    -------
    float
        Between 0 and 1; one over the number of classes is chance where all have as many patches. nan with fewer than
        two classes.
    """
    kinds = np.unique(classes)
    if len(kinds) < 2 or len(matrix) <= neighbours:
        return float("nan")
    barred = np.where(allowed, matrix, np.inf)
    nearest = np.argpartition(barred, neighbours - 1, axis=1)[:, :neighbours]
    known = allowed.sum(axis=1) >= neighbours
    same = (classes[nearest] == classes[:, None]).mean(axis=1)
    shares = [same[known & (classes == kind)] for kind in kinds]
    return float(np.mean([share.mean() if share.size else np.nan for share in shares]))
