"""How sure a statistic is that is no mean over sources: intervals from its values in parts of the sources.

An interval is about the value to be expected of as many sources: ``t`` quantiles times a standard error, on a scale on
which the statistic spreads alike everywhere (the logit of its range, the logarithm of what is only positive).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import t

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

#: Splits of the groups of sources into halves.
SPLITS = 24
#: So close to an end of its range, as a share of it, a statistic has no finite logit or logarithm worth using.
_AT_AN_END = 1e-6


class Ends(NamedTuple):
    """Of an interval; arrays where several statistics were given."""

    low: Numbers
    high: Numbers


def halves(groups: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Return random splits of groups into two halves without a group in common."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(groups).tolist() for _ in range(SPLITS)]
    return [(order[: groups // 2], order[groups // 2 :]) for order in orders]


def jackknife_error(without: Numbers) -> Numbers:
    """Return the standard error of statistics from their values without each group, the last axis.

    On average it is not too small, whatever the statistic (Efron and Stein 1981).
    """
    n = without.shape[-1]
    return np.asarray(np.sqrt((n - 1) * without.var(axis=-1)))


def halves_error(pairs: Numbers) -> Numbers:
    """Return the standard error of statistics from their values in two halves of the groups, shape (..., splits, 2).

    Halves share no source, so that the variance of their difference is known to be four times that of the whole. The
    jackknife counts twice what a patch does as the neighbour of others; for what rests on neighbours it is too large.
    """
    return np.asarray(np.sqrt(np.mean((pairs[..., 0] - pairs[..., 1]) ** 2, axis=-1)) / 2)


def error_of(parts: Numbers) -> Numbers:
    """Return the standard error by `halves_error` of a table of splits, by `jackknife_error` of a row of groups."""
    return halves_error(parts) if parts.ndim > 1 else jackknife_error(parts)


def interval(
    value: float, parts: Numbers, groups: int, bounds: tuple[float, float] = (-np.inf, np.inf), level: float = 0.95
) -> Ends:
    """Return the interval of a statistic; it holds its value.

    Parameters
    ----------
    value : float
        With all groups of sources.
    parts : ndarray, shape (groups,) or (splits, 2)
        Without each group, or in two halves.
    groups : int
        How many there are.
    bounds : (float, float)
        Least and greatest value that is possible.
    level : float
        Nominal coverage.

    Notes
    -----
    Where nothing differs at an end of a finite range (every patch told right), the width is that of a share of which
    no exception was seen in as many groups, as in `dlprobe.metrics.bootstrap_mean`.
    """
    there, back = _scale(np.append(parts, value), bounds)
    reach = float(t.ppf((1 + level) / 2, groups - 1) * error_of(there(parts)))
    middle = there(np.asarray(value))
    low, high = np.maximum(back(middle - reach), bounds[0]), np.minimum(back(middle + reach), bounds[1])
    if reach == 0 and np.isfinite(bounds).all():
        unseen = 1 - ((1 - level) / 2) ** (1 / groups)
        low, high = low - unseen * (value - bounds[0]), high + unseen * (bounds[1] - value)
    return Ends(low, high)


def _scale(values: Numbers, bounds: tuple[float, float]) -> tuple[Callable[..., Numbers], Callable[..., Numbers]]:
    """Return a function onto a scale without ends, and its inverse; the identity where a value lies at an end."""
    low, high = bounds
    margin = _AT_AN_END * (high - low if np.isfinite(high - low) else 1.0)
    if not np.isfinite(low) or values.min() <= low + (margin if np.isfinite(high) else 0):
        return np.positive, np.positive
    if not np.isfinite(high):
        return (lambda x: np.log(x - low)), (lambda y: low + np.exp(y))
    if values.max() >= high - margin:
        return np.positive, np.positive
    return (lambda x: np.log((x - low) / (high - x))), (lambda y: low + (high - low) / (1 + np.exp(-y)))


def jackknife_bias(value: float, without: Numbers) -> float:
    """Return by how much a statistic is too large because there are no more sources, to first order (Quenouille)."""
    return float((len(without) - 1) * (without.mean() - value))
