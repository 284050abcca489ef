"""Studies that are read off one fit: backbones side by side, and labelling schemes side by side."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING

from dlprobe.errors import DataError
from dlprobe.plotting import dots
from dlprobe.studies.designs.base import Findings, StudyKind, register
from dlprobe.studies.results import with_interval

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from matplotlib.axes import Axes

    from dlprobe.studies.designs.workshop import Workshop
    from dlprobe.studies.runs import Run

#: Metrics that such a study shows, before the ``@`` and the grid.
SHOWN = ("iou", "ap", "false_area", "iou_val", "false_area_val")
_COLUMNS = (
    "kind",
    "metric",
    "model",
    "method",
    "scheme",
    "value",
    "low",
    "high",
    "everything",
    "n_sources",
    "n_images",
)


def _backbones(workshop: Workshop) -> Findings:
    asked, caches = workshop.study.options, workshop.caches()
    if len(caches) < 2:
        msg = "a study of backbones compares at least two; add a [[backbones]]"
        raise DataError(msg)
    run = workshop.fit(caches, replace(workshop.study.fit, schemes=(asked.scheme,)), workshop.test_caches())
    return _findings(run, asked.method, "model")


def _labelling(workshop: Workshop) -> Findings:
    if len(workshop.study.fit.schemes) < 2:
        msg = "a study of labelling compares at least two schemes; name them in [fit] schemes"
        raise DataError(msg)
    run = workshop.fit(workshop.caches()[:1], workshop.study.fit, workshop.test_caches()[:1])
    return _findings(run, workshop.study.options.method, "scheme")


def _findings(run: Run, method: str, series: str) -> Findings:
    """Return the rows of one method, and the paired differences between the values of one column."""
    results, comparisons = run.tables["results"], run.tables["comparisons"]
    wanted = (results["method"] == method) & results["metric"].str.split("@").str[0].isin(SHOWN)
    shown = results.loc[wanted, list(_COLUMNS)].reset_index(drop=True)
    pairs = {f"{one} - {other}" for one, other in permutations(dict.fromkeys(shown[series]), 2)}
    between = comparisons[comparisons["comparison"].isin(pairs)].reset_index(drop=True)
    answer = [f"{row.comparison} on {row.kind}: {sentence(row)}" for row in between.itertuples()]
    return Findings({"results": shown, "comparisons": between}, [*answer, *notes(run)], [run.path])


def sentence(row: object) -> str:
    """Return a paired difference in words; `row` is one of a run's comparisons."""
    value = with_interval(row.difference, row.low, row.high, signed=True)  # type: ignore[attr-defined]
    return f"{row.metric} {value}, p {row.p_holm:.3f} after Holm, {row.n_sources} photographs"  # type: ignore[attr-defined]


def notes(run: Run) -> list[str]:
    """Return what a run wants its readers to know."""
    return [str(note) for note in run.record.get("notes", [])]


def main_metric(results: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """Return the rows of the metrics of these names, whatever their grid."""
    return results[results["metric"].str.split("@").str[0].isin(list(names))]


def _plot_by(series: str, tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    rows = main_metric(tables["results"], ("iou", "false_area"))
    rows = rows.assign(row=rows["kind"] + ": " + rows["metric"])
    ax = dots(rows, rows="row", series=series, ax=ax, reference="everything", reference_label="marking everything")
    ax.set_xlabel("mean over photographs with 95 % interval, at the score 0.5")
    return ax


def _plot_models(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    return _plot_by("model", tables, ax)


def _plot_schemes(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    return _plot_by("scheme", tables, ax)


register(StudyKind("backbones", "which backbone shows inpainting best, on the same windows?", _backbones, _plot_models))
register(StudyKind("labelling", "what does it cost to call auto-encoded pixels fake?", _labelling, _plot_schemes))
