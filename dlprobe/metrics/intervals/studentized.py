"""Intervals and paired tests over sources: how sure a mean score is, and whether two scores differ.

The unit is the source (a photograph with all its variants), because images of one source are not independent.
Everything here takes one value a source (`source_means` makes them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from dlprobe.errors import MetricError
from dlprobe.metrics.intervals.draws import coins, draws

if TYPE_CHECKING:
    from collections.abc import ItemsView, Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    class BySource(Protocol):
        """A mapping or pandas Series from source_id to value."""

        def items(self) -> ItemsView[str, float]:
            """Return pairs of source_id and value."""


#: With fewer sources no interval is given: its ends would say more about chance than about the score.
MIN_SOURCES = 8
#: Up to here all sign patterns are tried.
EXACT_SOURCES = 16
#: Rows are worked through in chunks of about this many numbers, to bound memory.
_CHUNK_NUMBERS = 4_000_000


class Interval(NamedTuple):
    """A mean over sources and how far it can be trusted.

    Parameters
    ----------
    estimate : float
        Mean over the sources; nan if there is none.
    low, high : float
        Ends of the interval; nan below `MIN_SOURCES` sources.
    n : int
        Sources that had a value.
    level : float
        Nominal coverage.
    dropped : int
        Sources whose value was nan.
    """

    estimate: float
    low: float
    high: float
    n: int
    level: float
    dropped: int = 0


class PairedDifference(NamedTuple):
    """How much the second of two scores is above the first on the same sources.

    Parameters
    ----------
    estimate : float
        Mean of b - a over sources that have both.
    low, high : float
        Ends of the interval of the mean difference; nan below `MIN_SOURCES` sources.
    p : float
        Two-sided sign-flip probability of a difference as large if none were there; nan without sources.
    n : int
        Sources that had both values.
    dropped : int
        Sources without a partner, or with nan on a side.
    """

    estimate: float
    low: float
    high: float
    p: float
    n: int
    dropped: int = 0


def source_means(values: ArrayLike, sources: Sequence[str] | NDArray[np.str_]) -> dict[str, float]:
    """Reduce values of images to one value a source: the mean of those that are not nan, else nan.

    Parameters
    ----------
    values : array_like of float, shape (n,)
        One value an image.
    sources : sequence of str, length n
        The source_id of each.
    """
    names, index = np.unique(np.asarray(sources, dtype=str), return_inverse=True)
    return dict(zip(names.tolist(), means_of(values, index, names.size).tolist(), strict=True))


def means_of(values: ArrayLike, index: NDArray[np.intp], size: int) -> NDArray[np.float64]:
    """Return `source_means` of sources that have numbers below `size` for names, shape (size,)."""
    numbers = np.asarray(values, np.float64)
    if numbers.shape != index.shape:
        msg = f"{numbers.size} values and {index.size} source_ids do not belong together; pass one source_id a value"
        raise MetricError(msg)
    there = ~np.isnan(numbers)
    sums = np.bincount(index[there], numbers[there], minlength=size)
    counts = np.bincount(index[there], minlength=size)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(size, np.nan), where=counts > 0)
    return means


def bootstrap_mean(
    values_by_source: ArrayLike | BySource,
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Return the mean over sources with its studentized bootstrap interval.

    Parameters
    ----------
    values_by_source : array_like of float, or mapping
        One value a source; nan is dropped and counted.
    level : float
        Nominal coverage.
    resamples : int
        Bootstrap samples.
    seed : int
        Of the resampling.
    bounds : (float, float), optional
        Least and greatest value that is possible, such as (0, 1): the interval is cut to it.

    Notes
    -----
    Bootstrap-t (Efron 1982; Hall 1988, "Theoretical comparison of bootstrap confidence intervals"): sources are drawn
    with replacement, ``t* = (mean* - mean) / se*``, and the interval is ``mean - t*_(1-a/2) se .. mean - t*_(a/2) se``.
    A resample's variance is floored at 1/n of the sample's: only ties go below, and an undefined t* helps nobody.
    In simulation (4,000 data sets each) it covers 93.6 to 96.9 % at 10, 20 and 50 sources for normal, exponential,
    lognormal (sigma 0.5) and Beta(0.5, 2) noise, and up to 98.5 % when four values in ten are exactly 0. A skewness
    beyond that of a score in [0, 1] stays invisible in few sources: for lognormal noise with sigma 1 (skewness 6) it
    covers only 91 % at 10, 92 % at 20 and 93 % at 50.

    If all values are equal the interval has no width, since nothing in the data says how wide it should be. With
    `bounds` it has: a value that differs can have had a probability of up to ``1 - (a/2)^(1/n)`` and still not have
    shown up (for 0 of n that is the Clopper-Pearson limit).
    """
    values = as_numbers(values_by_source)
    [interval] = bootstrap_means(values[None], level=level, resamples=resamples, seed=seed, bounds=bounds)
    return interval


