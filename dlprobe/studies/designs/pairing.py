"""Scores by photograph, and their differences: the rows that tables of studies are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from dlprobe.metrics import bootstrap_mean, holm, paired_difference, source_means
from dlprobe.studies.displays import grid_words, metric_words
from dlprobe.studies.results import AUTHENTIC_VARIANTS, FAKE_VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: What the figures of scores by kind of image show.
DOTS = (
    "Dots are means over photographs, lines their 95 % intervals, upright bars what marking everything gets. For IoU "
    "more is better; for the falsely marked share, which is that of authentic images, less is. Two intervals that "
    "overlap decide nothing: the answer rests on differences photograph by photograph."
)
#: Below figures that show one of them: see `dlprobe.metrics.bootstrap_mean`.
SAME_SCORES = (
    "Where all photographs have one and the same score, such as 0, the interval still has a width: {n} tested "
    "photographs cannot rule out that up to {share:.0%} of photographs score otherwise."
)


def metric_of(variant: str) -> str:
    """Return what a variant is scored by: the IoU where there is a region to find, else the falsely marked share."""
    return "iou" if variant in FAKE_VARIANTS else "false_area"


def variants_of(table: pd.DataFrame) -> list[str]:
    """Return the variants of a table in the order that people look for them in: fakes before the others."""
    there = set(table["variant"])
    return [name for name in (*FAKE_VARIANTS, *AUTHENTIC_VARIANTS) if name in there]


def row_names(scores: pd.DataFrame) -> pd.Series:
    """Return what a figure calls the rows of a table of scores: the kind of image and the metric."""
    return scores["kind"] + ": " + scores["metric"].map(metric_words)


def axis_name(scores: pd.DataFrame) -> str:
    """Return what a figure calls the axis of scores at one half."""
    grid = str(scores["metric"].iloc[0]).partition("@")[2]
    return f"mean over photographs with 95 % interval,\nat the score 0.5, {grid_words(grid)}"


def everything_by_source(images: pd.DataFrame) -> dict[str, float]:
    """Return what marking every pixel gets on the images of each photograph, all of one variant.

    Parameters
    ----------
    images : DataFrame
        Rows of an evaluation; the IoU of marking everything is the share that the mask covers, and the falsely marked
        share of an image without a mask is 1.
    """
    fake = bool(images["variant"].isin(FAKE_VARIANTS).any())
    return by_source(images.assign(everything=images["mask_share"] if fake else 1.0), "everything")


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


def on_same_scores(tables: Iterable[pd.DataFrame]) -> str:
    """Return what to know of intervals of scores that do not vary, where a table has one; else nothing."""
    few = [
        int(count)
        for table in tables
        if {"value", "low", "high", "n_sources"} <= set(table.columns)
        for value, low, high, count in table[["value", "low", "high", "n_sources"]].itertuples(index=False)
        if value in {0.0, 1.0} and high > low
    ]
    return SAME_SCORES.format(n=min(few), share=1 - 0.025 ** (1 / min(few))) if few else ""
