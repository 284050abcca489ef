"""Score the chosen columns on every tested image, beside marking everything.

On the patch grid, or on the pixels that models of different patches share; the truth is INPAINTED against the rest,
whatever a head was taught.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd

from dlprobe.data import label_patches
from dlprobe.data.labels import IGNORE, TRUTH_SCHEME, positive_patches
from dlprobe.metrics import average_precision, count, f1, iou
from dlprobe.studies.evaluation.subjects import size_bin
from dlprobe.studies.fitting.scoring.columns import HALF, Stack, by_fold
from dlprobe.studies.fitting.scoring.tallies import EVERYTHING, Units
from dlprobe.studies.fitting.scoring.windows import clean, images_of, require_numbers
from dlprobe.studies.pixels import boxes_of, enlarge_logits, label_pixels, owned_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dlprobe.studies.fitting.pool import CachePool
    from dlprobe.studies.fitting.scoring.columns import Column
    from dlprobe.studies.fitting.scoring.tallies import Tally
    from dlprobe.studies.fitting.scoring.windows import WindowSource
    from dlprobe.studies.fitting.splits import Assignment
    from dlprobe.studies.pixels import PixelGrid

#: An authentic image counts as a false positive when more than this share of its patches is marked.
FLAGGED_SHARE = 0.01


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
    tallies: Sequence[Tally] = (),
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
    tallies : sequence of Tally
        Told the logits and the truth of every image, fold by fold.

    Returns
    -------
    DataFrame
        One row per image and column, and one per image for ``everything`` (all marked): identity of the image, ``grid``
        (``patch`` or ``px``), ``n_units`` of it that count, ``share`` of INPAINTED among them, ``mask_size`` (the bin
        of that share), ``iou``, ``f1``, ``false_area`` and ``flagged`` at the score 0.5, the same with the suffix
        ``_val`` at the threshold chosen on validation and ``_promised`` at the one that keeps a promise, ``ap``, and
        ``iou_own`` against the scheme's target.
    """
    members = by_fold(columns)
    of_image: dict[int, list[dict[str, object]]] = {}
    for number, fold in enumerate(assignment.folds):
        if number not in members:
            continue
        chosen = [columns[i] for i in members[number]]
        stack = Stack(chosen)
        for image in images_of(pool, np.isin(assignment.groups, fold.test) & clean(pool)):
            logits = stack(image.embeddings)
            require_numbers(logits, image.embeddings, pool, np.array(image.windows))
            info = _identity(pool, int(image.windows[0]), number)
            if pixels is None:
                scene, grid = _patches(logits, image.coverage), "patch"
            else:
                common = pixels.common(info["dataset"], info["path"])
                scene, grid = _pixels(cast("CachePool", pool), image.windows, logits, common), "px"
            of_image[image.windows[0]] = list(_image_rows({**info, "grid": grid}, scene, chosen, tallies))
        for tally in tallies:
            tally.close()
    return pd.DataFrame.from_records([row for first in sorted(of_image) for row in of_image[first]])


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
    info: Mapping[str, object], scene: Scene, columns: Sequence[Column], tallies: Sequence[Tally]
) -> Iterator[dict[str, object]]:
    labels = scene.labels(TRUTH_SCHEME)
    known = labels != IGNORE
    truth = labels[known] == 1
    if truth.size == 0:
        return
    share = float(truth.mean())
    base = {**info, "n_units": int(truth.size), "share": share, "mask_size": size_bin(share) if share else ""}
    promises = any(not np.isnan(column.promised) for column in columns)
    marked = np.ones(truth.size, bool)
    yield {
        **base,
        "method": EVERYTHING,
        "scheme": "",
        "setting": "",
        "seed": 0,
        **_at_thresholds(marked, marked, marked if promises else None, truth),
        "ap": share or float("nan"),
        "iou_own": np.nan,
    }
    for i, column in enumerate(columns):
        logits = scene.logits(i)
        z, own = logits[known], scene.labels(column.scheme)
        own_known = own != IGNORE
        for tally in tallies:
            tally.add(column, Units(z, truth, str(info["variant"]), str(info["source_id"])))
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
