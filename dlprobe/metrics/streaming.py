"""Ranking metrics of scores too many to keep: histograms on the logit, with bounds that hold the exact value.

A logit is counted under the float16 number that it rounds to. Rounding never swaps two numbers, so the order of bins
is exact and only the order within a bin is unknown: each bound takes the worst or the best order there is. The sigmoid
would not do, since it saturates under a Dice objective and puts most pixels into one bin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import digamma

from dlprobe.errors import MetricError
from dlprobe.metrics.counts import Counts

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

CODES = 65_536
#: By this much bounds are widened, so that rounding in them, or in the exact value, cannot put it outside.
SLACK = 1e-12
#: Above it, the sum of reciprocals is bounded by a logarithm: digamma's rounding would count, and the gap does not.
_LARGE = 1e4
#: Rows whose codes are made at a time.
_TILE_ROWS = 1024


class Bounds(NamedTuple):
    """What a metric is at least and at most, one number a head.

    Parameters
    ----------
    low, high : ndarray of float, shape (heads,)
        nan where the metric is not defined.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]


class LogitHistogram:
    """How many positives and negatives have each of the 65,536 logits that float16 knows, for many heads at once.

    Parameters
    ----------
    heads : int
        Columns of the logits; half a megabyte each.

    Attributes
    ----------
    counts : ndarray of uint32 or uint64, shape (heads, 65536, 2)
        Negatives and positives by rising logit.
    """

    def __init__(self, heads: int = 1) -> None:
        self.counts: NDArray[np.uint32] | NDArray[np.uint64] = np.zeros((heads, CODES, 2), np.uint32)
        self._rows = 0

    @property
    def heads(self) -> int:
        """How many heads are counted."""
        return len(self.counts)

    def add(self, logits: ArrayLike, truth: ArrayLike, ignore: ArrayLike | None = None) -> None:
        """Count more logits.

        Parameters
        ----------
        logits : array_like of float, shape (n, heads), or (n,) for one head
            Any monotone score will do, but probabilities near 1 share bins. Blocks of a thousand rows are fastest.
        truth : array_like of bool, shape (n,) or (n, heads)
            One truth for all heads, or each head's own.
        ignore : array_like of bool, shape (n,) or (n, heads), optional
            What is not counted.

        Raises
        ------
        MetricError
            If shapes do not fit, or a logit is nan.
        """
        columns = np.asarray(logits)
        columns = columns[:, None] if columns.ndim == 1 else columns
        labels = _columns(truth, columns, "truth")
        ignored = None if ignore is None else _columns(ignore, columns, "ignore")
        if columns.ndim != 2 or columns.shape[1] != self.heads:
            msg = f"logits have shape {columns.shape}, this histogram counts {self.heads} heads; pass (n, {self.heads})"
            raise MetricError(msg)
        if np.isnan(columns).any():
            msg = f"{int(np.isnan(columns).sum())} logits are nan; leave out the heads or rows that are broken"
            raise MetricError(msg)
        self._make_room(len(columns))
        one = self.counts.dtype.type(1)
        for head, codes in enumerate(_codes_by_head(columns)):
            bins = codes.astype(np.intp) * 2 + labels[:, head]
            if ignored is not None:
                bins = bins[~ignored[:, head]]
            np.add.at(self.counts[head].reshape(-1), bins, one)

    def merge(self, other: LogitHistogram) -> LogitHistogram:
        """Return the histogram of both together; raise `MetricError` if the heads differ in number."""
        if self.heads != other.heads:
            msg = f"histograms of {self.heads} and {other.heads} heads cannot be merged; merge the same heads"
            raise MetricError(msg)
        merged = LogitHistogram(0)
        merged.counts = self.counts.copy()
        merged._rows = self._rows
        merged._make_room(other._rows)
        merged.counts += other.counts.astype(merged.counts.dtype)
        return merged

    def counts_at(self, logit: float | NDArray[np.float64] = 0.0) -> list[Counts]:
        """Return the confusion counts of ``logits >= logit`` for each head.

        Parameters
        ----------
        logit : float or ndarray of shape (heads,)
            Exact at 0 and at the thresholds of `best_f1_thresholds`; another threshold is taken down to the least
            logit that shares its bin.
        """
        first = logit_codes(np.broadcast_to(np.asarray(logit, np.float64), (self.heads,)))
        found = []
        for head, code in enumerate(first):
            below, above = self.counts[head, :code].sum(axis=0), self.counts[head, code:].sum(axis=0)
            found.append(Counts(int(above[1]), int(above[0]), int(below[1]), int(below[0])))
        return found

    def points(self, head: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
        """Return the logits of a head as float16 rounded them, their truth, and how often each occurs."""
        codes, truth = np.nonzero(self.counts[head])
        return _values(codes), truth > 0, self.counts[head][codes, truth].astype(np.float64)

    def _make_room(self, rows: int) -> None:
        self._rows += rows
        if self._rows > np.iinfo(np.uint32).max and self.counts.dtype == np.uint32:
            self.counts = self.counts.astype(np.uint64)


class _Bins(NamedTuple):
    """The occupied bins of a head by falling logit, with what lies above each."""

    codes: NDArray[np.intp]
    positives: NDArray[np.float64]
    negatives: NDArray[np.float64]
    positives_above: NDArray[np.float64]
    negatives_above: NDArray[np.float64]

    @property
    def all_positives(self) -> float:
        return float(self.positives.sum())

    @property
    def all_negatives(self) -> float:
        return float(self.negatives.sum())


def auc_bounds(histogram: LogitHistogram) -> Bounds:
    """Return bounds of each head's ROC-AUC: pairs within a bin count 0, or 1; nan if a class is missing."""

    def bounds(bins: _Bins) -> tuple[float, float]:
        pairs = bins.all_positives * bins.all_negatives
        if not pairs:
            return float("nan"), float("nan")
        return (
            float(bins.negatives @ bins.positives_above / pairs),
            float(bins.negatives @ (bins.positives_above + bins.positives) / pairs),
        )

    return _each(histogram, bounds)


def ap_bounds(histogram: LogitHistogram) -> Bounds:
    """Return bounds of each head's average precision; nan without positives.

    Notes
    -----
    At best a bin's positives are tied above its negatives: each has precision (T + p) / (T + p + F), where T and F
    are the positives and negatives of higher bins. At worst its n negatives come first and then the positives one by
    one: the sum over j = 1..p of (T + j) / (T + j + F + n).
    """

    def bounds(bins: _Bins) -> tuple[float, float]:
        p, hits, misses = bins.positives, bins.positives_above, bins.negatives_above
        total = bins.all_positives
        if not total:
            return float("nan"), float("nan")
        high = np.divide(p * (hits + p), hits + p + misses, out=np.zeros_like(p), where=p > 0)
        low = p - (misses + bins.negatives) * _reciprocals(hits + misses + bins.negatives, p)
        return float(low.sum() / total), float(high.sum() / total)

    return _each(histogram, bounds)


def best_f1_bounds(histogram: LogitHistogram) -> Bounds:
    """Return bounds of each head's best F1 over all thresholds; nan without positives.

    Notes
    -----
    The lower one is reached, by `best_f1_thresholds` without limits: the edge of a bin is a threshold. At best a
    threshold within a bin has all its positives and none of its negatives.
    """

    def bounds(bins: _Bins) -> tuple[float, float]:
        if not bins.all_positives:
            return float("nan"), float("nan")
        hits = bins.positives_above + bins.positives
        high = 2 * hits / (hits + bins.negatives_above + bins.all_positives)
        return float(_edge_f1(bins).max()), float(high.max())

    return _each(histogram, bounds)


def best_f1_thresholds(histogram: LogitHistogram, limits: ArrayLike = np.inf) -> NDArray[np.float64]:
    """Return the logit from which on (``logit >= threshold``) each head has its best F1.

    Parameters
    ----------
    histogram : LogitHistogram
        Of the heads.
    limits : array_like of float, shape (heads,), or one number
        Only thresholds within this distance of 0 count. Without it the F1 is the lower one of `best_f1_bounds`.

    Returns
    -------
    ndarray of float, shape (heads,)
        The highest one if there are several; nan without positives. Exact for logits of float16 and float32:
        `LogitHistogram.counts_at` has the counts that it reaches.
    """
    found = np.full(histogram.heads, np.nan)
    for head, limit in enumerate(np.broadcast_to(np.asarray(limits, np.float64), (histogram.heads,))):
        bins = _bins(histogram, head)
        if bins.all_positives:
            codes, scores = _edges_within(bins, limit)
            found[head] = _least_logit(int(codes[int(np.argmax(scores))]))
    return found


def _edges_within(bins: _Bins, limit: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the bins whose lower edges are thresholds that tell logits apart, falling, and the F1 of each."""
    scores = _edge_f1(bins)
    if np.isinf(limit):
        return bins.codes, scores
    first, last = int(logit_codes(-limit)), int(logit_codes(limit))
    first += _least_logit(first) < -limit
    inside = (bins.codes >= first) & (bins.codes <= last)
    codes, scores = bins.codes[inside], scores[inside]
    if codes[:1].tolist() == [last]:
        return codes, scores
    beyond = bins.codes > last
    hits, marked = bins.positives[beyond].sum(), (bins.positives + bins.negatives)[beyond].sum()
    return np.append(last, codes), np.append(2 * hits / (marked + bins.all_positives), scores)


def logit_codes(logits: ArrayLike) -> NDArray[np.uint16]:
    """Return the bin of each logit: the bits of its float16 rounding, turned so that they rise with it.

    Notes
    -----
    Equal logits share a bin, and a greater one never has a lower bin: IEEE rounding is monotone, and -0.0, which
    equals 0.0, is made 0.0 first. Beyond 65,520 all share the bin of infinity.
    """
    with np.errstate(over="ignore"):
        bits = (np.asarray(logits) + np.float16(0)).astype(np.float16).view(np.int16)
    return (bits ^ ((bits >> 15) | np.int16(-0x8000))).view(np.uint16)


def _codes_by_head(columns: NDArray[np.generic]) -> NDArray[np.uint16]:
    """Return the codes of logits (n, heads) as (heads, n), by tiles that stay near the processor."""
    codes = np.empty(columns.shape[::-1], np.uint16)
    for start in range(0, len(columns), _TILE_ROWS):
        tile = columns[start : start + _TILE_ROWS]
        codes[:, start : start + len(tile)] = logit_codes(tile).T
    return codes


def _least_logit(code: int) -> float:
    """Return the least float32 that `logit_codes` puts into a bin."""
    if code == int(logit_codes(-np.inf)):
        return float("-inf")
    middle = np.float32(_values(np.array([code - 1, code])).mean())
    return float(middle if logit_codes(middle) == code else np.nextafter(middle, np.float32(np.inf)))


def _values(codes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the float16 of each code, and for infinity the number that would follow the greatest one."""
    bits = np.where(codes & 0x8000, codes & 0x7FFF, ~codes & 0xFFFF).astype(np.uint16)
    return np.clip(bits.view(np.float16).astype(np.float64), -65_536.0, 65_536.0)


def _edge_f1(bins: _Bins) -> NDArray[np.float64]:
    hits = bins.positives_above + bins.positives
    return 2 * hits / (hits + bins.negatives_above + bins.negatives + bins.all_positives)


def _reciprocals(start: NDArray[np.float64], terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of 1 / (start + j) for j = 1..terms, or a little more.

    The reciprocal is convex, so a term is at most its mean over the unit interval around it.
    """
    exact = digamma(np.minimum(start, _LARGE) + terms + 1) - digamma(np.minimum(start, _LARGE) + 1)
    return np.where(start < _LARGE, exact, np.log1p(terms / (start + 0.5)))


def _bins(histogram: LogitHistogram, head: int) -> _Bins:
    counts = histogram.counts[head]
    codes = np.flatnonzero(counts.any(axis=1))[::-1]
    negatives, positives = counts[codes].T.astype(np.float64)
    return _Bins(codes, positives, negatives, np.cumsum(positives) - positives, np.cumsum(negatives) - negatives)


def _each(histogram: LogitHistogram, bounds: Callable[[_Bins], tuple[float, float]]) -> Bounds:
    found = np.array([bounds(_bins(histogram, head)) for head in range(histogram.heads)]).reshape(-1, 2)
    return Bounds(np.maximum(found[:, 0] - SLACK, 0.0), np.minimum(found[:, 1] + SLACK, 1.0))


def _columns(labels: ArrayLike, logits: NDArray[np.generic], name: str) -> NDArray[np.bool_]:
    array = np.asarray(labels).astype(np.bool_)
    array = array[:, None] if array.ndim == 1 else array
    if len(array) != len(logits) or array.shape[1] not in {1, logits.shape[-1]}:
        msg = f"{name} has shape {np.shape(labels)} and logits {logits.shape}; pass one row of {name} a row of logits"
        raise MetricError(msg)
    return np.broadcast_to(array, logits.shape)
