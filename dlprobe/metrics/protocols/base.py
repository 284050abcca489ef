"""What a protocol is, and the checks that all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from dlprobe.errors import MetricError
from dlprobe.metrics.counts import Counts
from dlprobe.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dlprobe.metrics.protocols.averages import Average

Grid = Literal["original_px", "input_px"]


class Pair(NamedTuple):
    """A checked score map and its truth, flat, without what is ignored.

    Parameters
    ----------
    score : ndarray of float, shape (n,)
        In [0, 1]; 8-bit maps were divided by 255.
    truth : ndarray of bool, shape (n,)
        True where inpainted.
    mask : ndarray of bool, shape (h, w)
        The whole truth, for border rules.
    kept : ndarray of bool, shape (h, w)
        False where ignored.
    """

    score: NDArray[np.floating]
    truth: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    kept: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A published way to score maps, as data and as two functions.

    Parameters
    ----------
    name : str
        Under which it is registered.
    grid : {"original_px", "input_px"}
        Pixels of the image as it is on disk, or of what the network was given.
    comparison : {">", ">="}
        How a score is compared to the threshold; they differ on hard 0/1 maps and where a score is exactly on it.
    images : {"all", "fake", "all, apart"}
        Which images count: all together, those with a mask only, or both groups in columns of their own.
    average : str
        How images become one number, in words; `averages` in data.
    permutation : str
        Where the better of the map and its inverse counts, which makes an all-wrong map score like a right one.
    border : str
        Which pixels near the mask's edge are left out.
    all_pristine : str
        What an image without a mask scores, with and without false alarms.
    source : str
        Where the formulas were read.
    score_map : callable
        ``(pair, threshold) -> dict``: one image's metrics.
    averages : mapping of str to Average
        How images become the numbers of a table.
    """

    name: str
    grid: Grid
    comparison: Literal[">", ">="]
    images: str
    average: str
    permutation: str
    border: str
    all_pristine: str
    source: str
    score_map: Callable[[Pair, float], dict[str, float]]
    averages: Mapping[str, Average]

    def column(self, metric: str) -> str:
        """Return a metric's full name: protocol, grid and metric, such as ``tgif.original_px.f1``."""
        return f"{self.name}.{self.grid}.{metric}"


#: Protocols by name; other packages announce theirs in the entry-point group.
PROTOCOLS: Registry[Protocol] = Registry("protocol", group="dlprobe.protocols")


def register(protocol: Protocol) -> Protocol:
    """Register a protocol under its own name and return it."""
    return PROTOCOLS.register(protocol.name)(protocol)


def check_pair(score: NDArray[np.generic], mask: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None) -> Pair:
    """Check a score map and a mask, and flatten them.

    Raises
    ------
    MetricError
        If the shapes differ or are not two-dimensional, the mask is not boolean, the map is neither 8-bit, boolean nor
        floating in [0, 1], or nothing is left to score.
    """
    if score.ndim != 2 or score.shape != mask.shape:
        msg = f"score map has shape {score.shape} and mask {mask.shape}; bring both to one two-dimensional grid first"
        raise MetricError(msg)
    if mask.dtype != np.bool_:
        msg = f"mask has type {mask.dtype} where bool is needed; compare it to a provenance class or a level first"
        raise MetricError(msg)
    kept = np.ones(mask.shape, np.bool_) if ignore is None else ~np.broadcast_to(ignore, mask.shape)
    if not kept.any():
        msg = "no pixel is left to score: the map is empty or everything is ignored; leave this image out"
        raise MetricError(msg)
    unit = _unit(score)
    return Pair(unit.ravel(), mask.ravel(), mask, kept) if kept.all() else Pair(unit[kept], mask[kept], mask, kept)


def confusion(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Counts:
    """Count agreements of two flat boolean arrays."""
    tp = int(np.count_nonzero(prediction & truth))
    fp, fn = int(np.count_nonzero(prediction)) - tp, int(np.count_nonzero(truth)) - tp
    return Counts(tp, fp, fn, truth.size - tp - fp - fn)


def everything(counts: Counts) -> Counts:
    """Return the counts of a map that marks every pixel of the same truth."""
    return Counts(counts.tp + counts.fn, counts.fp + counts.tn, 0, 0)


def shares(counts: Counts) -> dict[str, float]:
    """Return the columns that every protocol's rows carry: counts, and shares of mask and marked area."""
    named = {name: float(value) for name, value in counts._asdict().items()}
    mask, marked = counts.tp + counts.fn, counts.tp + counts.fp
    return {**named, "mask_share": mask / counts.size, "marked_share": marked / counts.size}


def _unit(score: NDArray[np.generic]) -> NDArray[np.floating]:
    if score.dtype == np.uint8:
        return score.astype(np.float64) / 255
    if score.dtype == np.bool_:
        return score.astype(np.float32)
    if not np.issubdtype(score.dtype, np.floating):
        msg = f"score map has type {score.dtype}; pass 8-bit levels, or floats in [0, 1]"
        raise MetricError(msg)
    if not (score.min() >= 0 and score.max() <= 1):
        msg = f"scores run from {score.min():g} to {score.max():g}, not within [0, 1]; pass the score map, not logits"
        raise MetricError(msg)
    if score.dtype.itemsize > 4:
        return score.astype(np.float64, copy=False)
    return score.astype(np.float32, copy=False)
