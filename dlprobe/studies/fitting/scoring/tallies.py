"""What is added up over all tested images: calibration by bins, and scores of all patches of a variant together."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import pandas as pd
from scipy.special import expit

from dlprobe.data.provenance import VARIANTS
from dlprobe.metrics import (
    Counts,
    LogitHistogram,
    ReliabilityTally,
    ap_bounds,
    auc_bounds,
    best_f1_bounds,
    count,
    f1,
    iou,
    precision,
    recall,
)
from dlprobe.studies.fitting.scoring.columns import HALF

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from dlprobe.studies.fitting.scoring.columns import Column

#: The method that marks every patch.
EVERYTHING = "everything"
#: Of the score, in the table of calibration.
CALIBRATION_BINS = 10
#: Of the score, for the expected calibration error.
ERROR_BINS = 15
#: In place of a variant: all tested images together.
ALL_VARIANTS = "all"
#: Scores of what is marked, by the functions of counts that they are.
DECISIONS = {"iou": iou, "f1": f1, "precision": precision, "recall": recall}


class Units(NamedTuple):
    """The patches or pixels of an image that count, as one column scores them.

    Parameters
    ----------
    logits : ndarray of float32, shape (n,)
    truth : ndarray of bool, shape (n,)
        What is INPAINTED.
    variant, source : str
        Of the image.
    """

    logits: NDArray[np.float32]
    truth: NDArray[np.bool_]
    variant: str
    source: str


class Tally(Protocol):
    """Is told the units of every tested image."""

    def add(self, column: Column, units: Units) -> None:
        """Count the units of an image."""
        ...

    def close(self) -> None:
        """Take note that all images of a fold have been told."""
        ...


class Calibration:
    """How often what a score calls probable is INPAINTED, by method and scheme; seeds are counted together."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], ReliabilityTally] = {}

    def add(self, column: Column, units: Units) -> None:
        """Count the units of an image of one source."""
        tally = self._tallies.setdefault((column.method, column.scheme), ReliabilityTally(bins=CALIBRATION_BINS))
        tally.add(expit(units.logits.astype(np.float64)), units.truth, units.source)

    def close(self) -> None:
        """Nothing: scores of all folds are added up."""

    def frame(self) -> pd.DataFrame:
        """Return one row per ``method``, ``scheme`` and bin: see `dlprobe.metrics.Reliability`."""
        tables = [
            tally.curve().table.assign(method=method, scheme=scheme)
            for (method, scheme), tally in self._tallies.items()
        ]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


