"""Apply many heads to a pool: choose them on validation sources, score the chosen ones on tested sources.

Heads are chosen on the patch grid. They are scored on it too, or on the pixels that models of different patches share;
the truth is INPAINTED against the rest, whatever a head was taught.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from dlprobe.data import label_patches
from dlprobe.data.labels import IGNORE, TRUTH_SCHEME, positive_patches
from dlprobe.errors import ProbeError
from dlprobe.metrics import (
    LogitHistogram,
    ReliabilityTally,
    average_precision,
    best_f1_bounds,
    best_f1_thresholds,
    count,
    f1,
    iou,
)
from dlprobe.studies.pixels import boxes_of, enlarge_logits, label_pixels, owned_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dlprobe.errors import DlprobeError
    from dlprobe.probes import NearestPatches
    from dlprobe.studies.fitting.pool import CachePool
    from dlprobe.studies.fitting.splits import Assignment
    from dlprobe.studies.pixels import PixelGrid

#: Thresholds chosen on validation stay where float32 scores can still tell them apart.
LOGIT_LIMIT = 13.0
#: An authentic image counts as a false positive when more than this share of its patches is marked.
FLAGGED_SHARE = 0.01
#: The logit at which the score is 0.5.
HALF = 0.0
#: The method that marks every patch.
EVERYTHING = "everything"
#: Of the score, in the table of calibration.
CALIBRATION_BINS = 10
#: Columns that are validated in one reading: each takes half a megabyte.
CHUNK_COLUMNS = 512
#: Windows that are validated at a time: their float32 copy and the logits of all columns are what memory must hold.
TILE_WINDOWS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One map from a patch to a logit of INPAINTED, bound to the fold whose tested groups it never saw.

    Attributes
    ----------
    method : str
        ``dice`` for heads under ``dice-batch``, another objective's name, or a baseline's.
    scheme : str
        Labelling scheme that it was taught.
    fold : int
        Number of its fold; -1 for the probe for new images.
    weights : ndarray of float64, shape (width,), or (3, width) for three classes
        On raw embeddings; empty for a map that is not linear.
    bias : float, or ndarray of shape (3,)
        On raw embeddings.
    threshold : float
        Logit chosen on the fold's validation groups; NaN before that.
    setting : str
        What was chosen, for the table.
    seed : int
        Of the fit.
    cell : hashable
        What was chosen, for the fit on all groups; the same in all folds.
    objective : str
        What was minimised.
    f1 : float
        Best pooled F1 on the fold's validation groups, a mean over folds for the probe for new images.
    promised : float
        Logit threshold that keeps the promise of the run's policy; NaN without one.
    nearest : NearestPatches, optional
        In place of a linear map.
    """

    method: str
    scheme: str
    fold: int
    weights: NDArray[np.float64]
    bias: float | NDArray[np.float64]
    threshold: float = float("nan")
    setting: str = ""
    seed: int = 0
    cell: Hashable = None
    objective: str = ""
    f1: float = float("nan")
    promised: float = float("nan")
    nearest: NearestPatches | None = None


class Stack:
    """Columns as one function from embeddings to a logit of INPAINTED for each.

    Parameters
    ----------
    columns : sequence of Column
        Those with one logit, with three classes and without weights may be mixed.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        linear = [(i, np.atleast_2d(column.weights)) for i, column in enumerate(columns) if column.nearest is None]
        sizes = [len(weights) for _, weights in linear]
        self._first = dict(zip((i for i, _ in linear), np.cumsum([0, *sizes])[:-1].tolist(), strict=True))
        if linear:
            self._weights = np.concatenate([weights for _, weights in linear]).T.astype(np.float32)
            self._bias = np.concatenate([np.atleast_1d(columns[i].bias) for i, _ in linear]).astype(np.float32)
        self._plain = len(linear) == len(columns) and set(sizes) <= {1}

    def __call__(self, embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return logits, shape (..., columns), of embeddings, shape (..., width)."""
        logits = embeddings.astype(np.float32) @ self._weights + self._bias if self._first else np.empty(0, np.float32)
        if self._plain:
            return np.asarray(logits, dtype=np.float32)
        found = np.empty((*embeddings.shape[:-1], len(self._columns)), np.float32)
        for i, column in enumerate(self._columns):
            if column.nearest is not None:
                shares = column.nearest.scores(embeddings.reshape(-1, embeddings.shape[-1]))
                with np.errstate(divide="ignore"):
                    found[..., i] = np.clip(logit(shares), -LOGIT_LIMIT, LOGIT_LIMIT).reshape(found.shape[:-1])
            elif column.weights.ndim == 1:
                found[..., i] = logits[..., self._first[i]]
            else:
                found[..., i] = inpainted_logit(logits[..., self._first[i] : self._first[i] + len(column.weights)])
        return found