def bootstrap_means(
    values: NDArray[np.float64],
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> list[Interval]:
    """Return `bootstrap_mean` of many rows at once, in much less time.

    Parameters
    ----------
    values : ndarray, shape (rows, sources)
        One value a source in each row; nan where a row has none.
    level, resamples, seed, bounds
        As in `bootstrap_mean`.

    Returns
    -------
    list of Interval
        One a row.

    Raises
    ------
    MetricError
        If a value is infinite.

    Notes
    -----
    What is drawn depends on how many sources a row has, not on which, so that rows of as many share their resamples.
    """
    if np.isinf(values).any():
        msg = "values by source are infinite; pass one finite number (or nan) a source"
        raise MetricError(msg)
    there = ~np.isnan(values)
    counts = there.sum(axis=1)
    ends = np.full((3, len(values)), np.nan)
    for n in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == n)
        kept = values[rows][there[rows]].reshape(rows.size, n)
        low, high = studentized_intervals(kept, level=level, resamples=resamples, seed=seed, bounds=bounds)
        ends[:, rows] = kept.mean(axis=1), low, high
    return [
        Interval(estimate, low, high, n, level, values.shape[1] - n)
        for (estimate, low, high), n in zip(ends.T.tolist(), counts.tolist(), strict=True)
    ]


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Return a ratio of sums over sources with its studentized bootstrap interval.

    A micro IoU is the ratio of the sources' summed intersections and unions; a mean over images is the ratio of the
    sources' summed values and image counts.

    Parameters
    ----------
    numerators, denominators : array_like of float, shape (sources,)
        Sums of each source. Sources whose denominator is 0 have nothing to say: they are dropped and counted.
    level, resamples, seed, bounds
        As in `bootstrap_mean`.

    Notes
    -----
    As `bootstrap_mean`, with the linearised error of a ratio (Cochran 1977, section 6.3), in the sample and in every
    resample. In simulation it covers 93 to 96 % at 10, 20 and 50 sources whose sizes vary by a factor of ten, where
    jackknife values cover 86 % at 10.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if above.ndim != 1 or above.shape != below.shape or not np.isfinite([above, below]).all() or (below < 0).any():
        msg = f"numerators {above.shape} and denominators {below.shape} make no ratio; pass two finite columns"
        raise MetricError(msg)
    kept = below > 0
    n, dropped = int(kept.sum()), int((~kept).sum())
    if not n:
        return Interval(float("nan"), float("nan"), float("nan"), 0, level, dropped)
    above, below = above[kept], below[kept]
    low, high = studentized_intervals(
        above[None], below[None], level=level, resamples=resamples, seed=seed, bounds=bounds
    )
    return Interval(float(above.sum() / below.sum()), float(low[0]), float(high[0]), n, level, dropped)