class Pooled:
    """Scores of all units of a variant together, and of all variants, by method and scheme.

    Decisions, likelihoods and bins of the score add over folds and seeds. Logits of different probes do not compare, so
    that rankings are made within each fold and seed, and their bounds are averaged.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[Column, str], _Units] = {}
        self._rows: dict[tuple[str, str, str], _Row] = {}

    def add(self, column: Column, units: Units) -> None:
        """Count the units of an image."""
        self._open.setdefault((column, units.variant), _Units()).add(column, units)

    def close(self) -> None:
        """Rank the units of the fold that ends, and keep what adds."""
        columns = dict.fromkeys(column for column, _ in self._open)
        for column in columns:
            parts = {variant: each for (owner, variant), each in self._open.items() if owner is column}
            for variant, each in {**parts, ALL_VARIANTS: _merged(parts.values())}.items():
                self._rows.setdefault((column.method, column.scheme, variant), _Row()).add(column, each)
        self._open.clear()

    def frame(self) -> pd.DataFrame:
        """Return one row per ``method``, ``scheme`` and ``variant``, and those of marking everything.

        Returns
        -------
        DataFrame
            ``n`` units and the ``share`` of INPAINTED among them; ``auc`` and ``ap``, in the middle of the bounds
            ``auc_low`` to ``auc_high`` and ``ap_low`` to ``ap_high``; ``iou``, ``f1``, ``precision`` and ``recall`` at
            the score 0.5 and, with the suffix ``_val``, at the threshold chosen on validation; ``best_f1_oracle``,
            whose threshold was chosen on the tested units; ``ece`` and ``nll`` of the scores, ``temperature`` (the
            median of those chosen on validation) and ``nll_tempered``, with logits divided by them.
        """
        order = {variant: place for place, variant in enumerate((*VARIANTS, ALL_VARIANTS))}
        rows = sorted(self._rows.items(), key=lambda item: order[item[0][2]])
        of_variant = {variant: row for (_, _, variant), row in rows}
        records = [{**_key(EVERYTHING, "", name), **row.scores_of_everything()} for name, row in of_variant.items()]
        for method in dict.fromkeys((method, scheme) for method, scheme, _ in self._rows):
            records += [{**_key(*key), **row.scores()} for key, row in rows if key[:2] == method]
        return pd.DataFrame.from_records(records)


def _key(method: str, scheme: str, variant: str) -> dict[str, str]:
    return {"method": method, "scheme": scheme, "variant": variant}


class _Units:
    """Sums over the units of one column and variant."""

    def __init__(self) -> None:
        self.histogram = LogitHistogram(1)
        self.half, self.val = Counts(), Counts()
        self.gaps = np.zeros(ERROR_BINS)
        self.losses = np.zeros(2)

    def add(self, column: Column, units: Units) -> None:
        z, truth = units.logits.astype(np.float64), units.truth
        self.histogram.add(units.logits, truth)
        self.half = self.half.merge(count(units.logits >= HALF, truth))
        self.val = self.val.merge(count(units.logits >= column.threshold, truth))
        scores = expit(z)
        places = np.minimum((scores * ERROR_BINS).astype(np.intp), ERROR_BINS - 1)
        self.gaps += np.bincount(places, truth - scores, minlength=ERROR_BINS)
        margins = np.where(truth, z, -z)
        self.losses += [np.logaddexp(0, -margins / scale).sum() for scale in (1.0, column.temperature)]


def _merged(parts: Iterable[_Units]) -> _Units:
    whole = _Units()
    for part in parts:
        whole.histogram = whole.histogram.merge(part.histogram)
        whole.half, whole.val = whole.half.merge(part.half), whole.val.merge(part.val)
        whole.gaps += part.gaps
        whole.losses += part.losses
    return whole


class _Row:
    """Sums and rankings over the folds and seeds of a method, scheme and variant."""

    def __init__(self) -> None:
        self.half, self.val = Counts(), Counts()
        self.gaps = np.zeros(ERROR_BINS)
        self.losses = np.zeros(2)
        self.seeds: set[int] = set()
        self.temperatures: list[float] = []
        self.ranks: list[tuple[float, ...]] = []

    def add(self, column: Column, units: _Units) -> None:
        self.half, self.val = self.half.merge(units.half), self.val.merge(units.val)
        self.gaps += units.gaps
        self.losses += units.losses
        self.seeds.add(column.seed)
        self.temperatures.append(column.temperature * column.divisor)
        found = auc_bounds(units.histogram), ap_bounds(units.histogram), best_f1_bounds(units.histogram)
        self.ranks.append((*(float(end[0]) for bounds in found[:2] for end in bounds), float(found[2].low[0])))

    def scores(self) -> dict[str, float]:
        auc_low, auc_high, ap_low, ap_high, best = (_mean(values) for values in zip(*self.ranks, strict=True))
        nll, tempered = self.losses / self.half.size
        return {
            **self._size(),
            "auc": (auc_low + auc_high) / 2,
            "auc_low": auc_low,
            "auc_high": auc_high,
            "ap": (ap_low + ap_high) / 2,
            "ap_low": ap_low,
            "ap_high": ap_high,
            **_decided(self.half, ""),
            **_decided(self.val, "_val"),
            "best_f1_oracle": best,
            "ece": float(np.abs(self.gaps).sum() / self.half.size),
            "nll": float(nll),
            "temperature": float(np.median(self.temperatures)),
            "nll_tempered": float(tempered),
        }

    def scores_of_everything(self) -> dict[str, float]:
        positives = self.half.tp + self.half.fn
        marked = Counts(tp=positives, fp=self.half.size - positives)
        ap = precision(marked) if positives else float("nan")
        auc = 0.5 if 0 < positives < self.half.size else float("nan")
        ranked = {"auc": auc, "auc_low": auc, "auc_high": auc, "ap": ap, "ap_low": ap, "ap_high": ap}
        return {**self._size(), **ranked, **_decided(marked, ""), **_decided(marked, "_val")}

    def _size(self) -> dict[str, float]:
        return {"n": self.half.size // len(self.seeds), "share": (self.half.tp + self.half.fn) / self.half.size}


def _decided(counts: Counts, suffix: str) -> dict[str, float]:
    """Return the scores of decisions; NaN where there is nothing to find, for every method alike."""
    something = counts.tp + counts.fn > 0
    return {f"{name}{suffix}": score(counts) if something else float("nan") for name, score in DECISIONS.items()}


def _mean(values: Iterable[float]) -> float:
    """Return the mean over the folds in which a score is defined."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
