"""Apply many heads to a pool: choose them on validation sources, score the chosen ones on tested sources.

Everything here lies on the patch grid; the truth is INPAINTED against the rest, whatever a head was taught.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from dlprobe.data import label_patches
from dlprobe.data.labels import IGNORE, TRUTH_SCHEME
from dlprobe.metrics import LogitHistogram, average_precision, best_f1_bounds, best_f1_thresholds, count, f1, iou

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dlprobe.studies.fitting.pool import CachePool
    from dlprobe.studies.fitting.splits import Assignment

#: Thresholds chosen on validation stay where float32 scores can still tell them apart.
LOGIT_LIMIT = 13.0
#: An authentic image counts as a false positive when more than this share of its patches is marked.
FLAGGED_SHARE = 0.01
#: The logit at which the score is 0.5.
HALF = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One linear map with one logit, bound to the fold whose tested groups it never saw.

    Attributes
    ----------
    method : str
        ``dice`` or ``logistic``.
    scheme : str
        Labelling scheme that it was taught.
    fold : int
        Number of its fold.
    weights : ndarray of float64, shape (width,)
        On raw embeddings.
    bias : float
        On raw embeddings.
    threshold : float
        Logit chosen on the fold's validation groups; NaN before that.
    setting : str
        What was chosen, for the table.
    """

    method: str
    scheme: str
    fold: int
    weights: NDArray[np.float64]
    bias: float
    threshold: float = float("nan")
    setting: str = ""


class Verdict(NamedTuple):
    """Best pooled F1 over thresholds on validation patches, and the logit threshold that reaches it."""

    f1: float
    threshold: float


def validate(pool: CachePool, assignment: Assignment, columns: Sequence[Column]) -> list[Verdict]:
    """Score each column on the validation groups of its fold.

    Parameters
    ----------
    pool : CachePool
        Windows.
    assignment : Assignment
        Their groups and the folds.
    columns : sequence of Column
        Maps to score.

    Returns
    -------
    list of Verdict
        In the order of `columns`. The F1 pools the patches of all validation images, authentic ones included, so that
        false alarms count.
    """
    by_fold = _by_fold(columns)
    histograms = {fold: LogitHistogram(len(members)) for fold, members in by_fold.items()}
    stacked = {fold: _stack([columns[i] for i in members]) for fold, members in by_fold.items()}
    val = {group: n for n, fold in enumerate(assignment.folds) for group in fold.val}
    selected = np.isin(assignment.groups, list(val)) & _clean(pool)
    for block in pool.blocks(selected):
        truth = label_patches(block.coverage, TRUTH_SCHEME)
        folds = np.array([val[int(group)] for group in assignment.groups[block.windows]])
        for fold in np.unique(folds):
            here = folds == fold
            known = truth[here] != IGNORE
            logits = _logits(block.embeddings[here], stacked[fold])[known]
            histograms[fold].add(logits, truth[here][known] == 1)
    verdicts = [Verdict(float("nan"), HALF)] * len(columns)
    for fold, members in by_fold.items():
        scores = best_f1_bounds(histograms[fold]).low
        thresholds = best_f1_thresholds(histograms[fold])
        for i, score, cut in zip(members, scores, thresholds, strict=True):
            verdicts[i] = Verdict(float(score), float(np.clip(cut, -LOGIT_LIMIT, LOGIT_LIMIT)))
    return verdicts


def score_images(pool: CachePool, assignment: Assignment, columns: Sequence[Column]) -> pd.DataFrame:
    """Score each column on every image of the tested groups of its fold.

    Parameters
    ----------
    pool : CachePool
        Windows.
    assignment : Assignment
        Their groups and the folds.
    columns : sequence of Column
        Chosen maps, with their thresholds.

    Returns
    -------
    DataFrame
        One row per image and column, and one per image for ``everything`` (all patches marked): identity of the image,
        ``share`` of INPAINTED patches, ``iou``, ``f1``, ``false_area`` and ``flagged`` at the score 0.5, the same with
        the suffix ``_val`` at the threshold chosen on validation, ``ap``, and ``iou_own`` against the scheme's target.
    """
    by_fold = _by_fold(columns)
    stacked = {fold: _stack([columns[i] for i in members]) for fold, members in by_fold.items()}
    tested = {group: n for n, fold in enumerate(assignment.folds) for group in fold.test}
    selected = np.isin(assignment.groups, list(tested)) & _clean(pool)
    rows: list[dict[str, object]] = []
    for image in _images(pool, selected):
        fold = tested[int(assignment.groups[image.windows[0]])]
        logits = _logits(image.embeddings, stacked[fold])
        info = _identity(pool, int(image.windows[0]), fold)
        rows.extend(_image_rows(info, logits, image.coverage, [columns[i] for i in by_fold[fold]]))
    return pd.DataFrame.from_records(rows)


