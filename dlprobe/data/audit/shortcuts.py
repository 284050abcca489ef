"""Shortcuts: how well file format, JPEG quality or size by itself tells fakes from authentic images."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from dlprobe.data.layouts.base import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

#: What Pillow raises on damaged headers.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, struct.error)
#: Balanced accuracy or area under the curve from which a shortcut is reported, and from which it is an error.
REPORTED, GRAVE = 0.6, 0.9
#: Fewer images of either class say nothing.
FEWEST = 10


class Wrapping(NamedTuple):
    """What is known of a file without its pixels; `quality_step` is the mean step of the luma table, 0 if no JPEG."""

    source_id: str
    fake: bool
    format: str
    quality_step: float
    size: tuple[int, int]


def read_wrapping(path: Path, source_id: str, fake: bool, size: tuple[int, int]) -> Wrapping | None:
    """Return a file's wrapping from its header, or None if it has none that can be read."""
    try:
        with Image.open(path) as image:
            tables = getattr(image, "quantization", None) or {}
            step = float(np.mean(tables[min(tables)])) if tables else 0.0
            return Wrapping(source_id, fake, image.format or "", step, size)
    except (*DAMAGE, Image.DecompressionBombError):
        return None


def shortcut_findings(wrappings: Sequence[Wrapping]) -> Iterator[Finding]:
    """Yield ``shortcut-format``, ``shortcut-quality`` and ``shortcut-size`` where one of them alone tells the class.

    Formats and sizes are judged by balanced accuracy, each source by a rule learnt on the other half of the sources;
    JPEG quality by the area under the curve among JPEG files.

    Parameters
    ----------
    wrappings : sequence of Wrapping
        A sample of authentic images and fakes.
    """
    fake = np.array([w.fake for w in wrappings], np.bool_)
    if min(fake.sum(), (~fake).sum()) < FEWEST:
        return
    half = np.array([hashlib.sha256(w.source_id.encode()).digest()[0] % 2 for w in wrappings], np.bool_)
    for name, what, values in (
        ("shortcut-format", "balanced accuracy of the file format", [w.format for w in wrappings]),
        ("shortcut-size", "balanced accuracy of width and height", [f"{w.size[0]}x{w.size[1]}" for w in wrappings]),
    ):
        array = np.array(values)
        frequent = (_most_frequent(array[part]) for part in (~fake, fake))
        typical = "{} is most frequent among authentic images, {} among fakes".format(*frequent)
        yield from _finding(name, what, crossed_accuracy(array, fake, half), fake, typical)
    steps = np.array([w.quality_step for w in wrappings])
    jpeg = steps > 0
    if min(fake[jpeg].sum(), (~fake[jpeg]).sum()) >= FEWEST:
        area = area_under_curve(steps[jpeg], fake[jpeg])
        what = "area under the curve of the JPEG quantisation step"
        medians = (f"{np.median(steps[jpeg & part]):.1f}" for part in (~fake, fake))
        typical = "the median step is {} in authentic images, {} in fakes".format(*medians)
        yield from _finding("shortcut-quality", what, max(area, 1 - area), fake[jpeg], typical)


def crossed_accuracy(values: NDArray[np.str_], fake: NDArray[np.bool_], half: NDArray[np.bool_]) -> float:
    """Return the balanced accuracy of the rule "value -> more frequent class", learnt on one half, tested on the other.

    Classes are weighted by their size; a value that the learning half lacks counts as half a hit.

    Parameters
    ----------
    values : ndarray of str, shape (n,)
        The value of each image.
    fake : ndarray of bool, shape (n,)
        Its class.
    half : ndarray of bool, shape (n,)
        To which half its source belongs.
    """
    hit = np.full(len(values), 0.5)
    for learnt in (half, ~half):
        weights = np.where(fake, -1.0 / max(1, (fake & learnt).sum()), 1.0 / max(1, (~fake & learnt).sum()))
        for value in np.unique(values[learnt]):
            here = values == value
            lean = weights[here & learnt].sum()
            told = ~learnt & here
            hit[told] = 0.5 if abs(lean) < 1e-12 else (fake[told] == (lean < 0))
    return float((hit[fake].mean() + hit[~fake].mean()) / 2)


def area_under_curve(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve, ties counted half (Mann and Whitney's U)."""
    below = np.sort(scores[~positive])
    wins = np.searchsorted(below, scores[positive], "left") + np.searchsorted(below, scores[positive], "right")
    return float(wins.mean() / (2 * len(below)))


def _finding(name: str, what: str, score: float, fake: NDArray[np.bool_], typical: str) -> Iterator[Finding]:
    chance = 0.5 + 1.64 * 0.5 / np.sqrt(min(fake.sum(), (~fake).sum()))
    if score < max(REPORTED, chance):
        return
    detail = f"{what} alone tells fake from authentic: {score:.2f} ({typical})"
    yield Finding(name, detail, len(fake), "error" if score >= GRAVE else "warning")


def _most_frequent(values: NDArray[np.str_]) -> str:
    found, counts = np.unique(values, return_counts=True)
    return str(found[counts.argmax()])
