"""The protocol that dlprobe recommends; the conventions of its own tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dlprobe.metrics import counts as c
from dlprobe.metrics.protocols.averages import (
    Mean,
    Median,
    Micro,
    Tally,
    Whole,
    f1_micro,
    group,
    iou_micro,
    means,
)
from dlprobe.metrics.protocols.base import Pair, Protocol, confusion, everything, register, shares
from dlprobe.metrics.ranking import rank, roc_auc

if TYPE_CHECKING:
    from dlprobe.metrics.protocols.averages import Average, Columns

THRESHOLDED = {"f1": c.f1, "iou": c.iou, "precision": c.precision, "recall": c.recall}


def score_map(pair: Pair, threshold: float) -> dict[str, float]:
    """Score one image; nan where a metric is undefined (F1 of an authentic image without a false alarm)."""
    counts = confusion(pair.score >= threshold, pair.truth)
    ranking = rank(pair.score, pair.truth)
    image_score = float(np.quantile(pair.score, 0.99))
    return {
        **{name: metric(counts) for name, metric in THRESHOLDED.items()},
        "auc": ranking.roc_auc,
        "ap": ranking.average_precision,
        "oracle_best_f1": ranking.best_f1,
        "predict_everything_f1": c.f1(everything(counts)),
        "predict_everything_iou": c.iou(everything(counts)),
        "image_score": image_score,
        "image_flagged": float(image_score >= threshold),
        "marked_nothing": float(counts.tp + counts.fp == 0),
        **shares(counts),
    }


def image_auc(columns: Columns) -> float:
    """Return the ROC-AUC of the image scores, fakes against authentic images; nan if one group is missing."""
    return roc_auc(columns["image_score"], columns["mask_share"] > 0)


AVERAGES: dict[str, Average] = {
    "n_fake": Tally(lambda columns: float(group(columns, "fake").sum())),
    "n_authentic": Tally(lambda columns: float(group(columns, "authentic").sum())),
    **means((*THRESHOLDED, "auc", "ap", "oracle_best_f1"), "fake", "_macro"),
    **{f"{name}_median": Median(name, "fake") for name in THRESHOLDED},
    "f1_micro": f1_micro("fake"),
    "iou_micro": iou_micro("fake"),
    "precision_micro": Micro({"tp": 1}, {"tp": 1, "fp": 1}, "fake"),
    "recall_micro": Micro({"tp": 1}, {"tp": 1, "fn": 1}, "fake"),
    **means(("predict_everything_f1", "predict_everything_iou"), "fake", "_macro"),
    "predict_everything_f1_micro": Micro({"tp": 2, "fn": 2}, {"tp": 2, "fn": 2, "fp": 1, "tn": 1}, "fake"),
    "predict_everything_iou_micro": Micro({"tp": 1, "fn": 1}, {"tp": 1, "fn": 1, "fp": 1, "tn": 1}, "fake"),
    "empty_predictions": Mean("marked_nothing", "fake"),
    "false_area": Mean("marked_share", "authentic"),
    "image_fpr": Mean("image_flagged", "authentic"),
    "image_tpr": Mean("image_flagged", "fake"),
    "image_auc": Whole(image_auc),
}

DLPROBE = register(
    Protocol(
        name="dlprobe",
        grid="original_px",
        comparison=">=",
        images="all, apart",
        average="macro mean, median and micro over fakes; mean over authentic images; the oracle best F1 is per image",
        permutation="none",
        border="none",
        all_pristine="F1, IoU and recall are not defined (nan) and do not count; false_area and image_fpr say it",
        source="docs/protocol.md; image score: 99th percentile of the map",
        score_map=score_map,
        averages=AVERAGES,
    )
)
