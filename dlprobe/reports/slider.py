"""Images whose score maps a reader can threshold in the browser: what is embedded, and on which scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Level of the embedded 8-bit maps that is the threshold itself, and the logit that one level stands for.
THRESHOLD_LEVEL = 128
LOGITS_PER_LEVEL = 12 / 128
#: Level of what does not count in an embedded truth; 0 is authentic, 255 generated.
UNCOUNTED_LEVEL = 100


@dataclass(frozen=True, slots=True)
class Exhibit:
    """An image of the page: pixels, levels of its map and its truth as data URIs, of one size, and words."""

    photo: str
    levels: str
    truth: str
    caption: str
    fake: bool


#: Half the distance of float32 scores just below 1.
_LEAST = 2.0**-25


def slider(threshold: float) -> dict[str, float]:
    """Return what the page needs to know of a slider that begins at a score in (0, 1)."""
    return {"logit": _logit(threshold), "level": THRESHOLD_LEVEL, "step": LOGITS_PER_LEVEL}


def threshold_levels(scores: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return a map as 8-bit levels on the scale of logits, so that level 128 and above is exactly what is marked.

    Parameters
    ----------
    scores : ndarray of float32, shape (height, width)
        In [0, 1].
    threshold : float
        Score from which a pixel is marked, in (0, 1).
    """
    wide = np.asarray(scores, np.float64)
    with np.errstate(divide="ignore"):
        logits = np.log(wide) - np.log1p(-wide)
    return _levels(logits - _logit(threshold), wide >= threshold)


def logit_levels(logits: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return logits as `threshold_levels` does scores; `threshold` is a logit too."""
    above = np.asarray(logits, np.float64) - threshold
    return _levels(above, above >= 0)


def _levels(above: NDArray[np.float64], marked: NDArray[np.bool_]) -> NDArray[np.uint8]:
    steps = np.floor(above / LOGITS_PER_LEVEL)
    steps = np.where(marked, np.maximum(steps, 0), np.minimum(steps, -1))
    return np.asarray(np.clip(THRESHOLD_LEVEL + steps, 0, 255), np.uint8)


def _logit(score: float) -> float:
    """Return the logit of a score; outside (0, 1), where nothing or all is marked, that of the nearest inside."""
    score = min(max(score, _LEAST), 1 - _LEAST)
    return float(np.log(score) - np.log1p(-score))
