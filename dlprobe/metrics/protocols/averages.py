"""How many images become one number, as data: each kind knows its value and its interval over sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from dlprobe.metrics.intervals.resampling import jackknife_interval, median_interval
from dlprobe.metrics.intervals.studentized import Interval, ratio_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

Columns = Mapping[str, "NDArray[np.float64]"]
Over = Literal["fake", "authentic", "all"]
Settings = dict[str, Any]


class Average(Protocol):
    """One number of a table."""

    def value(self, columns: Columns) -> float:
        """Return the number."""

    def interval(self, columns: Columns, sources: NDArray[np.str_], settings: Settings) -> Interval | None:
        """Return the number with its interval over sources, or None for a number that has none (a tally)."""


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean of a column over a group of images.

    Parameters
    ----------
    column : str
        Of the rows.
    over : {"fake", "authentic", "all"}
        Images that count.
    skip_nan : bool
        Whether images without a value are left out; else one of them makes the mean nan.
    """

    column: str
    over: Over
    skip_nan: bool = True

    def value(self, columns: Columns) -> float:
        """Return the mean; nan without images."""
        values = columns[self.column][self._chosen(columns)]
        return float(values.mean()) if values.size else float("nan")

    def interval(self, columns: Columns, sources: NDArray[np.str_], settings: Settings) -> Interval:
        """Return the ratio of the sources' summed values and image counts, with its interval."""
        chosen = self._chosen(columns)
        values = columns[self.column][chosen]
        if np.isnan(values).any():
            return Interval(
                float("nan"), float("nan"), float("nan"), np.unique(sources[chosen]).size, settings["level"]
            )
        return _ratio(values, np.ones(values.size), sources[chosen], settings)

    def _chosen(self, columns: Columns) -> NDArray[np.bool_]:
        chosen = group(columns, self.over)
        return chosen & ~np.isnan(columns[self.column]) if self.skip_nan else chosen


@dataclass(frozen=True, slots=True)
class Median:
    """Median of a column over a group of images that have a value."""

    column: str
    over: Over

    def value(self, columns: Columns) -> float:
        """Return the median; nan without values."""
        values = columns[self.column][group(columns, self.over)]
        values = values[~np.isnan(values)]
        return float(np.median(values)) if values.size else float("nan")

    def interval(self, columns: Columns, sources: NDArray[np.str_], settings: Settings) -> Interval:
        """Return the median with Woodruff's interval."""
        chosen = group(columns, self.over)
        return median_interval(columns[self.column][chosen], sources[chosen], level=settings["level"])


@dataclass(frozen=True, slots=True)
class Micro:
    """Ratio of sums of counts over a group of images.

    Parameters
    ----------
    above, below : mapping of str to float
        Weights of the columns tp, fp, fn and tn in numerator and denominator.
    over : {"fake", "authentic", "all"}
        Images that count.
    """

    above: Mapping[str, float]
    below: Mapping[str, float]
    over: Over

    def value(self, columns: Columns) -> float:
        """Return the ratio; nan if the denominator is 0."""
        chosen = group(columns, self.over)
        below = _weighted(columns, self.below)[chosen].sum()
        return float(_weighted(columns, self.above)[chosen].sum() / below) if below else float("nan")

    def interval(self, columns: Columns, sources: NDArray[np.str_], settings: Settings) -> Interval:
        """Return the ratio with its interval."""
        chosen = group(columns, self.over)
        above, below = _weighted(columns, self.above)[chosen], _weighted(columns, self.below)[chosen]
        return _ratio(above, below, sources[chosen], settings)


@dataclass(frozen=True, slots=True)
class Whole:
    """A number that needs all images of a group at once, such as an AUC of image scores."""

    function: Callable[[Columns], float]

    def value(self, columns: Columns) -> float:
        """Return the number."""
        return self.function(columns)

    def interval(self, columns: Columns, sources: NDArray[np.str_], settings: Settings) -> Interval:
        """Return the number with an interval from jackknife values."""

        def statistic(kept: NDArray[np.intp]) -> dict[str, float]:
            return {"value": self.function({name: values[kept] for name, values in columns.items()})}

        return jackknife_interval(statistic, sources, **settings)["value"]


@dataclass(frozen=True, slots=True)
class Tally:
    """A number of images; it has no interval."""

    function: Callable[[Columns], float]

    def value(self, columns: Columns) -> float:
        """Return the number."""
        return float(self.function(columns))

    def interval(self, columns: Columns, sources: NDArray[np.str_], settings: Settings) -> None:
        """Return None."""
        del columns, sources, settings


def group(columns: Columns, over: Over) -> NDArray[np.bool_]:
    """Return which images belong to a group: a fake has a mask, an authentic image has none."""
    fake = columns["mask_share"] > 0
    return {"fake": fake, "authentic": ~fake, "all": np.ones_like(fake)}[over]


def f1_micro(over: Over) -> Micro:
    """Return the micro F1 of a group."""
    return Micro({"tp": 2}, {"tp": 2, "fp": 1, "fn": 1}, over)


def iou_micro(over: Over) -> Micro:
    """Return the micro IoU of a group."""
    return Micro({"tp": 1}, {"tp": 1, "fp": 1, "fn": 1}, over)


def means(names: tuple[str, ...], over: Over, suffix: str = "", *, skip_nan: bool = True) -> dict[str, Average]:
    """Return means of several columns under their own names and a suffix."""
    return {f"{name}{suffix}": Mean(name, over, skip_nan) for name in names}


def _weighted(columns: Columns, weights: Mapping[str, float]) -> NDArray[np.float64]:
    total = np.zeros(columns["tp"].shape)
    for name, weight in weights.items():
        total += weight * columns[name]
    return total


def _ratio(
    above: NDArray[np.float64], below: NDArray[np.float64], sources: NDArray[np.str_], settings: Settings
) -> Interval:
    names, index = np.unique(sources, return_inverse=True)
    sums = [np.bincount(index, part, minlength=names.size) for part in (above, below)]
    return ratio_interval(*sums, **settings)
