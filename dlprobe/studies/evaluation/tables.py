"""From rows to the table of results: every kind of image, every yardstick, intervals by source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dlprobe.metrics import aggregate, aggregate_intervals, bootstrap_mean, holm, paired_difference, source_means
from dlprobe.metrics.intervals.studentized import MIN_SOURCES
from dlprobe.metrics.protocols.averages import Tally, Whole
from dlprobe.studies.evaluation.settings import OWN_PROTOCOL
from dlprobe.studies.evaluation.subjects import SIZE_BINS
from dlprobe.studies.results import AUTHENTIC_VARIANTS, FAKE_VARIANTS, told_losses, with_interval

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dlprobe.metrics import Interval, PairedDifference
    from dlprobe.metrics.protocols.averages import Average
    from dlprobe.studies.evaluation.scoring import Scored
    from dlprobe.studies.evaluation.settings import EvaluateSettings, Yardstick

#: The kind that holds every fake and every photograph as it was taken, as published tables average.
EVERYTHING_KIND = "all"
#: What counts as authentic beside fakes; `ae` and `aesp` are shown apart.
AUTHENTIC = "real"
#: By which columns a variant is broken down.
BREAKDOWN = ("generator", "mask_kind", "mask_size")
_BIN_ORDER = {name: position for position, (_, name) in enumerate(SIZE_BINS)}
#: When a kind counts as not surely won, in words.
_NOT_SURE = (
    f"the difference, or its interval where {MIN_SOURCES} photographs give one, unadjusted and each kind's own, "
    "reaches to 0 or below"
)
#: Beginnings of the names of metrics that look for the best threshold on the very images that they score.
_ORACLES = ("oracle_", "best_f1")


def kinds(frame: pd.DataFrame) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield every kind of image with its rows: all, each variant, each of its generators, mask kinds and mask sizes."""
    variants = [name for name in (*FAKE_VARIANTS, *AUTHENTIC_VARIANTS) if (frame["variant"] == name).any()]
    if any(name in FAKE_VARIANTS for name in variants):
        yield EVERYTHING_KIND, frame["variant"].isin((*FAKE_VARIANTS, AUTHENTIC)).to_numpy()
    for variant in variants:
        rows = (frame["variant"] == variant).to_numpy()
        yield variant, rows
        for column in BREAKDOWN:
            names = sorted(frame.loc[rows, column].unique(), key=lambda name: (_BIN_ORDER.get(name, 0), name))
            if len(names) > 1:
                for name in names:
                    yield f"{variant} {name or '(none)'}", rows & (frame[column] == name).to_numpy()


def is_fake_kind(kind: str) -> bool:
    """Return whether a kind holds images with a region to find."""
    return kind.split(" ", maxsplit=1)[0] in {EVERYTHING_KIND, *FAKE_VARIANTS}


def results_table(scored: Scored, yardsticks: list[Yardstick], settings: EvaluateSettings) -> pd.DataFrame:
    """Return each kind's numbers under each yardstick, in long form.

    Parameters
    ----------
    scored : Scored
        Clean images.
    yardsticks : list of Yardstick
        By which they were scored.
    settings : EvaluateSettings
        Level, resamples and seed of the intervals.

    Returns
    -------
    DataFrame
        Columns ``kind``, ``protocol`` (the label), ``grid``, ``metric`` (the full name), ``value``, ``low``, ``high``
        (nan below 8 sources), ``everything`` (what marking every pixel gets there), ``oracle``, ``threshold``,
        ``n_sources`` and ``n_images``.

    Notes
    -----
    Scores of images (AUC) set the fakes of a kind against `real`. Protocols that average all images do so for the kind
    ``all``; for another they average its own images.
    """
    authentic = (scored.frame["variant"] == AUTHENTIC).to_numpy()
    records = []
    for kind, chosen in kinds(scored.frame):
        own = scored.select(chosen)
        joined = scored.select(chosen | authentic) if is_fake_kind(kind) else own
        for yardstick in yardsticks:
            records += _records(kind, own, own if yardstick.protocol.images == "all" else joined, yardstick, settings)
    return pd.DataFrame.from_records(records)


def comparisons_table(scored: Scored, yardsticks: list[Yardstick], settings: EvaluateSettings) -> pd.DataFrame:
    """Return by how much each kind of fake beats marking everything: paired by source, adjusted by Holm.

    Parameters
    ----------
    scored : Scored
        Clean images.
    yardsticks : list of Yardstick
        Each by its headline metric.
    settings : EvaluateSettings
        Level, resamples and seed.
    """
    records = []
    for yardstick in yardsticks:
        gains = scored.beyond_everything(yardstick.label, yardstick.headline)
        for kind, chosen in kinds(scored.frame):
            if not is_fake_kind(kind) or kind == EVERYTHING_KIND:
                continue
            found = difference(gains[chosen], scored.frame.loc[chosen, "source_id"], settings)
            records.append(
                {
                    "protocol": yardstick.label,
                    "kind": kind,
                    "metric": yardstick.column(yardstick.headline),
                    "difference": found.estimate,
                    "low": found.low,
                    "high": found.high,
                    "p": found.p,
                    "n_sources": found.n,
                }
            )
    table = pd.DataFrame.from_records(records)
    return table.assign(p_holm=holm(table["p"].to_numpy())) if len(table) else table


