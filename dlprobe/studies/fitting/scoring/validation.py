"""Score many columns on the validation groups of their folds, to choose among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlprobe.data import label_patches
from dlprobe.data.labels import IGNORE, TRUTH_SCHEME
from dlprobe.metrics import LogitHistogram, best_f1_thresholds, f1, fit_temperature
from dlprobe.studies.fitting.scoring.columns import HALF, Stack, by_fold
from dlprobe.studies.fitting.scoring.windows import clean, require_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dlprobe.studies.fitting.scoring.columns import Column
    from dlprobe.studies.fitting.scoring.windows import WindowSource
    from dlprobe.studies.fitting.splits import Assignment

#: Columns that are validated in one reading: each takes half a megabyte.
CHUNK_COLUMNS = 512
#: Windows that are validated at a time: their float32 copy and the logits of all columns are what memory must hold.
TILE_WINDOWS = 8


class Verdict(NamedTuple):
    """Best pooled F1 on validation patches over the thresholds that a saved map can have, and the logit of the best."""

    f1: float
    threshold: float


def validate(pool: WindowSource, assignment: Assignment, columns: Sequence[Column]) -> list[Verdict]:
    """Score each column on the validation groups of its fold.

    Parameters
    ----------
    pool : WindowSource
        Windows.
    assignment : Assignment
        Their groups and the folds.
    columns : sequence of Column
        Maps to score.

    Returns
    -------
    list of Verdict
        In the order of `columns`. The F1 pools the patches of all validation images, authentic ones included, so that
        false alarms count; it is what the threshold reaches, not what a threshold would that cannot be stored.
    """
    verdicts: list[Verdict] = []
    for start in range(0, len(columns), CHUNK_COLUMNS):
        verdicts += _validate(pool, assignment, columns[start : start + CHUNK_COLUMNS])
    return verdicts


def temperatures(pool: WindowSource, assignment: Assignment, columns: Sequence[Column]) -> list[float]:
    """Return what each column's logits have to be divided by to be likeliest on the validation groups of its fold.

    Parameters
    ----------
    pool, assignment, columns
        As for `validate`.

    Returns
    -------
    list of float
        See `dlprobe.metrics.fit_temperature`; of logits as float16 rounds them. NaN where validation shows one class.
    """
    found = np.full(len(columns), np.nan)
    for start in range(0, len(columns), CHUNK_COLUMNS):
        chunk = columns[start : start + CHUNK_COLUMNS]
        of_fold = by_fold(chunk)
        for fold, histogram in _histograms(pool, assignment, chunk, of_fold).items():
            for head, i in enumerate(of_fold[fold]):
                logits, truth, counts = histogram.points(head)
                if len(np.unique(truth)) > 1:
                    found[start + i] = fit_temperature(logits, truth, counts).value
    return [float(value) for value in found]


def _validate(pool: WindowSource, assignment: Assignment, columns: Sequence[Column]) -> list[Verdict]:
    of_fold = by_fold(columns)
    histograms = _histograms(pool, assignment, columns, of_fold)
    verdicts = [Verdict(float("nan"), HALF)] * len(columns)
    for fold, members in of_fold.items():
        thresholds = best_f1_thresholds(histograms[fold], [columns[i].farthest_threshold for i in members])
        for i, cut, counts in zip(members, thresholds, histograms[fold].counts_at(thresholds), strict=True):
            if not np.isnan(cut):
                verdicts[i] = Verdict(f1(counts), float(cut))
    return verdicts


def _histograms(
    pool: WindowSource, assignment: Assignment, columns: Sequence[Column], of_fold: Mapping[int, Sequence[int]]
) -> dict[int, LogitHistogram]:
    """Count the logits of the columns of each fold on its validation groups."""
    histograms = {fold: LogitHistogram(len(members)) for fold, members in of_fold.items()}
    stacks = {fold: Stack([columns[i] for i in members]) for fold, members in of_fold.items()}
    val = {group: fold for fold in of_fold if fold >= 0 for group in assignment.folds[fold].val}
    selected = np.isin(assignment.groups, list(val)) & clean(pool)
    for block in pool.blocks(selected):
        truth = label_patches(block.coverage, TRUTH_SCHEME)
        folds = np.array([val[int(group)] for group in assignment.groups[block.windows]])
        for fold in np.unique(folds):
            for here in _tiles(np.flatnonzero(folds == fold)):
                known = truth[here] != IGNORE
                embeddings = block.embeddings[here]
                logits = stacks[fold](embeddings)
                require_numbers(logits, embeddings, pool, block.windows[here])
                histograms[fold].add(logits[known], truth[here][known] == 1)
    return histograms


def _tiles(places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (places[start : start + TILE_WINDOWS] for start in range(0, len(places), TILE_WINDOWS))
