"""Where linear probes look: the direction of each labelling scheme, and how far two of them are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlprobe.data.labels import CLASSES
from dlprobe.probes.exact import ClassMoments, ridge_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dlprobe.data import LabelScheme
    from dlprobe.separability.states import MomentsState


class Direction(NamedTuple):
    """Where a linear probe looks.

    Parameters
    ----------
    name : str
    weights : ndarray of float64, shape (width,)
        On raw embeddings.
    """

    name: str
    weights: NDArray[np.float64]


def ridge_direction(
    state: MomentsState, name: str, scheme: LabelScheme, groups: Sequence[int], shrinkage: float
) -> Direction | None:
    """Return the direction of a ridge classifier for a labelling scheme.

    Parameters
    ----------
    state : MomentsState
    name : str
        Of the scheme.
    scheme : LabelScheme
        Whole classes are positive or negative here: a patch is what its class is.
    groups : sequence of int
        Groups of sources to fit on.
    shrinkage : float
        The penalty on scaled features, for each patch.

    Returns
    -------
    Direction or None
        None if the scheme's positive or negative patches are missing.
    """
    sides = [[k for k, kind in enumerate(CLASSES) if kind in side] for side in (scheme.negative, scheme.positive)]
    count, total = np.zeros(2), np.zeros((2, len(state.origin)))
    gram = np.zeros((len(state.origin), len(state.origin)))
    for label, kinds in enumerate(sides):
        for kind in kinds:
            n, added, outer = state.sums(kind, groups)
            count[label] += n
            total[label] += added
            gram += outer
    if not count.all():
        return None
    moments = ClassMoments(count, total, gram, state.origin)
    (fit,) = ridge_path(moments, [shrinkage * float(count.sum())])
    return Direction(name, fit.weights)


def total_covariance(state: MomentsState, groups: Sequence[int]) -> NDArray[np.float64]:
    """Return the covariance of all patches that have a class, each patch weighing the same."""
    parts = [state.sums(kind, groups) for kind in range(len(CLASSES))]
    count = sum(n for n, _, _ in parts)
    mean = sum(total for _, total, _ in parts) / count
    return np.asarray(sum(gram for _, _, gram in parts) / count - np.outer(mean, mean))


def angle_deg(one: Direction, other: Direction, covariance: NDArray[np.float64]) -> float:
    """Return the angle of two directions on features scaled to unit variance, in degrees from 0 to 180."""
    scale = np.sqrt(np.maximum(np.diag(covariance), 0))
    u, v = one.weights * scale, other.weights * scale
    lengths = np.linalg.norm(u), np.linalg.norm(v)
    if not all(lengths):
        return float("nan")
    u, v = u / lengths[0], v / lengths[1]
    # exact near 0 and 180 degrees too, where the arccosine is not
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))))


def logit_correlation(one: Direction, other: Direction, covariance: NDArray[np.float64]) -> float:
    """Return the correlation of two probes' logits over all patches: what the angle means for scores."""
    u, v = one.weights, other.weights
    variances = (u @ covariance @ u) * (v @ covariance @ v)
    return float(u @ covariance @ v / np.sqrt(variances)) if variances > 0 else float("nan")
