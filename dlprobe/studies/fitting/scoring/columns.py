"""One chosen or candidate map, and many of them as one function from embeddings to logits."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logit

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from dlprobe.probes import NearestPatches

#: Thresholds stay where float32 scores can still tell logits apart, however coarsely.
LOGIT_LIMIT = 13.0
#: Maps whose thresholds lie beyond it are scaled: there float32 scores tell logits apart that one threshold must.
SCALED_LIMIT = 8.0
#: The farthest threshold of a map that can be scaled: the greatest float16.
FARTHEST_LOGIT = 65_504.0
#: The logit at which the score is 0.5.
HALF = 0.0


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
    temperature : float
        What its logits have to be divided by to be likeliest on the fold's validation groups; NaN before that.
    nearest : NearestPatches, optional
        In place of a linear map.
    remark : str
        What is wrong with the fit, if anything.
    divisor : float
        What `within_scores` has divided the logits by.
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
    temperature: float = float("nan")
    nearest: NearestPatches | None = None
    remark: str = ""
    divisor: float = 1.0

    @property
    def can_be_scaled(self) -> bool:
        """Whether a factor on the map only stretches its logits: true of one logit, not of a softmax or of votes."""
        return self.nearest is None and self.weights.ndim == 1

    @property
    def farthest_threshold(self) -> float:
        """How far from 0 a threshold may lie."""
        return FARTHEST_LOGIT if self.can_be_scaled else LOGIT_LIMIT

    def within_scores(self) -> Column:
        """Return the same map on a scale on which float32 scores reach its thresholds.

        Dice may drive logits into the hundreds, where all scores are 0 or 1 and no threshold but 0.5 is left. A power
        of two on weights, bias and thresholds is exact: what is marked, at 0.5 too, and the ranking stay to the bit.
        """
        cuts = np.abs([self.threshold, self.promised])
        farthest = float(np.max(cuts[np.isfinite(cuts)], initial=0.0))
        if not self.can_be_scaled or farthest <= SCALED_LIMIT:
            return self
        divisor = float(2.0 ** np.ceil(np.log2(farthest / SCALED_LIMIT)))
        return replace(
            self,
            weights=self.weights / divisor,
            bias=self.bias / divisor,
            threshold=self.threshold / divisor,
            promised=self.promised / divisor,
            temperature=self.temperature / divisor,
            setting=self.setting.removesuffix(_scale_text(self.divisor)) + _scale_text(self.divisor * divisor),
            divisor=self.divisor * divisor,
        )


def _scale_text(divisor: float) -> str:
    return f", logits / {divisor:g}"


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


def by_fold(columns: Sequence[Column]) -> dict[int, list[int]]:
    """Return the places of the columns of each fold."""
    members: dict[int, list[int]] = defaultdict(list)
    for i, column in enumerate(columns):
        members[column.fold].append(i)
    return members
