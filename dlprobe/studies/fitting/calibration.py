"""Threshold policies: the best F1 on validation, or a promise on authentic images kept by sources of its own."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.data import label_patches
from dlprobe.data.labels import IGNORE, TRUTH_SCHEME
from dlprobe.errors import MetricError
from dlprobe.metrics import (
    area_at,
    conformal_image_threshold,
    risk_controlled_threshold,
    sources_needed,
    worst_by_source,
)
from dlprobe.studies.fitting.scoring import FLAGGED_SHARE, LOGIT_LIMIT, Stack, clean, images_of, require_numbers
from dlprobe.studies.fitting.scoring.columns import FARTHEST_LOGIT
from dlprobe.studies.fitting.splits import CALIBRATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dlprobe.metrics import Guarantee
    from dlprobe.studies.fitting.pool import CachePool
    from dlprobe.studies.fitting.scoring import Column
    from dlprobe.studies.fitting.splits import Assignment

BEST_F1 = "best-f1"
IMAGE_FPR = "image-fpr"
AREA = "area"
#: Of the logits beyond the limit, which a map has that will be scaled.
_FAR = np.geomspace(LOGIT_LIMIT, FARTHEST_LOGIT, 101)[1:]
#: Logits at which false area is controlled, fixed before any area is looked at; the last one marks nothing.
LEVELS = np.concatenate([-_FAR[::-1], np.linspace(-LOGIT_LIMIT, LOGIT_LIMIT, 1041), _FAR])


@dataclass(frozen=True, slots=True)
class ThresholdPolicy:
    """How the threshold on a probe's card is chosen.

    Attributes
    ----------
    kind : str
        ``best-f1``, ``image-fpr`` or ``area``.
    alpha : float
        The rate that is promised; 0 for ``best-f1``.
    """

    kind: str
    alpha: float = 0.0

    @property
    def sources_needed(self) -> int:
        """Sources with authentic images that calibration needs at least."""
        return 0 if self.kind == BEST_F1 else sources_needed(self.alpha)


def parse_policy(text: str) -> ThresholdPolicy:
    """Return the policy of a text such as ``best-f1``, ``image-fpr:0.05`` or ``area:0.01``.

    Raises
    ------
    MetricError
        If there is no such policy, or its rate is none.
    """
    kind, _, rate = text.partition(":")
    if kind not in {BEST_F1, IMAGE_FPR, AREA} or (kind == BEST_F1) != (not rate):
        near = difflib.get_close_matches(kind, [BEST_F1, IMAGE_FPR, AREA], n=1)
        hint = f"did you mean {near[0]}{'' if near[0] == BEST_F1 else ':ALPHA'}?" if near else "write one of these:"
        msg = f"no threshold policy {text!r}; {hint} {BEST_F1}, {IMAGE_FPR}:ALPHA, {AREA}:ALPHA (such as area:0.01)"
        raise MetricError(msg)
    if kind == BEST_F1:
        return ThresholdPolicy(kind)
    try:
        policy = ThresholdPolicy(kind, float(rate))
    except ValueError:
        msg = f"the threshold policy {text!r} promises no rate; write a number such as {kind}:0.05"
        raise MetricError(msg) from None
    sources_needed(policy.alpha)  # raises if it is no rate
    return policy


def calibrate(
    pool: CachePool, assignment: Assignment, columns: Sequence[Column], policy: ThresholdPolicy
) -> list[Guarantee]:
    """Return for each column the threshold that keeps a policy's promise, from the calibration sources alone.

    The promise is about images of the variant ``real`` on the patch grid: that at most a share alpha of such images has
    more than 1 % of its patches marked, or that at most a share alpha of their patches is marked on average. A source
    counts by its worst image.

    Parameters
    ----------
    pool, assignment
        As for `dlprobe.studies.fitting.scoring.validate`.
    columns : sequence of Column
        Chosen maps.
    policy : ThresholdPolicy
        With a rate.

    Returns
    -------
    list of Guarantee
        Thresholds are logits; infinity where scores could not tell any more, so that nothing is marked.

    Raises
    ------
    MetricError
        If the sources are too few for the rate; the message names the number needed.
    """
    authentic = (pool.windows["variant"] == "real").to_numpy()
    selected = (assignment.groups == CALIBRATION) & clean(pool) & authentic & pool.kept
    if not selected.any():
        msg = f"no authentic image is set apart for calibration; {policy.sources_needed} sources are needed"
        raise MetricError(msg)
    stack = Stack(columns)
    sources: list[str] = []
    values: list[NDArray[np.float64]] = []
    measure = _image_scores if policy.kind == IMAGE_FPR else _areas
    for image in images_of(pool, selected):
        known = label_patches(image.coverage, TRUTH_SCHEME) != IGNORE
        if known.any():
            sources.append(str(pool.windows["source_id"].iloc[image.windows[0]]))
            logits = stack(image.embeddings)
            require_numbers(logits, image.embeddings, pool, np.array(image.windows))
            values.append(measure(logits[known]))
    table = np.stack(values)
    return [
        _keep(policy, worst_by_source(table[:, i], sources), column.farthest_threshold)
        for i, column in enumerate(columns)
    ]


def _keep(policy: ThresholdPolicy, worst: NDArray[np.float64], farthest: float) -> Guarantee:
    if policy.kind == IMAGE_FPR:
        found = conformal_image_threshold(worst, policy.alpha)
    else:
        found = risk_controlled_threshold(worst, LEVELS, policy.alpha)
    return found._replace(threshold=inf) if found.threshold >= farthest else found


def _image_scores(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the highest logit threshold at which an image is still flagged, for each column of (patches, columns)."""
    patches = len(logits)
    fewest = next(k for k in range(1, patches + 1) if k / patches > FLAGGED_SHARE)
    return np.asarray(np.partition(logits, patches - fewest, axis=0)[patches - fewest], np.float64)


def _areas(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the marked share at each of `LEVELS`, for each column: shape (columns, levels)."""
    return np.stack([area_at(column, LEVELS) for column in logits.T])


def promise_text(promise: Guarantee) -> str:
    """Return a promise in words, for a card."""
    n = f"{promise.n} calibration sources"
    return f"{promise.kind} at most {promise.alpha:g} on the patches of authentic images ({n}; {promise.scope})"


def score_of(logit: float) -> float:
    """Return the score of a logit; for infinity a number above every score, so that nothing is marked."""
    if logit > LOGIT_LIMIT:
        return float(np.nextafter(np.float32(1), np.float32(2)))
    return float(1 / (1 + np.exp(-logit)))