def inpainted_logit(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the log odds of INPAINTED, the last of the classes, from the logits of a softmax over all (..., 3)."""
    rest = np.logaddexp.reduce(logits[..., :-1], axis=-1)
    return np.asarray(logits[..., -1] - rest, dtype=np.float32)


class EmbeddedWindows(Protocol):
    """Some windows: embeddings (n, rows, cols, width), coverage (n, rows, cols, 4), and their numbers (n,)."""

    @property
    def embeddings(self) -> NDArray[np.floating]: ...  # noqa: D102
    @property
    def coverage(self) -> NDArray[np.uint8]: ...  # noqa: D102
    @property
    def windows(self) -> NDArray[np.int64]: ...  # noqa: D102


class WindowSource(Protocol):
    """Windows that can be scored: `CachePool`, or those of `dlprobe.finetune` that are embedded as they are read."""

    @property
    def windows(self) -> pd.DataFrame:
        """One row a window."""
        ...

    def blocks(self, selected: NDArray[np.bool_]) -> Iterator[EmbeddedWindows]:
        """Iterate over the readable windows among `selected`, in stored order."""
        ...

    def not_finite(self, window: int) -> DlprobeError:
        """Return the error of a window whose embeddings are not finite."""
        ...


class Verdict(NamedTuple):
    """Best pooled F1 over thresholds on validation patches, and the logit threshold that reaches it."""

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
        false alarms count.
    """
    verdicts: list[Verdict] = []
    for start in range(0, len(columns), CHUNK_COLUMNS):
        verdicts += _validate(pool, assignment, columns[start : start + CHUNK_COLUMNS])
    return verdicts


def _validate(pool: WindowSource, assignment: Assignment, columns: Sequence[Column]) -> list[Verdict]:
    by_fold = _by_fold(columns)
    histograms = {fold: LogitHistogram(len(members)) for fold, members in by_fold.items()}
    stacks = {fold: Stack([columns[i] for i in members]) for fold, members in by_fold.items()}
    val = {group: fold for fold in by_fold if fold >= 0 for group in assignment.folds[fold].val}
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
    verdicts = [Verdict(float("nan"), HALF)] * len(columns)
    for fold, members in by_fold.items():
        scores = best_f1_bounds(histograms[fold]).low
        thresholds = best_f1_thresholds(histograms[fold])
        for i, score, cut in zip(members, scores, thresholds, strict=True):
            verdicts[i] = Verdict(float(score), float(np.clip(cut, -LOGIT_LIMIT, LOGIT_LIMIT)))
    return verdicts


def _tiles(places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (places[start : start + TILE_WINDOWS] for start in range(0, len(places), TILE_WINDOWS))


class Calibration:
    """How often what a score calls probable is INPAINTED, by method and scheme; seeds are counted together."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], ReliabilityTally] = {}

    def add(self, column: Column, logits: NDArray[np.float32], truth: NDArray[np.bool_], source: str) -> None:
        """Count the units of an image of one source."""
        tally = self._tallies.setdefault((column.method, column.scheme), ReliabilityTally(bins=CALIBRATION_BINS))
        tally.add(expit(logits.astype(np.float64)), truth, source)

    def frame(self) -> pd.DataFrame:
        """Return one row per ``method``, ``scheme`` and bin: see `dlprobe.metrics.Reliability`."""
        tables = [
            tally.curve().table.assign(method=method, scheme=scheme)
            for (method, scheme), tally in self._tallies.items()
        ]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


class Scene(NamedTuple):
    """What an image is scored on, unit by unit of a grid.

    Parameters
    ----------
    labels : callable
        From a scheme to the target of each unit, int8, `IGNORE` where it does not count.
    logits : callable
        From the number of a column to its logit of each unit.
    """

    labels: Callable[[str], NDArray[np.int8]]
    logits: Callable[[int], NDArray[np.float32]]


def score_images(
    pool: WindowSource,
    assignment: Assignment,
    columns: Sequence[Column],
    pixels: PixelGrid | None = None,
    calibration: Calibration | None = None,
) -> pd.DataFrame:
    """Score each column on every image of the tested groups of its fold.

    Parameters
    ----------
    pool : WindowSource
        Windows.
    assignment : Assignment
        Their groups and the folds.
    columns : sequence of Column
        Chosen maps, with their thresholds.
    pixels : PixelGrid, optional
        Score on these pixels instead of patches; then `pool` is a `CachePool`.
    calibration : Calibration, optional
        Told the logits and the truth of every image.

    Returns
    -------
    DataFrame
        One row per image and column, and one per image for ``everything`` (all marked): identity of the image, ``grid``
        (``patch`` or ``px``), ``n_units`` of it that count, ``share`` of INPAINTED among them, ``iou``, ``f1``,
        ``false_area`` and ``flagged`` at the score 0.5, the same with the suffix ``_val`` at the threshold chosen on
        validation and ``_promised`` at the one that keeps a promise, ``ap``, and ``iou_own`` against the
        scheme's target.
    """
    by_fold = _by_fold(columns)
    stacks = {fold: Stack([columns[i] for i in members]) for fold, members in by_fold.items()}
    tested = {group: n for n, fold in enumerate(assignment.folds) for group in fold.test}
    selected = np.isin(assignment.groups, list(tested)) & clean(pool)
    rows: list[dict[str, object]] = []
    for image in images_of(pool, selected):
        fold = tested[int(assignment.groups[image.windows[0]])]
        if fold not in stacks:
            continue
        logits = stacks[fold](image.embeddings)
        require_numbers(logits, image.embeddings, pool, np.array(image.windows))
        info = _identity(pool, int(image.windows[0]), fold)
        if pixels is None:
            scene, grid = _patches(logits, image.coverage), "patch"
        else:
            scene, grid = (
                _pixels(cast("CachePool", pool), image.windows, logits, pixels.common(info["dataset"], info["path"])),
                "px",
            )
        rows.extend(_image_rows({**info, "grid": grid}, scene, [columns[i] for i in by_fold[fold]], calibration))
    return pd.DataFrame.from_records(rows)


def require_numbers(
    logits: NDArray[np.float32], embeddings: NDArray[np.floating], pool: WindowSource, windows: NDArray[np.int64]
) -> None:
    """Raise if a logit is not a number, which no threshold would mark: naming the window, or the heads, at fault.

    Raises
    ------
    CacheError
        If the embeddings of a window are not finite.
    ProbeError
        If the weights of a head are too large.
    """
    if not np.isnan(logits).any():
        return
    if (finite := np.isfinite(embeddings).all(axis=(1, 2, 3))).all():
        msg = "a head gives scores that are no numbers: its weights are too large; lower the learning rates"
        raise ProbeError(msg)
    raise pool.not_finite(int(windows[int(np.argmin(finite))]))


@dataclass(slots=True)
class WindowsOfImage:
    """The windows of one image as they gather: their numbers, embeddings and coverage."""

    windows: list[int] = field(default_factory=list)
    parts: list[NDArray[np.floating]] = field(default_factory=list)
    covers: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def embeddings(self) -> NDArray[np.floating]:
        """Shape (windows, rows, cols, width)."""
        return np.concatenate(self.parts)

    @property
    def coverage(self) -> NDArray[np.uint8]:
        """Shape (windows, rows, cols, 4)."""
        return np.concatenate(self.covers)


def images_of(pool: WindowSource, selected: NDArray[np.bool_]) -> Iterator[WindowsOfImage]:
    """Gather the windows of each image, which lie side by side in stored order, also across blocks."""
    keys = pool.windows[["cache", "image"]].to_numpy()
    current, key = WindowsOfImage(), None
    for block in pool.blocks(selected):
        for i, window in enumerate(block.windows):
            if key is not None and tuple(keys[window]) != key:
                yield current
                current = WindowsOfImage()
            key = tuple(keys[window])
            current.windows.append(int(window))
            current.parts.append(block.embeddings[i : i + 1])
            current.covers.append(block.coverage[i : i + 1])
    if current.windows:
        yield current


def _patches(logits: NDArray[np.float32], coverage: NDArray[np.uint8]) -> Scene:
    return Scene(lambda scheme: label_patches(coverage, scheme), lambda i: logits[..., i])


def _pixels(pool: CachePool, windows: Sequence[int], logits: NDArray[np.float32], common: NDArray[np.bool_]) -> Scene:
    boxes = boxes_of(pool.windows.loc[windows])
    owned = owned_pixels(boxes, common)
    classes = np.concatenate([part[own] for part, own in zip(pool.regions(windows), owned, strict=True)])

    def of_column(i: int) -> NDArray[np.float32]:
        enlarged = (
            enlarge_logits(grid[..., i], box.h, box.w)[own] for grid, box, own in zip(logits, boxes, owned, strict=True)
        )
        return np.concatenate(list(enlarged))

    return Scene(lambda scheme: label_pixels(classes, scheme), of_column)


def _image_rows(
    info: Mapping[str, object], scene: Scene, columns: Sequence[Column], calibration: Calibration | None
) -> Iterator[dict[str, object]]:
    labels = scene.labels(TRUTH_SCHEME)
    known = labels != IGNORE
    truth = labels[known] == 1
    if truth.size == 0:
        return
    base = {**info, "n_units": int(truth.size), "share": float(truth.mean())}
    promises = any(not np.isnan(column.promised) for column in columns)
    marked = np.ones(truth.size, bool)
    yield {
        **base,
        "method": EVERYTHING,
        "scheme": "",
        "setting": "",
        "seed": 0,
        **_at_thresholds(marked, marked, marked if promises else None, truth),
        "ap": float(truth.mean()) if truth.any() else float("nan"),
        "iou_own": np.nan,
    }
    for i, column in enumerate(columns):
        logits = scene.logits(i)
        z, own = logits[known], scene.labels(column.scheme)
        own_known = own != IGNORE
        if calibration is not None:
            calibration.add(column, z, truth, str(info["source_id"]))
        yield {
            **base,
            "method": column.method,
            "scheme": column.scheme,
            "setting": column.setting,
            "seed": column.seed,
            **_at_thresholds(z >= HALF, z >= column.threshold, z >= column.promised if promises else None, truth),
            "ap": average_precision(z, truth) if truth.any() else float("nan"),
            "iou_own": iou(count(logits[own_known] >= HALF, positive_patches(own, column.scheme)[own_known])),
        }


def _at_thresholds(
    half: NDArray[np.bool_], chosen: NDArray[np.bool_], promised: NDArray[np.bool_] | None, truth: NDArray[np.bool_]
) -> dict[str, float]:
    found = _measures(half, truth)
    found |= {f"{name}_val": value for name, value in _measures(chosen, truth).items()}
    if promised is not None:
        found |= {f"{name}_promised": value for name, value in _measures(promised, truth).items()}
    return found


def _measures(marked: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, float]:
    """Score one image; where there is nothing to find, IoU and F1 are NaN for every method alike."""
    counts, area = count(marked, truth), float(marked.mean())
    found = (iou(counts), f1(counts)) if truth.any() else (float("nan"), float("nan"))
    return {"iou": found[0], "f1": found[1], "false_area": area, "flagged": float(area > FLAGGED_SHARE)}


def _identity(pool: WindowSource, window: int, fold: int) -> dict[str, Any]:
    row = pool.windows.loc[window]
    names = ("dataset", "path", "variant", "source_id", "generator", "mask_kind")
    return {**{name: str(row[name]) for name in names}, "fold": fold}


def clean(pool: WindowSource) -> NDArray[np.bool_]:
    """Return which windows are of view 0: degraded views train; they neither choose nor are tested."""
    return np.asarray(pool.windows["view"].to_numpy() == 0)


def _by_fold(columns: Sequence[Column]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = defaultdict(list)
    for i, column in enumerate(columns):
        members[column.fold].append(i)
    return members
