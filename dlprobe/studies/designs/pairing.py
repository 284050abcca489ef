"""Scores by photograph, and their differences: the rows that tables of studies are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from dlprobe.metrics import bootstrap_mean, holm, paired_difference, source_means
from dlprobe.studies.results import FAKE_VARIANTS, GRIDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: What the figures of scores by kind of image show.
DOTS = (
    "Dots are means over photographs, lines their 95 % intervals, black bars what marking everything gets. For IoU "
    "more is better; for the falsely marked share, which is that of authentic images, less is. Two intervals that "
    "overlap decide nothing: the answer rests on differences photograph by photograph."
)
#: Metrics as readers know them, by their names before the ``@``.
WORDS = {"iou": "IoU", "false_area": "falsely marked share"}


def metric_of(variant: str) -> str:
    """Return what a variant is scored by: the IoU where there is a region to find, else the falsely marked share."""
    return "iou" if variant in FAKE_VARIANTS else "false_area"


def row_names(scores: pd.DataFrame) -> pd.Series:
    """Return what a figure calls the rows of a table of scores: the kind of image and the metric."""
    return scores["kind"] + ": " + scores["metric"].str.partition("@")[0].map(WORDS)


def axis_name(scores: pd.DataFrame) -> str:
    """Return what a figure calls the axis of scores at one half."""
    grid = str(scores["metric"].iloc[0]).partition("@")[2]
    return f"mean over photographs with 95 % interval,\nat the score 0.5, {GRIDS.get(grid, grid)}"


def by_source(rows: pd.DataFrame, column: str) -> dict[str, float]:
    """Return the mean of a column over the images of each photograph."""
    return source_means(rows[column].to_numpy(dtype=float), rows["source_id"].to_numpy(dtype=str))


def score_row(values: Mapping[str, float], seed: int, **names: object) -> dict[str, object]:
    """Return the mean over photographs with its interval, after the names that say of what."""
    found = bootstrap_mean(values, seed=seed, bounds=(0, 1))
    return {**names, "value": found.estimate, "low": found.low, "high": found.high, "n_sources": found.n}


def difference_row(
    before: Mapping[str, float], after: Mapping[str, float], seed: int, *, reach: float = 1.0, **names: object
) -> dict[str, object]:
    """Return `after` minus `before`, paired by photograph, with its interval and p; no difference exceeds `reach`."""
    found = paired_difference(before, after, seed=seed, bounds=(-reach, reach))
    return {
        **names,
        "difference": found.estimate,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "n_sources": found.n,
    }


def with_holm(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Return differences as a table, p adjusted by Holm over all of them."""
    table = pd.DataFrame.from_records(list(rows))
    return table.assign(p_holm=holm(table["p"].to_numpy())) if len(table) else table
