"""From statistics that can be computed without some sources to a table with intervals, and its pictures."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dlprobe import plotting
from dlprobe.errors import MetricError, OutputError
from dlprobe.metrics.intervals.studentized import MIN_SOURCES
from dlprobe.publish import publish
from dlprobe.separability.statistics.intervals import (
    difference_interval,
    halves,
    halves_freedom,
    interval,
    jackknife_bias,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dlprobe.separability.maps import PatchMap
    from dlprobe.separability.states import Gaussian

COLUMNS = ("features", "statistic", "classes", "value", "low", "high", "n_sources", "n_patches", "reason")
KEY = ["features", "statistic", "classes"]
TABLE_NAME = "separability.csv"
RECORD_NAME = "separability.json"
_FIXED = "no interval: the directions were given"
#: A bias above this share of the interval's width is said.
_TELLING_BIAS = 0.25


class Meaning(NamedTuple):
    """What a statistic's numbers mean.

    Parameters
    ----------
    words : str
        For the axis of a picture.
    bounds : (float, float)
        Least and greatest value; infinite where there is none.
    chance : float or None
        What two classes that do not differ would get.
    coverage : str
        What its interval is, if it is not one of 95 %.
    """

    words: str
    bounds: tuple[float, float] = (0.0, np.inf)
    chance: float | None = None
    coverage: str = ""


STATISTICS = {
    "lda_accuracy": Meaning("balanced accuracy of LDA on held-out sources", (0, 1), 0.5),
    "fisher_ratio": Meaning("Fisher ratio (between / within scatter)", chance=0.0),
    "mahalanobis": Meaning("Mahalanobis distance of the means", chance=0.0),
    "bhattacharyya": Meaning("Bhattacharyya distance", chance=0.0),
    "silhouette": Meaning("silhouette", (-1, 1), 0.0),
    "silhouette_other_sources": Meaning("silhouette, partners of other sources", (-1, 1), 0.0),
    "knn_purity": Meaning("purity of neighbourhoods", (0, 1), 0.5),
    "knn_purity_other_sources": Meaning("purity, neighbours of other sources", (0, 1), 0.5),
    "effective_rank": Meaning("effective rank", coverage="interval too wide: 96 to 99 % where others cover 95 %"),
    "total_variance": Meaning("total variance"),
    "intrinsic_dimension": Meaning("intrinsic dimension (TwoNN)"),
    "direction_angle_deg": Meaning("angle of probe directions, degrees", (0, 180)),
    "logit_correlation": Meaning(
        "correlation of probes' logits",
        (-1, 1),
        coverage="interval too wide: 96 to 98 % at 16 sources where others cover 95 %",
    ),
    "linear_cka": Meaning("linear CKA", (0, 1)),
}


class Task(NamedTuple):
    """Statistics that are computed together from some groups of sources.

    Parameters
    ----------
    features, classes : str
        What they are about.
    statistics : tuple of str
        Names in `STATISTICS`.
    compute : callable
        Group numbers -> a value for each statistic; may raise `MetricError`.
    n_sources, n_patches : int
        What they rest on.
    reason : str
        Why there is no value (then nothing is computed), or what to know of it.
    fixed : bool
        True if nothing was estimated from sources, so that there is no interval.
    halves : bool
        True if the interval rests on halves of the groups, not on what is left without each.
    """

    features: str
    classes: str
    statistics: tuple[str, ...]
    compute: Callable[[Sequence[int]], Mapping[str, float]] | None
    n_sources: int
    n_patches: int
    reason: str = ""
    fixed: bool = False
    halves: bool = False


class Replicates(NamedTuple):
    """A row of the table with its values in parts of the groups: without each, or in two halves, split by split.

    `freedom` is that of the standard error from these parts.
    """

    row: dict[str, object]
    parts: NDArray[np.float64]
    freedom: float


def measure(task: Task, groups: int, seed: int) -> list[Replicates]:
    """Compute the statistics of a task with every group of sources and in parts of them.

    Parameters
    ----------
    task : Task
    groups : int
        How many groups there are.
    seed : int
        Of the halves.
    """
    everyone = range(groups)
    whole, reason = _attempt(task, everyone)
    unsure = not task.fixed and groups >= MIN_SOURCES and not np.isnan(list(whole.values())).all()
    chosen: list[Sequence[int]] = [[g for g in everyone if g != out] for out in everyone]
    freedom: float = groups - 1
    if task.halves and unsure:
        splits = halves(groups, seed)
        chosen, freedom = [half for split in splits for half in split], halves_freedom(splits)
    values = [_attempt(task, part)[0] for part in chosen] if unsure else []
    found = []
    for name in task.statistics:
        parts = np.array([value[name] for value in values])
        parts = parts.reshape(-1, 2) if task.halves else parts
        low, high, why = _judged(name, whole[name], parts, groups, freedom)
        if np.isnan(whole[name]):
            why = reason or "undefined for these patches"
        else:
            why = "; ".join(part for part in (reason, _FIXED if task.fixed else why) if part)
        numbers = (whole[name], low, high, task.n_sources, task.n_patches, why)
        row = dict(zip(COLUMNS, (task.features, name, task.classes, *numbers), strict=True))
        found.append(Replicates(row, parts, freedom))
    return found


def _judged(
    name: str, value: float, parts: NDArray[np.float64], groups: int, freedom: float
) -> tuple[float, float, str]:
    """Return the ends of the interval of a value, and what there is to know of it."""
    nan = float("nan")
    if groups < MIN_SOURCES:
        return nan, nan, f"no interval: {groups} independent groups of sources, {MIN_SOURCES} are needed"
    if not parts.size or not np.isfinite([value, *parts.flat]).all():
        return nan, nan, f"no interval: undefined {'in half' if parts.ndim > 1 else 'without some'} of the sources"
    low, high = map(float, interval(value, parts, groups, STATISTICS[name].bounds, freedom=freedom))
    notes = [STATISTICS[name].coverage]
    if parts.ndim == 1 and name != "lda_accuracy":
        bias = jackknife_bias(value, parts)
        if abs(bias) > _TELLING_BIAS * (high - low):
            notes.append(f"biased by {bias:+.3g}, more sources would bring it near {_clipped(name, value - bias):.3g}")
    return low, high, "; ".join(note for note in notes if note)


def _clipped(name: str, value: float) -> float:
    low, high = STATISTICS[name].bounds
    return float(min(max(value, low), high))


def _attempt(task: Task, groups: Sequence[int]) -> tuple[dict[str, float], str]:
    nothing = dict.fromkeys(task.statistics, float("nan"))
    if task.compute is None:
        return nothing, task.reason
    try:
        return dict(task.compute(groups)), task.reason
    except MetricError as error:
        return nothing, str(error)


def paired_differences(
    replicates: Iterable[Replicates], pairs: Sequence[tuple[str, str]], groups: int
) -> list[dict[str, object]]:
    """Return rows of the second minus the first features of each pair, on the same parts of the sources."""
    by_key = {tuple(str(item.row[name]) for name in KEY): item for item in replicates}
    rows = []
    for left, right in pairs:
        for (features, statistic, classes), one in by_key.items():
            other = by_key.get((right, statistic, classes))
            if features != left or other is None or one.parts.shape != other.parts.shape or not one.parts.size:
                continue
            sides = np.array([float(str(item.row["value"])) for item in (one, other)])
            estimate, parts = sides[1] - sides[0], np.stack([one.parts, other.parts])
            known = np.isfinite([estimate, *parts.flat]).all()
            bounds, nan = STATISTICS[statistic].bounds, float("nan")
            ends = difference_interval(sides, parts, groups, bounds, freedom=one.freedom) if known else (nan, nan)
            values = (f"{right} - {left}", statistic, classes, estimate, *map(float, ends))
            why = "" if known else "undefined on a side, or without some of the sources"
            rows.append(dict(zip(COLUMNS, (*values, one.row["n_sources"], one.row["n_patches"], why), strict=True)))
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class Separability:
    """How separable provenance classes are in some features.

    Attributes
    ----------
    table : DataFrame
        One row a statistic: ``features`` (backbone and layer; two of them with ``~`` for CKA), ``statistic``,
        ``classes``, ``value``, ``low``, ``high`` (95 % interval over sources), ``n_sources``, ``n_patches``, and
        ``reason``, which says why a value or an interval is missing, and what to know of one that is there.
    differences : DataFrame
        The same columns: paired differences between features of the same windows.
    effects : DataFrame
        Cohen's d of every dimension with its interval, for each pair of classes.
    gaussians : dict of str to dict of str to Gaussian
        Mean and covariance of each class, by features and class.
    maps : list of PatchMap
        Plane maps of the sample.
    notes : list of str
        What a reader must know.
    record : dict
        What the numbers were determined by: ``settings``, ``caches`` with their fingerprints, ``probes``, and whether
        the caches hold the ``same_windows``.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    effects: pd.DataFrame
    gaussians: dict[str, dict[str, Gaussian]] = field(repr=False)
    maps: list[PatchMap] = field(repr=False)
    notes: list[str]
    record: dict[str, Any] = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """Return the table."""
        return self.table

    def plot(self, ax: Axes | None = None, statistic: str = "lda_accuracy") -> Axes:
        """Draw one statistic: a row for each pair of classes, a dot with its interval for each of the features.

        Parameters
        ----------
        ax : Axes, optional
            New ones otherwise.
        statistic : str
            One of the table.

        Returns
        -------
        Axes

        Raises
        ------
        MetricError
            If no row has that statistic.
        """
        rows = self.table[self.table["statistic"] == statistic]
        if rows.empty:
            there = ", ".join(dict.fromkeys(self.table["statistic"]))
            msg = f"no statistic {statistic!r} was measured; there are: {there}"
            raise MetricError(msg)
        meaning = STATISTICS[statistic]
        # CKA stands between features, everything else between or within classes
        place, series = ("features", "classes") if statistic == "linear_cka" else ("classes", "features")
        rows = rows.assign(**{place: rows[place].str.replace(" ~ ", "\n~ ")})
        ax = plotting.dots(rows, rows=place, series=series, ax=ax)
        if meaning.chance is not None:
            ax.axvline(meaning.chance, color="black", linestyle=":", linewidth=1)
        ax.set_xlabel("\n".join([meaning.words, *self._unequal()]))
        return ax

    def _unequal(self) -> list[str]:
        """Return a line on how many windows each cache has where they are not the same ones."""
        sizes = ", ".join(f"{cache['name']} {cache['windows']}" for cache in self.record["caches"])
        return [] if self.record["same_windows"] else [f"not on the same windows: {sizes}"]

    def plot_effects(self, features: str, classes: str, ax: Axes | None = None, *, largest: int = 20) -> Axes:
        """Draw the largest effect sizes of single dimensions for a pair of classes.

        The largest of many are too large: chosen on the same patches, they would be smaller on others.

        Parameters
        ----------
        features, classes : str
            As in `effects`.
        ax : Axes, optional
            New ones otherwise.
        largest : int
            Dimensions to draw.
        """
        rows = self.effects[(self.effects["classes"] == classes) & (self.effects["features"] == features)]
        order = rows["value"].abs().sort_values(ascending=False, kind="stable").index
        ax = plotting.dots(rows.loc[order[:largest]], rows="dimension", series="classes", ax=ax)
        ax.axvline(0, color="black", linestyle=":", linewidth=1)
        ax.set_xlabel(f"Cohen's d, {classes} (above 0: larger in the second), {features}")
        ax.set_ylabel("dimension")
        return ax

    def write(self, out: str | os.PathLike[str]) -> Path:
        """Write tables and pictures into a folder, whole or not at all; return it.

        Parameters
        ----------
        out : path
            A new or empty folder, or one that was written before, which is replaced.

        Raises
        ------
        OutputError
            If something else is there, or it cannot be written.
        """
        target = prepare_folder(out)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with publish(target) as scratch:
                scratch.mkdir()
                self._fill(scratch)
        except OSError as error:
            msg = f"{target} cannot be written ({error.strerror}); give another output folder"
            raise OutputError(msg) from error
        return target

    def _fill(self, folder: Path) -> None:
        record = {**self.record, "notes": self.notes}
        (folder / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        tables = {"separability": self.table, "differences": self.differences, "effects": self.effects}
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)
            table.to_parquet(folder / f"{name}.parquet", index=False)
        arrays = {
            f"{features}/{kind}/{part}": getattr(gaussian, part)
            for features, kinds in self.gaussians.items()
            for kind, gaussian in kinds.items()
            for part in ("mean", "covariance")
        }
        np.savez(folder / "gaussians.npz", **arrays)
        for statistic in dict.fromkeys(self.table["statistic"]):
            if self.table.loc[self.table["statistic"] == statistic, "value"].notna().any():
                (folder / f"{statistic}.png").write_bytes(plotting.png(self.plot(statistic=statistic)))
        pairs = self.effects[["features", "classes"]].drop_duplicates().itertuples(index=False)
        for number, (features, classes) in enumerate(pairs):
            picture = plotting.png(self.plot_effects(features, classes))
            (folder / f"effects-{number}-{classes.replace(' ', '-')}.png").write_bytes(picture)
        for number, drawn in enumerate(self.maps):
            for by in ("class", "source"):
                name = f"{drawn.method}-{number}-{by}.png"
                (folder / name).write_bytes(plotting.png(drawn.plot(by=by)))
        if self.maps:
            pd.concat([drawn.frame() for drawn in self.maps]).to_parquet(folder / "maps.parquet", index=False)


def prepare_folder(out: str | os.PathLike[str]) -> Path:
    """Return the folder that results may be written into; raise `OutputError` if something else is there."""
    target = Path(out).resolve()
    above = next(parent for parent in target.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        msg = f"{target} cannot be written: {above} is {'not writable' if above.is_dir() else 'no folder'}"
        raise OutputError(msg)
    empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not empty and not (target / TABLE_NAME).is_file():
        msg = f"{target} exists and was not written by `dlprobe separate`; give another output folder"
        raise OutputError(msg)
    return target