@dataclass(slots=True)
class _Image:
    windows: list[int] = field(default_factory=list)
    parts: list[NDArray[np.floating]] = field(default_factory=list)
    covers: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def embeddings(self) -> NDArray[np.floating]:
        return np.concatenate(self.parts)

    @property
    def coverage(self) -> NDArray[np.uint8]:
        return np.concatenate(self.covers)


def _images(pool: CachePool, selected: NDArray[np.bool_]) -> Iterator[_Image]:
    """Gather the windows of each image, which lie side by side in stored order, also across blocks."""
    keys = pool.windows[["cache", "image"]].to_numpy()
    current, key = _Image(), None
    for block in pool.blocks(selected):
        for i, window in enumerate(block.windows):
            if key is not None and tuple(keys[window]) != key:
                yield current
                current = _Image()
            key = tuple(keys[window])
            current.windows.append(int(window))
            current.parts.append(block.embeddings[i : i + 1])
            current.covers.append(block.coverage[i : i + 1])
    if current.windows:
        yield current


def _image_rows(
    info: Mapping[str, object], logits: NDArray[np.float32], coverage: NDArray[np.uint8], columns: Sequence[Column]
) -> Iterator[dict[str, object]]:
    labels = label_patches(coverage, TRUTH_SCHEME)
    known = labels != IGNORE
    truth = labels[known] == 1
    if truth.size == 0:
        return
    base = {**info, "n_patches": int(truth.size), "share": float(truth.mean())}
    everything = np.ones(truth.size, bool)
    measured = _measures(everything, truth)
    at_val = {f"{name}_val": value for name, value in measured.items()}
    ap = float(truth.mean()) if truth.any() else float("nan")
    yield {
        **base,
        "method": "everything",
        "scheme": "",
        "setting": "",
        **measured,
        **at_val,
        "ap": ap,
        "iou_own": np.nan,
    }
    for i, column in enumerate(columns):
        z = logits[..., i][known]
        own = label_patches(coverage, column.scheme)
        own_known = own != IGNORE
        yield {
            **base,
            "method": column.method,
            "scheme": column.scheme,
            "setting": column.setting,
            **_measures(z >= HALF, truth),
            **{f"{name}_val": value for name, value in _measures(z >= column.threshold, truth).items()},
            "ap": average_precision(z, truth) if truth.any() else float("nan"),
            "iou_own": iou(count(logits[..., i][own_known] >= HALF, own[own_known] == 1)),
        }


def _measures(marked: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, float]:
    """Score one image; where there is nothing to find, IoU and F1 are NaN for every method alike."""
    counts, area = count(marked, truth), float(marked.mean())
    found = (iou(counts), f1(counts)) if truth.any() else (float("nan"), float("nan"))
    return {"iou": found[0], "f1": found[1], "false_area": area, "flagged": float(area > FLAGGED_SHARE)}


def _identity(pool: CachePool, window: int, fold: int) -> dict[str, object]:
    row = pool.windows.loc[window]
    names = ("dataset", "path", "variant", "source_id", "generator", "mask_kind")
    return {**{name: row[name] for name in names}, "fold": fold}


def _clean(pool: CachePool) -> NDArray[np.bool_]:
    """Degraded views train; they neither choose nor are tested."""
    return np.asarray(pool.windows["view"].to_numpy() == 0)


def _by_fold(columns: Sequence[Column]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = defaultdict(list)
    for i, column in enumerate(columns):
        members[column.fold].append(i)
    return members


def _stack(columns: Sequence[Column]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    weights = np.stack([column.weights for column in columns], axis=1).astype(np.float32)
    return weights, np.array([column.bias for column in columns], np.float32)


def _logits(
    embeddings: NDArray[np.floating], stacked: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> NDArray[np.float32]:
    weights, bias = stacked
    return np.asarray(embeddings.astype(np.float32) @ weights + bias, dtype=np.float32)