def studentized_intervals(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the interval ends of `ratio_interval` for many rows at once, on the same resamples of sources.

    Parameters
    ----------
    numerators : ndarray, shape (rows, sources)
        One row a head, metric or simulated data set; no nan.
    denominators : ndarray, shape (rows, sources), optional
        Positive; ones if not given, which makes the ratio a mean over sources.
    level, resamples, seed, bounds
        As in `bootstrap_mean`.

    Returns
    -------
    low, high : ndarray, shape (rows,)
        nan below `MIN_SOURCES` sources.
    """
    rows, n = numerators.shape
    _check_level(level, resamples)
    if n < MIN_SOURCES:
        return np.full(rows, np.nan), np.full(rows, np.nan)
    weights = None if denominators is None else np.asarray(denominators, np.float64)
    ratio = numerators.mean(axis=1) if weights is None else numerators.sum(axis=1) / weights.sum(axis=1)
    chunk = max(1, _CHUNK_NUMBERS // resamples)
    ends = []
    for part in (slice(at, at + chunk) for at in range(0, rows, chunk)):
        own = None if weights is None else weights[part]
        ends.append(_ends(numerators[part], own, ratio[part], draws(n, resamples, seed), 1 - level))
    low, high = np.concatenate(ends, axis=1) if ends else np.empty((2, 0))
    equal = np.ptp(numerators if weights is None else numerators / weights, axis=1) == 0
    low, high = np.where(equal, ratio, low), np.where(equal, ratio, high)
    if bounds is None:
        return low, high
    unseen = np.where(equal, 1 - ((1 - level) / 2) ** (1 / n), 0.0)
    low, high = low - unseen * (ratio - bounds[0]), high + unseen * (bounds[1] - ratio)
    return np.maximum(low, bounds[0]), np.minimum(high, bounds[1])


def paired_difference(
    a: ArrayLike | BySource,
    b: ArrayLike | BySource,
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> PairedDifference:
    """Compare two scores source by source: mean of b - a, its interval, and the sign-flip test.

    Parameters
    ----------
    a, b : array_like of float, or mapping
        One value a source: arrays in the same order of sources, or mappings from source_id, of which the common ones
        are compared. Pairs with a nan are dropped and counted.
    level, resamples, seed, bounds
        As in `bootstrap_mean`; `bounds` are those of the difference, such as (-1, 1).

    Raises
    ------
    MetricError
        If arrays differ in length, or an array meets a mapping.
    """
    differences = as_numbers(_differences(a, b))
    [found] = paired_differences(differences[None], level=level, resamples=resamples, seed=seed, bounds=bounds)
    return found


def paired_differences(
    differences: NDArray[np.float64],
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> list[PairedDifference]:
    """Return `paired_difference` of many pairs of scores at once, in much less time.

    Parameters
    ----------
    differences : ndarray, shape (rows, sources)
        The second score minus the first, of each pair in a row; nan where a source lacks one.
    level, resamples, seed, bounds
        As in `paired_difference`.

    Returns
    -------
    list of PairedDifference
        One a row.
    """
    intervals = bootstrap_means(differences, level=level, resamples=resamples, seed=seed, bounds=bounds)
    p = np.full(len(differences), np.nan)
    for row in sorted(range(len(differences)), key=lambda at: intervals[at].n):  # those of as many share their coins
        known = differences[row][~np.isnan(differences[row])]
        p[row] = sign_flip_p(known, resamples=resamples, seed=seed)
    return [
        PairedDifference(found.estimate, found.low, found.high, float(p[row]), found.n, found.dropped)
        for row, found in enumerate(intervals)
    ]


def sign_flip_p(differences: ArrayLike, *, resamples: int = 9999, seed: int = 0) -> float:
    """Return the two-sided probability of a mean difference as far from 0 if each sign were a coin's.

    Parameters
    ----------
    differences : array_like of float, shape (n,)
        One a source; no nan.
    resamples, seed : int
        Of the random sign patterns above `EXACT_SOURCES` sources; up to there all 2^n patterns are tried.

    Notes
    -----
    The observed pattern counts as one of the random ones: (1 + hits) / (1 + resamples), never 0 (Phipson and Smyth
    2010). Without sources the result is nan; if all differences are 0 it is 1.
    """
    d = np.asarray(differences, np.float64)
    if not d.size:
        return float("nan")
    observed = abs(d.sum()) - 1e-12 * np.abs(d).sum()
    if d.size <= EXACT_SOURCES:
        sums = np.zeros(1)
        for value in d:
            sums = np.concatenate((sums + value, sums - value))
        return float(np.mean(np.abs(sums) >= observed))
    hits = sum(np.count_nonzero(np.abs(signs @ d) >= observed) for signs in coins(d.size, resamples, seed))
    return float((1 + hits) / (1 + resamples))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values for being read side by side (Holm 1979): reject where the adjusted one is below the level.

    Parameters
    ----------
    p_values : array_like of float, shape (n,)
        nan stands for a comparison that could not be made: it stays nan and does not count.
    """
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, np.nan)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    scaled = p[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted


def _ends(
    numerators: NDArray[np.float64],
    weights: NDArray[np.float64] | None,
    ratio: NDArray[np.float64],
    blocks: Iterable[NDArray[np.float64]],
    alpha: float,
) -> NDArray[np.float64]:
    """Return the ends of the interval of each row, shape (2, rows)."""
    # Relative to the sample's ratio, so that sums of squares do not cancel.
    residuals = numerators - ratio[:, None] * (1.0 if weights is None else weights)
    t = np.concatenate([_studentized(residuals, weights, drawn) for drawn in blocks])
    at = max(round((len(t) + 1) * alpha / 2) - 1, 0)
    t.partition((at, len(t) - 1 - at), axis=0)
    n = numerators.shape[1]
    error = np.sqrt((residuals**2).sum(axis=1) * n / (n - 1)) / (n if weights is None else weights.sum(axis=1))
    return np.stack((ratio - t[len(t) - 1 - at] * error, ratio - t[at] * error))


def _studentized(
    residuals: NDArray[np.float64], weights: NDArray[np.float64] | None, drawn: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return t* of each resample and row, shape (resamples, rows)."""
    n = residuals.shape[1]
    sums = drawn @ residuals.T
    total = n if weights is None else drawn @ weights.T
    shift = sums / total
    squares = drawn @ (residuals**2).T - 2 * shift * (sums if weights is None else drawn @ (residuals * weights).T)
    squares += shift**2 * (n if weights is None else drawn @ (weights**2).T)
    floor = (residuals**2).sum(axis=1) / n
    error = np.sqrt(np.maximum(squares, floor) * n / (n - 1)) / total
    t: NDArray[np.float64] = np.divide(shift, error, out=np.zeros_like(shift), where=error > 0)
    return t


def _differences(a: ArrayLike | BySource, b: ArrayLike | BySource) -> NDArray[np.float64]:
    if _is_mapping(a) and _is_mapping(b):
        first, second = dict(a.items()), dict(b.items())  # type: ignore[union-attr]
        names = [*first, *(name for name in second if name not in first)]
        nan = float("nan")
        return np.array([second.get(name, nan) - first.get(name, nan) for name in names], np.float64)
    if _is_mapping(a) or _is_mapping(b):
        msg = "an array and a mapping cannot be aligned by source; pass two of a kind"
        raise MetricError(msg)
    first_values, second_values = as_numbers(a), as_numbers(b)
    if first_values.shape != second_values.shape:
        msg = f"{first_values.size} and {second_values.size} values cannot be paired; pass one a source in both"
        raise MetricError(msg)
    return second_values - first_values


def as_numbers(values: ArrayLike | BySource) -> NDArray[np.float64]:
    """Return one value a source as an array; raise `MetricError` if it is no column of finite numbers or nan."""
    if _is_mapping(values):
        values = [value for _, value in values.items()]  # type: ignore[union-attr]
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or np.isinf(numbers).any():
        msg = f"values by source have shape {numbers.shape} or are infinite; pass one finite number (or nan) a source"
        raise MetricError(msg)
    return numbers


def _is_mapping(values: object) -> bool:
    return hasattr(values, "items")


def _check_level(level: float, resamples: int) -> None:
    if not 0 < level < 1 or resamples * (1 - level) < 2:
        msg = f"level {level} needs to lie between 0 and 1 with at least {2 / max(1 - level, 1e-9):.0f} resamples"
        raise MetricError(msg)
