"""How sure a statistic is that is no mean over sources: intervals from its values in parts of the sources.

An interval is about the value to be expected of as many sources: ``t`` quantiles times a standard error, on a scale on
which the statistic spreads alike everywhere (the logit of its range, the logarithm of what is only positive).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import chi2, norm, qmc, t

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Split = tuple[tuple[int, ...], tuple[int, ...]]

#: Splits of the groups of sources into halves, and random ones of which each is the best.
SPLITS, _CANDIDATES = 24, 32
#: So close to an end of its range, as a share of it, a statistic has no finite logit or logarithm worth using.
_AT_AN_END = 1e-6
#: Points of a Sobol sequence by which a difference is distributed; more than any statistic is.
_DRAWS, _HUGE = 8192, 1e300


class Ends(NamedTuple):
    """Of an interval; arrays where several statistics were given."""

    low: Numbers
    high: Numbers


@cache
def halves(groups: int, seed: int) -> tuple[Split, ...]:
    """Return splits of groups into two halves without a group in common, each as unlike the others as was found.

    With random ones, `halves_error` over 8 groups had 5 degrees of freedom instead of 7; with those that are chosen it
    has 6.9. Where they share nothing (McCarthy 1969, balanced half-samples) it has as many as the usual variance.
    """
    rng = np.random.default_rng(seed)
    found: list[Split] = []
    for _ in range(SPLITS):
        orders = [tuple(rng.permutation(groups).tolist()) for _ in range(_CANDIDATES)]
        splits = [(order[: groups // 2], order[groups // 2 :]) for order in orders]
        alike = _contrasts(splits) @ _contrasts(found).T if found else np.zeros((_CANDIDATES, 1))
        found.append(splits[int(np.argmin((alike**2).sum(axis=1)))])
    return tuple(found)


def _contrasts(splits: Sequence[Split]) -> Numbers:
    """Return by what each group's value counts in the difference of the means of two halves, shape (splits, groups)."""
    weights = np.zeros((len(splits), sum(map(len, splits[0]))))
    for row, (one, other) in zip(weights, splits, strict=True):
        row[list(one)], row[list(other)] = 1 / len(one), -1 / len(other)
    return weights


def halves_freedom(splits: Sequence[Split]) -> float:
    """Return the degrees of freedom of `halves_error` over some splits: those of a mean's (Satterthwaite 1946)."""
    shared = _contrasts(splits) @ _contrasts(splits).T
    return float(np.trace(shared) ** 2 / (shared**2).sum())


def jackknife_error(without: Numbers) -> Numbers:
    """Return the standard error of statistics from their values without each group, the last axis.

    On average it is not too small, whatever the statistic (Efron and Stein 1981).
    """
    n = without.shape[-1]
    return np.asarray(np.sqrt((n - 1) * (without - without[..., :1]).var(axis=-1)))  # exactly 0 where all are alike


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
    value: float,
    parts: Numbers,
    groups: int,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    *,
    freedom: float | None = None,
    level: float = 0.95,
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
    freedom : float, optional
        Degrees of freedom of the standard error, see `halves_freedom`; ``groups - 1`` otherwise.
    level : float
        Nominal coverage.

    Notes
    -----
    Where nothing differs at an end of a finite range (every patch told right), the width is that of a share of which
    no exception was seen in as many groups, as in `dlprobe.metrics.bootstrap_mean`.
    """
    there, back = _scale(np.append(parts, value), bounds)
    reach = float(t.ppf((1 + level) / 2, freedom or groups - 1) * error_of(there(parts)))
    middle = there(np.asarray(value))
    low, high = np.maximum(back(middle - reach), bounds[0]), np.minimum(back(middle + reach), bounds[1])
    if reach == 0 and np.isfinite(bounds).all():
        unseen = 1 - ((1 - level) / 2) ** (1 / groups)
        low, high = low - unseen * (value - bounds[0]), high + unseen * (bounds[1] - value)
    return Ends(low, high)


def difference_interval(
    values: Numbers,
    parts: Numbers,
    groups: int,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    *,
    freedom: float | None = None,
    level: float = 0.95,
) -> Ends:
    """Return the interval of the second statistic minus the first, measured in the same parts; it holds its value.

    Parameters
    ----------
    values : ndarray, shape (2,)
        With all groups of sources.
    parts : ndarray, shape (2, groups) or (2, splits, 2)
        Without each group, or in two halves.
    groups, bounds, freedom, level
        As of `interval`; the bounds are those of each of the two.

    Notes
    -----
    On the scale of `interval` both are jointly ``t`` distributed, with the covariance that the parts show; the ends are
    quantiles of the difference of what they are there (propagation of distributions, JCGM 101 and 102), from
    points of a Sobol sequence. So it knows what both sides have in common and is as skewed as they are: the
    ``t`` interval of differences covered 91 % where one side is many times the other.
    """
    middle, reach = values[1] - values[0], bounds[1] - bounds[0]
    if np.isfinite(reach) and error_of(parts[1] - parts[0]) <= _AT_AN_END * reach:
        # the difference is the same in all parts, which does not say all: that no exception was seen
        return interval(middle, np.full(groups, middle), groups, (-reach, reach))
    there, back = _scale(np.append(parts, values), bounds)
    spread = there(parts)
    if spread.ndim > 2:
        spread = (spread[..., 0] - spread[..., 1]) / (2 * np.sqrt(spread.shape[1]))
    else:
        spread = (spread - spread.mean(axis=1, keepdims=True)) * np.sqrt((groups - 1) / groups)
    sizes, axes = np.linalg.eigh(spread @ spread.T)
    with np.errstate(over="ignore"):
        drawn = back(there(values)[:, None] + (axes * np.sqrt(np.maximum(sizes, 0))) @ _student(freedom or groups - 1))
    one, other = np.clip(drawn, np.maximum(bounds[0], -_HUGE), np.minimum(bounds[1], _HUGE))
    low, high = np.quantile(other - one, [(1 - level) / 2, (1 + level) / 2])
    return Ends(np.minimum(low, middle), np.maximum(high, middle))


@cache
def _student(freedom: float) -> Numbers:
    """Return evenly drawn points of two uncorrelated ``t`` distributed numbers with one denominator, in two rows."""
    sequence = qmc.Sobol(3, scramble=False)
    uniform = sequence.fast_forward(1).random(_DRAWS - 1).T  # the first point is 0
    return np.asarray(norm.ppf(uniform[:2]) / np.sqrt(chi2.ppf(uniform[2], freedom) / freedom))


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
