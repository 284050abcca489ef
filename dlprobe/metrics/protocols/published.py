"""Protocols of TGIF, IMDLBenCo and MVSS-Net, as their published code computes them, edge cases included.

Where their arithmetic is float32, ours is float64: results agree to about 1e-6.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.metrics.counts import Counts
from dlprobe.metrics.protocols.averages import Mean, Whole, means
from dlprobe.metrics.protocols.base import Pair, Protocol, confusion, everything, register, shares
from dlprobe.metrics.ranking import roc_auc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dlprobe.metrics.protocols.averages import Average, Columns

TGIF_MEANS = ("f1", "iou", "precision", "recall", "specificity", "accuracy", "balanced_accuracy", "auc")
IMDLBENCO_MEANS = ("f1", "iou", "auc", "accuracy")
MVSS_IMAGE = (
    "image_accuracy",
    "image_sensitivity",
    "image_specificity",
    "image_f1",
    "image_auc",
    "combined_f1",
)
EVERYTHING = ("predict_everything_f1", "predict_everything_iou")


def _over(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def tgif_counts(counts: Counts) -> dict[str, float]:
    """Return the thresholded metrics of ``computeMetrics``: all 1 when mask and prediction are both empty."""
    tp, fp, fn, tn = counts
    if tp + fp + fn == 0:
        return dict.fromkeys(TGIF_MEANS[:-1], 1.0)
    recall, specificity = _over(tp, tp + fn), _over(tn, tn + fp)
    return {
        "f1": _over(2 * tp, 2 * tp + fn + fp),
        "iou": _over(tp, tp + fp + fn),
        "precision": _over(tp, tp + fp),
        "recall": recall,
        "specificity": specificity,
        "accuracy": _over(tp + tn, counts.size),
        "balanced_accuracy": (recall + specificity) / 2,
    }


def tgif_map(pair: Pair, threshold: float) -> dict[str, float]:
    """Score one image as TGIF does."""
    counts = confusion(pair.score > threshold, pair.truth)
    full = tgif_counts(everything(counts))
    return {
        **tgif_counts(counts),
        "auc": roc_auc(pair.score, pair.truth),
        "predict_everything_f1": full["f1"],
        "predict_everything_iou": full["iou"],
        **shares(counts),
    }


def imdlbenco_f1(counts: Counts) -> float:
    """Return ``Cal_F1``: precision and recall with 1e-8 in each denominator, so 0 for a perfect empty map."""
    precision = counts.tp / (counts.tp + counts.fp + 1e-8)
    recall = counts.tp / (counts.tp + counts.fn + 1e-8)
    return 2 * precision * recall / (precision + recall + 1e-8)


def imdlbenco_iou(counts: Counts) -> float:
    """Return ``Cal_IOU``: intersection over union plus 1e-8, so 0 for a perfect empty map."""
    return counts.tp / (counts.tp + counts.fp + counts.fn + 1e-8)


def imdlbenco_auc(score: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Return ``Cal_AUC``: a trapezoid with a step for every pixel, ties broken by their place.

    Notes
    -----
    0 without positives, nan without negatives. The published sort leaves the order of ties open; here they are in
    reading order (a stable sort), so that a constant map scores by where its mask lies, not one half.
    """
    if not truth.any():
        return 0.0
    if truth.all():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = truth[order]
    found = np.cumsum(hits)
    return float(found[~hits].sum() / (found[-1] * (truth.size - found[-1])))


def imdlbenco_map(pair: Pair, threshold: float, *, double: bool) -> dict[str, float]:
    """Score one image as IMDLBenCo does, in mode ``origin`` or ``double``."""
    counts = confusion(pair.score > threshold, pair.truth)
    inverse = confusion(1 - pair.score > threshold, pair.truth) if double else counts
    f1 = imdlbenco_f1(counts)
    accuracy, auc = (counts.tp + counts.tn) / counts.size, imdlbenco_auc(pair.score, pair.truth)
    if double:
        f1 = max(f1, imdlbenco_f1(_swapped(counts)))
        accuracy = max(accuracy, 1 - accuracy)
        auc = max(auc, imdlbenco_auc(1 - pair.score, pair.truth))
    full = everything(counts)
    return {
        "f1": f1,
        "iou": max(imdlbenco_iou(counts), imdlbenco_iou(inverse)),
        "auc": auc,
        "accuracy": accuracy,
        "predict_everything_f1": imdlbenco_f1(full),
        "predict_everything_iou": imdlbenco_iou(full),
        **shares(counts),
    }


def mvss_counts(counts: Counts) -> dict[str, float]:
    """Return ``calculate_pixel_f1``: with both empty F1 is 1, but precision and recall are 0."""
    tp, fp, fn, _ = counts
    empty = tp + fp + fn == 0
    return {
        "f1": 1.0 if empty else 2 * tp / (2 * tp + fp + fn + 1e-6),
        "precision": 0.0 if empty else tp / (tp + fp + 1e-6),
        "recall": 0.0 if empty else tp / (tp + fn + 1e-6),
    }


