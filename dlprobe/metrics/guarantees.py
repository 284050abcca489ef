"""Thresholds that keep a promise on authentic images, from a finite number of sources.

Both promises hold for a new source that is exchangeable with those of the calibration, on average over calibrations
(they are marginal), and only if these sources were used for nothing else, neither fitting nor selection. The unit is
the source: windows or images of one source are not independent, and pooling them breaks the promise.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlprobe.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

#: What a card says beside such a threshold.
SCOPE = "marginal, and for images like those of the calibration set"


class Guarantee(NamedTuple):
    """A threshold with a promise, to be used as ``score >= threshold``.

    Parameters
    ----------
    threshold : float
        On the score (image score or pixel score).
    alpha : float
        At most so large is the expected rate.
    kind : str
        Of what: ``image false-positive rate`` or ``false area``.
    n : int
        Sources it was calibrated on.
    calibration : float
        The rate on the calibration sources themselves.
    scope : str
        For whom it holds.
    """

    threshold: float
    alpha: float
    kind: str
    n: int
    calibration: float
    scope: str = SCOPE


def worst_by_source(values: ArrayLike, sources: Sequence[str] | NDArray[np.str_]) -> NDArray[np.float64]:
    """Return each source's maximum over its images, the one score that a source may have.

    Parameters
    ----------
    values : array_like of float, shape (images,) or (images, thresholds)
        Image scores, or false areas at several thresholds.
    sources : sequence of str, length images
        The source_id of each image.

    Returns
    -------
    ndarray of float, shape (sources,) or (sources, thresholds)
        By sorted source_id.
    """
    numbers = np.asarray(values, np.float64)
    names, index = np.unique(np.asarray(sources, dtype=str), return_inverse=True)
    if len(numbers) != index.size or np.isnan(numbers).any():
        msg = f"{len(numbers)} values and {index.size} source_ids do not fit, or are nan; pass one source_id an image"
        raise MetricError(msg)
    worst = np.full((names.size, *numbers.shape[1:]), -np.inf)
    np.maximum.at(worst, index, numbers)
    return worst


def sources_needed(alpha: float) -> int:
    """Return the fewest calibration sources with which a rate of `alpha` can be promised: 1 / alpha - 1."""
    if not 0 < alpha < 1:
        msg = f"alpha {alpha} is no rate; ask for one between 0 and 1, such as 0.05"
        raise MetricError(msg)
    return math.ceil(1 / alpha - 1 - 1e-9)


def conformal_image_threshold(scores_by_source: ArrayLike, alpha: float) -> Guarantee:
    """Return the image threshold that flags at most a share `alpha` of authentic sources.

    Parameters
    ----------
    scores_by_source : array_like of float, shape (n,)
        One authentic image score a source (`worst_by_source`).
    alpha : float
        Image false-positive rate to be kept.

    Raises
    ------
    MetricError
        If alpha is below 1 / (n + 1): no threshold from n sources can promise it. The message names the n needed.

    Notes
    -----
    Split conformal (Vovk et al. 2005; Angelopoulos and Bates 2023): the k-th smallest of n scores with
    ``k = ceil((n + 1)(1 - alpha))`` is exceeded by an exchangeable one with probability at most alpha. The threshold is
    the next float32 above it, so that ``score >= threshold`` flags only what exceeds it.
    """
    scores = np.sort(np.asarray(scores_by_source, np.float64))
    if scores.ndim != 1 or not np.isfinite(scores).all():
        msg = f"image scores have shape {scores.shape} or are not finite; pass one number a source"
        raise MetricError(msg)
    _refuse_few(scores.size, alpha)
    allowed = math.floor((scores.size + 1) * alpha + 1e-9)
    threshold = _next_above(float(scores[scores.size - allowed]))
    kept = float(np.mean(scores >= threshold))
    return Guarantee(threshold, alpha, "image false-positive rate", scores.size, kept)


def area_at(score: NDArray[np.floating], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of a map's pixels at or above each threshold.

    Parameters
    ----------
    score : ndarray of float, any shape
        Score map of an authentic image.
    thresholds : ndarray of float, shape (t,)
        Rising.

    Raises
    ------
    MetricError
        If the map is empty or not floating.
    """
    flat = np.sort(np.asarray(score).ravel())
    if flat.dtype.kind != "f" or not flat.size:
        msg = f"score map has type {flat.dtype} and {flat.size} pixels; pass floats in [0, 1]"
        raise MetricError(msg)
    below = np.searchsorted(flat, thresholds.astype(flat.dtype), side="left")
    shares: NDArray[np.float64] = 1.0 - below / flat.size
    return shares


def risk_controlled_threshold(areas_by_source: ArrayLike, thresholds: ArrayLike, alpha: float) -> Guarantee:
    """Return the least pixel threshold whose expected false area on an authentic source is at most `alpha`.

    Parameters
    ----------
    areas_by_source : array_like of float, shape (n, t)
        Each source's false area at each threshold (`area_at`, then `worst_by_source`); falling in t, within [0, 1].
    thresholds : array_like of float, shape (t,)
        Rising, chosen before looking at the areas.
    alpha : float
        False area to be kept, as a share of the image.

    Raises
    ------
    MetricError
        If alpha is below 1 / (n + 1), if areas do not fall with the threshold, or if even the highest threshold marks
        too much.

    Notes
    -----
    Conformal risk control (Angelopoulos et al. 2024, eq. 4) with losses of at most 1: the least threshold with
    ``(sum of areas + 1) / (n + 1) <= alpha``.
    """
    areas, levels = np.asarray(areas_by_source, np.float64), np.asarray(thresholds, np.float64)
    _check_areas(areas, levels)
    n = len(areas)
    _refuse_few(n, alpha)
    risk = (areas.sum(axis=0) + 1) / (n + 1)
    good = np.flatnonzero(risk <= alpha + 1e-12)
    if not good.size:
        msg = (
            f"at the highest threshold, {levels[-1]:g}, the false area may still be {risk[-1]:.3g} and not {alpha:g};"
            " pass higher thresholds, up to one that marks nothing"
        )
        raise MetricError(msg)
    at = int(good[0])
    return Guarantee(float(levels[at]), alpha, "false area", n, float(areas[:, at].mean()))


def _refuse_few(n: int, alpha: float) -> None:
    needed = sources_needed(alpha)
    if n < needed:
        msg = (
            f"alpha {alpha:g} cannot be promised from {n} authentic sources: {needed} are needed;"
            " calibrate on more sources or ask for a larger alpha"
        )
        raise MetricError(msg)


def _check_areas(areas: NDArray[np.float64], levels: NDArray[np.float64]) -> None:
    if areas.ndim != 2 or levels.ndim != 1 or areas.shape[1] != levels.size or not levels.size:
        msg = f"areas {areas.shape} and thresholds {levels.shape} do not fit; pass one column of areas a threshold"
        raise MetricError(msg)
    if not (np.diff(levels) > 0).all():
        msg = "thresholds do not rise; sort them and drop doubles"
        raise MetricError(msg)
    if not ((areas >= 0) & (areas <= 1)).all() or (np.diff(areas, axis=1) > 0).any():
        msg = "areas are not within [0, 1] or grow with the threshold; pass shares of pixels at or above each threshold"
        raise MetricError(msg)


def _next_above(value: float) -> float:
    """Return the least float32 above a number, which a float32 score cannot equal by rounding."""
    near = np.float32(value)
    return float(near if float(near) > value else np.nextafter(near, np.float32(np.inf)))
