"""Intervals by source for numbers that are no mean over sources: ratios, AUCs, medians, and the spread of seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import t

from dlprobe.errors import MetricError
from dlprobe.metrics.intervals.studentized import MIN_SOURCES, Interval, bootstrap_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray


class SeedSpread(NamedTuple):
    """How much of a score's uncertainty is the seed's, and how much the sources'.

    Parameters
    ----------
    estimate : float
        Mean over seeds and sources.
    seed_sd : float
        Standard deviation over seeds of the mean over sources: what another fit on the same data would change.
    sampling_error : float
        Standard error over sources of the mean over seeds: what other test sources would change.
    seeds, sources : int
        How many there were.
    """

    estimate: float
    seed_sd: float
    sampling_error: float
    seeds: int
    sources: int


def jackknife_interval(
    statistic: Callable[[NDArray[np.intp]], Mapping[str, float]],
    sources: Sequence[str] | NDArray[np.str_],
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> dict[str, Interval]:
    """Return studentized intervals over sources for any smooth statistics of rows.

    Parameters
    ----------
    statistic : callable
        Row indices -> numbers by name; called once with all rows and once without each source.
    sources : sequence of str
        The source_id of each row.
    level, resamples, seed, bounds
        As in `dlprobe.metrics.bootstrap_mean`.

    Returns
    -------
    dict of str to Interval
        The estimate is the statistic of all rows; the interval is that of the mean of the jackknife's pseudo-values
        ``n T - (n - 1) T_without_i`` (Efron 1982). A statistic that is undefined without some source has no interval.

    Notes
    -----
    Right for statistics that are smooth in the weight of a source (means, micro ratios, AUC, AP); not for medians.
    """
    _, index = np.unique(np.asarray(sources, dtype=str), return_inverse=True)
    n = int(index.max()) + 1 if index.size else 0
    whole = statistic(np.arange(index.size))
    without = [statistic(np.flatnonzero(index != i)) for i in range(n)] if n >= MIN_SOURCES else []
    return {
        name: leave_one_out_interval(
            estimate, [part[name] for part in without], level=level, resamples=resamples, seed=seed, bounds=bounds
        )._replace(n=n)
        for name, estimate in whole.items()
    }


def leave_one_out_interval(
    estimate: float,
    without: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Return the jackknife's interval of a statistic that was computed with everything and without each part.

    Parameters
    ----------
    estimate : float
        With everything.
    without : array_like of float, shape (parts,)
        Without each source, or each of equally large groups of sources.
    level, resamples, seed, bounds
        As in `dlprobe.metrics.bootstrap_mean`.

    Returns
    -------
    Interval
        See `jackknife_interval`; without ends below 8 parts, or where a value is not finite.
    """
    values = np.asarray(without, np.float64)
    n = values.size
    if n < MIN_SOURCES or not np.isfinite([estimate, *values]).all():
        return Interval(estimate, float("nan"), float("nan"), n, level)
    pseudo = n * estimate - (n - 1) * values
    interval = bootstrap_mean(pseudo, level=level, resamples=resamples, seed=seed, bounds=bounds)
    return interval._replace(estimate=estimate)


def median_interval(values: ArrayLike, sources: Sequence[str] | NDArray[np.str_], *, level: float = 0.95) -> Interval:
    """Return the median over images with an interval that knows which images share a source.

    Parameters
    ----------
    values : array_like of float, shape (n,)
        One value an image; nan is dropped.
    sources : sequence of str, length n
        The source_id of each.
    level : float
        Nominal coverage; with one image a source and few sources it is up to 99 %, since ranks are discrete.

    Notes
    -----
    Woodruff (1952): the share of images below the median is a mean over clusters with a known error; its interval,
    ``1/2 -+ t_(n-1) se``, is carried back through the empirical quantiles. `Interval.dropped` counts sources without
    any value.
    """
    numbers, names = np.asarray(values, np.float64), np.asarray(sources, dtype=str)
    there = ~np.isnan(numbers)
    kept = np.sort(numbers[there])
    found, index = np.unique(names[there], return_inverse=True)
    n, dropped = found.size, np.unique(names).size - found.size
    median = float(np.median(kept)) if n else float("nan")
    if n < MIN_SOURCES:
        return Interval(median, float("nan"), float("nan"), n, level, dropped)
    below = (numbers[there] < median) + 0.5 * (numbers[there] == median) - 0.5
    error = np.sqrt(n / (n - 1) * np.sum(np.bincount(index, below) ** 2)) / kept.size
    half = float(t.ppf((1 + level) / 2, n - 1) * error)
    low = max(int(np.floor((0.5 - half) * kept.size)), 0)
    high = min(int(np.ceil((0.5 + half) * kept.size)), kept.size) - 1
    return Interval(median, float(kept[low]), float(kept[high]), n, level, dropped)


def seed_spread(values: ArrayLike) -> SeedSpread:
    """Tell the spread of seeds from the sampling error of sources.

    Parameters
    ----------
    values : array_like of float, shape (seeds, sources)
        One score for each seed and source; a source with a nan is left out.

    Raises
    ------
    MetricError
        If there are fewer than two seeds or two complete sources.
    """
    table = np.asarray(values, np.float64)
    table = table[:, ~np.isnan(table).any(axis=0)] if table.ndim == 2 else table
    if table.ndim != 2 or min(table.shape) < 2:
        msg = f"a spread needs two seeds and two sources, got shape {table.shape}; fit with more seeds"
        raise MetricError(msg)
    seeds, sources = table.shape
    return SeedSpread(
        float(table.mean()),
        float(table.mean(axis=1).std(ddof=1)),
        float(table.mean(axis=0).std(ddof=1) / np.sqrt(sources)),
        seeds,
        sources,
    )