def mvss_map(pair: Pair, threshold: float) -> dict[str, float]:
    """Score one image as MVSS-Net does."""
    counts = confusion(pair.score > threshold, pair.truth)
    return {
        **mvss_counts(counts),
        "predict_everything_f1": mvss_counts(everything(counts))["f1"],
        "image_score": float(pair.score.max()),
        **shares(counts),
    }


def mvss_images(columns: Columns) -> dict[str, float]:
    """Return image-level scores and the combined F1; its image F1 joins sensitivity and specificity."""
    fake = columns["mask_share"] > 0
    tp, fp, fn, tn = confusion(columns["image_score"] > 0.5, fake)
    sensitivity, specificity = tp / (tp + fn + 1e-6), tn / (tn + fp + 1e-6)
    both = sensitivity + specificity
    image_f1 = 2 * sensitivity * specificity / both if both else float("nan")
    auc = roc_auc(columns["image_score"], fake)
    pixel_f1 = Mean("f1", "fake").value(columns)
    return {
        "image_accuracy": (tp + tn) / (fake.size + 1e-6),
        "image_sensitivity": sensitivity,
        "image_specificity": specificity,
        "image_f1": image_f1,
        "image_auc": 0.0 if np.isnan(auc) else auc,
        "combined_f1": 2 * pixel_f1 * image_f1 / (pixel_f1 + image_f1 + 1e-6),
    }


def _mvss_image(metric: str, columns: Columns) -> float:
    return mvss_images(columns)[metric]


def _swapped(counts: Counts) -> Counts:
    """Return the counts of the inverse prediction on the same truth."""
    return Counts(tp=counts.fn, fp=counts.tn, fn=counts.tp, tn=counts.fp)


TGIF_AVERAGES: dict[str, Average] = {
    **means((*TGIF_MEANS, *EVERYTHING), "fake"),
    **means(TGIF_MEANS[:-1], "authentic", "_real"),
}
IMDLBENCO_AVERAGES: dict[str, Average] = means((*IMDLBENCO_MEANS, *EVERYTHING), "all", skip_nan=False)
MVSS_AVERAGES: dict[str, Average] = {
    **means(("f1", "predict_everything_f1"), "fake"),
    **{name: Whole(partial(_mvss_image, name)) for name in MVSS_IMAGE},
}
TGIF = register(
    Protocol(
        name="tgif",
        grid="original_px",
        comparison=">",
        images="all, apart",
        average="mean over images; an AUC that is not defined does not count",
        permutation="none",
        border="none",
        all_pristine="all metrics 1 if the prediction is empty too, else F1 = IoU = 0; AUC is not defined",
        source="IDLabMedia/tgif-dataset, code/localization_metrics.py; its workbook stores an undefined AUC as 0",
        score_map=tgif_map,
        averages=TGIF_AVERAGES,
    )
)
IMDLBENCO = register(
    Protocol(
        name="imdlbenco",
        grid="input_px",
        comparison=">",
        images="all",
        average="mean over images; one wholly fake image makes the mean AUC nan",
        permutation="none",
        border="none (padding is ignored)",
        all_pristine="F1 = IoU = AUC = 0 even if the prediction is empty",
        source="scu-zjz/IMDLBenCo, IMDLBenCo/evaluation, mode origin; image-level metrics need the model's own label",
        score_map=partial(imdlbenco_map, double=False),
        averages=IMDLBENCO_AVERAGES,
    )
)
IMDLBENCO_DOUBLE = register(
    Protocol(
        name="imdlbenco-double",
        grid="input_px",
        comparison=">",
        images="all",
        average="mean over images",
        permutation="F1, IoU, AUC and accuracy each take the better of the map and its inverse",
        border="none (padding is ignored)",
        all_pristine="F1 = IoU = AUC = 0 even if the prediction is empty",
        source="scu-zjz/IMDLBenCo, IMDLBenCo/evaluation, mode double",
        score_map=partial(imdlbenco_map, double=True),
        averages=IMDLBENCO_AVERAGES,
    )
)
MVSS = register(
    Protocol(
        name="mvss",
        grid="original_px",
        comparison=">",
        images="fake (pixels), all (image scores)",
        average="mean over images; combined F1 is the harmonic mean of pixel and image F1",
        permutation="none",
        border="none",
        all_pristine="not counted in pixel F1; the image score is the map's maximum",
        source="dong03/MVSS-Net, evaluate.py and common/utils.py; they read maps as 8-bit PNG, so pass uint8",
        score_map=mvss_map,
        averages=MVSS_AVERAGES,
    )
)