def lost_kinds(comparisons: pd.DataFrame) -> list[str]:
    """Return a line for each protocol that has kinds in which the probe does not surely beat marking everything.

    Surely: the interval of the difference lies above 0; where there are too few sources for one, the difference does.
    Of all protocols but the first only whole variants are looked at; the table has the rest.
    """
    if comparisons.empty:
        return []
    shown = (comparisons["protocol"] == comparisons["protocol"].iloc[0]) | ~comparisons["kind"].str.contains(" ")
    table = comparisons[shown]
    lost, counts = table[~(table["low"].fillna(table["difference"]) > 0)], table.groupby("protocol").size()
    return [
        f"protocol {protocol}: {told_losses(part, counts[protocol], _NOT_SURE)}"
        for protocol, part in lost.groupby("protocol", sort=False)
    ]


def overview(results: pd.DataFrame, yardsticks: list[Yardstick]) -> pd.DataFrame:
    """Return the table that people read first: one row a kind and number, beside what marking everything gets.

    Of the kinds ``all`` and variants every protocol's headline is shown, with the first protocol's further numbers; of
    finer kinds the first protocol's headline.
    """
    cells = {(row.kind, row.metric): row for row in results.itertuples()}
    rows = []
    for kind in dict.fromkeys(results["kind"]):
        whole = " " not in kind
        for position, yardstick in enumerate(yardsticks):
            if position and not whole:
                break
            for metric in _shown(yardstick, is_fake_kind(kind), whole=whole and not position):
                cell = cells.get((kind, yardstick.column(metric)))
                if cell is not None and not np.isnan(cell.value):
                    rows.append(
                        {
                            "kind": kind,
                            "metric": cell.metric + (" (oracle)" if cell.oracle else ""),
                            "images": cell.n_images,
                            "sources": cell.n_sources,
                            "everything": with_interval(cell.everything, np.nan, np.nan),
                            "value": with_interval(cell.value, cell.low, cell.high),
                        }
                    )
    return pd.DataFrame.from_records(rows)


def _shown(yardstick: Yardstick, fake: bool, *, whole: bool) -> tuple[str, ...]:
    """Return the numbers of a protocol that the first table shows of a kind."""
    if yardstick.protocol.name != OWN_PROTOCOL:
        return (yardstick.headline,) if fake else ()
    if not fake:
        return "false_area", "image_fpr"
    more = ("f1_macro", "ap_macro", "image_auc", "oracle_best_f1_macro") if whole else ()
    return f"{yardstick.headline}_macro", *more


def mean_by_source(values: NDArray[np.float64], sources: pd.Series, settings: EvaluateSettings) -> Interval:
    """Return the mean over sources of each source's mean, with its interval within [0, 1]."""
    return bootstrap_mean(
        _by_source(values, sources),
        level=settings.level,
        resamples=settings.resamples,
        seed=settings.seed,
        bounds=(0, 1),
    )


def difference(values: NDArray[np.float64], sources: pd.Series, settings: EvaluateSettings) -> PairedDifference:
    """Return the mean over sources of differences within [-1, 1], with its interval and sign-flip p."""
    found = _by_source(values, sources)
    return paired_difference(
        dict.fromkeys(found, 0.0),
        found,
        level=settings.level,
        resamples=settings.resamples,
        seed=settings.seed,
        bounds=(-1, 1),
    )


def _columns(table: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    return {str(name): column.to_numpy(np.float64) for name, column in table.items()}


def _by_source(values: NDArray[np.float64], sources: pd.Series) -> dict[str, float]:
    return source_means(values, sources.to_numpy(dtype=str))


def _records(
    kind: str, own: Scored, joined: Scored, yardstick: Yardstick, settings: EvaluateSettings
) -> list[dict[str, object]]:
    label, name = yardstick.label, yardstick.protocol.name
    rows, names = _columns(joined.rows[label]), joined.frame["source_id"].to_numpy(dtype=str)
    values, everything = aggregate(rows, name), aggregate(_columns(joined.everything[label]), name)
    n_sources = own.frame["source_id"].nunique()
    intervals = aggregate_intervals(
        rows, names, name, level=settings.level, resamples=settings.resamples, seed=settings.seed
    )
    records: list[dict[str, object]] = []
    for metric, average in yardstick.protocol.averages.items():
        if not _belongs(kind, metric, average):
            continue
        interval = intervals.get(metric)
        records.append(
            {
                "kind": kind,
                "protocol": label,
                "grid": yardstick.protocol.grid,
                "metric": yardstick.column(metric),
                "value": values[metric],
                "low": interval.low if interval else float("nan"),
                "high": interval.high if interval else float("nan"),
                "everything": everything[metric],
                "oracle": metric.startswith(_ORACLES),
                "threshold": yardstick.threshold,
                "n_sources": n_sources,
                "n_images": len(own.frame),
            }
        )
    return records


def _belongs(kind: str, metric: str, average: Average) -> bool:
    """Return whether a number says something of a kind: those over fakes of fakes, those over others of others."""
    if isinstance(average, Tally):
        return metric == "skipped" and is_fake_kind(kind)
    if metric.startswith("predict_everything_"):
        return False  # it stands in a column of its own
    if isinstance(average, Whole):
        return is_fake_kind(kind)
    over = getattr(average, "over", "all")
    return over == "all" or (over == "fake") == is_fake_kind(kind)
