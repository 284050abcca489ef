"""Studies that are read off one fit: backbones side by side, and labelling schemes side by side."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from typing import TYPE_CHECKING

import pandas as pd

from dlprobe.errors import DataError
from dlprobe.plotting import dots
from dlprobe.studies.designs.base import Findings, StudyKind, register
from dlprobe.studies.designs.pairing import (
    DOTS,
    axis_name,
    by_source,
    difference_row,
    metric_of,
    row_names,
    score_row,
    with_holm,
)
from dlprobe.studies.designs.telling import UNADJUSTED, VARIANTS, known_metric, notes, shown_models, tell
from dlprobe.studies.designs.workshop import known_generators
from dlprobe.studies.displays import MARKING_EVERYTHING
from dlprobe.studies.fitting.scoring import EVERYTHING
from dlprobe.studies.results import AUTHENTIC_VARIANTS, FAKE_VARIANTS, grid_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes

    from dlprobe.studies.designs.workshop import Workshop
    from dlprobe.studies.runs import Run

#: Metrics that such a study shows, before the ``@`` and the grid.
SHOWN = ("iou", "ap", "false_area", "iou_val", "false_area_val")
_COLUMNS = (
    "kind",
    "value",
    "low",
    "high",
    "metric",
    "model",
    "method",
    "scheme",
    "everything",
    "n_sources",
    "n_images",
)
#: Of comparisons; settings and fingerprints, which are the same in every row, stand in the cell and below the page.
_COMPARED = ("comparison", "kind", "metric", "difference", "low", "high", "p", "p_holm", "n_sources")
#: What follows the variant where only the generators that were held out are looked at together.
_HELD_OUT = "generators held out"


def _backbones(workshop: Workshop) -> Findings:
    asked, caches = workshop.study.options, workshop.caches()
    if len(caches) < 2:
        msg = "a study of backbones compares at least two; add a [[backbones]]"
        raise DataError(msg)
    run = workshop.fit(caches, workshop.study.fit, workshop.test_caches())
    shown, comparisons = _of_method(run, asked.method), run.tables["comparisons"]
    names = shown_models(run)
    layers = {f"{asked.method} - {name}" for name in shown["method"].unique()}
    within = comparisons[comparisons["comparison"].isin(layers)]
    within = within.assign(
        comparison=[_within(*each, names) for each in zip(within["model"], within["comparison"], strict=False)]
    )
    pairs = {f"{one} - {other}": f"{names[one]} - {names[other]}" for one, other in permutations(names, 2)}
    between = comparisons[comparisons["comparison"].isin(pairs)]
    between = between.assign(comparison=between["comparison"].map(pairs))
    differences = pd.concat([between, within], ignore_index=True)[list(_COMPARED)]
    shown = shown.assign(model=_series(shown, names))
    shown = _in_order(shown, "model", list(dict.fromkeys(shown["model"])))
    return Findings(
        {"results": shown, "comparisons": differences}, tell(differences), [UNADJUSTED, *notes(run, names)], [run.path]
    )


def _series(shown: pd.DataFrame, names: dict[str, str]) -> pd.Series:
    """Return models as they are shown, one for each layer where heads saw a layer alone."""
    layer = shown["method"].str.partition("@")[2]
    return shown["model"].map(names) + layer.where(layer == "", " layer " + layer)


def _within(model: str, comparison: str, names: dict[str, str]) -> str:
    """Return the comparison of all layers of a model with one of them in words."""
    return f"{names[model]} - {names[model]} layer {comparison.rpartition('@')[2]}"


def _labelling(workshop: Workshop) -> Findings:
    settings = workshop.study.fit
    if len(settings.schemes) < 2:
        msg = "a study of labelling compares at least two schemes; name them in [fit] schemes"
        raise DataError(msg)
    held, missing = known_generators(settings.hold_out, workshop.frames())
    run = workshop.fit(workshop.caches(), replace(settings, hold_out=held), workshop.test_caches())
    names, method = shown_models(run), workshop.study.options.method
    shown, comparisons = _of_method(run, method), run.tables["comparisons"]
    shown = shown.assign(held_out=shown["kind"].str.partition(" ")[2].isin(held))
    pairs = {f"{one} - {other}" for one, other in permutations(dict.fromkeys(shown["scheme"]), 2)}
    between = comparisons.loc[comparisons["comparison"].isin(pairs), list(_COMPARED)].reset_index(drop=True)
    tables, answer = {"results": shown, "comparisons": between}, tell(between)
    if held:
        scores, tables["held_out"] = _held_out(run, method, held, settings.seed)
        tables["results"] = pd.concat([shown, scores], ignore_index=True)
        answer += tell(tables["held_out"])[:1]
        missing.insert(0, f"Generators held out, which are tested and train nothing: {', '.join(held)}.")
    tables["results"] = _in_order(tables["results"], "scheme", settings.schemes)
    return Findings(tables, answer, [UNADJUSTED, *missing, *notes(run, names)], [run.path])


def _of_method(run: Run, method: str) -> pd.DataFrame:
    """Return the results of one method, and of its heads on a layer alone."""
    results = run.tables["results"]
    ours = (results["method"] == method) | results["method"].str.startswith(f"{method}@")
    rows = results.loc[ours & results["metric"].map(known_metric).isin(SHOWN), list(_COLUMNS)]
    if rows.empty:
        msg = f"the fit has no probe of the method {method!r}; it has {', '.join(sorted(results['method'].unique()))}"
        raise DataError(msg)
    return rows.reset_index(drop=True)


def _in_order(rows: pd.DataFrame, column: str, names: Sequence[str]) -> pd.DataFrame:
    """Return scores in the order that people look for them in, in tables and figures alike.

    Whole variants come first, fakes before the others; within a kind and metric stands what is compared as `names`,
    which is the order of the study's file.
    """
    variants = rows["kind"].str.extract(r"^(\w+)")[0]
    place = pd.DataFrame(
        {
            "narrow": ~_whole(rows["kind"]),
            "variant": variants.map([*FAKE_VARIANTS, *AUTHENTIC_VARIANTS].index),
            "kind": pd.factorize(rows["kind"])[0],
            "metric": pd.factorize(rows["metric"])[0],
            "name": rows[column].map(list(names).index),
        }
    )
    return rows.loc[place.sort_values(list(place), kind="stable").index].reset_index(drop=True)


def _held_out(run: Run, method: str, held: Iterable[str], seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scores of every scheme on all images by generators held out, and the differences between schemes."""
    images = run.tables["images"]
    images = images[images["generator"].isin(list(held))]
    scores: list[dict[str, object]] = []
    differences: list[dict[str, object]] = []
    for variant, rows in images.groupby("variant", sort=False):
        metric = metric_of(str(variant))
        kind, name = f"{variant}, {_HELD_OUT}", f"{metric}@{grid_of(images)}"
        everything = pd.Series(by_source(rows[rows["method"] == EVERYTHING], metric)).mean()
        ours = rows[rows["method"] == method]
        values = {str(scheme): by_source(part, metric) for scheme, part in ours.groupby("scheme", sort=False)}
        more = {"model": ours["model"].iloc[0], "method": method, "everything": everything, "held_out": True}
        more["n_images"] = ours[["dataset", "path"]].drop_duplicates().shape[0]
        scores += [score_row(v, seed, kind=kind, metric=name, scheme=scheme, **more) for scheme, v in values.items()]
        differences += [
            difference_row(values[one], values[other], seed, comparison=f"{other} - {one}", kind=kind, metric=name)
            for one, other in combinations(values, 2)
        ]
    return pd.DataFrame.from_records(scores), with_holm(differences)


def _plot_by(series: str, tables: dict[str, pd.DataFrame], ax: Axes | None, whole: bool = True) -> Axes:
    rows = tables["results"]
    rows = rows[rows["metric"].map(known_metric).isin(["iou", "false_area"])]
    rows = rows[_whole(rows["kind"]) == whole]
    held = rows["held_out"] if "held_out" in rows else pd.Series(False, index=rows.index)
    told = rows["kind"].where(~(held & ~_whole(rows["kind"])), rows["kind"] + " (held out)")
    ax = dots(
        rows.assign(row=row_names(rows.assign(kind=told))),
        rows="row",
        series=series,
        ax=ax,
        reference="everything",
        reference_label=MARKING_EVERYTHING,
    )
    ax.set_xlabel(axis_name(rows))
    return ax


def _whole(kinds: pd.Series) -> pd.Series:
    """Return which kinds are whole variants, or all generators held out of one."""
    return kinds.isin(list(VARIANTS)) | kinds.str.endswith(f", {_HELD_OUT}")


def _details(series: str, tables: dict[str, pd.DataFrame]) -> Axes | None:
    kinds = tables["results"]["kind"]
    return _plot_by(series, tables, None, whole=False) if (~_whole(kinds)).any() else None


register(
    StudyKind(
        name="backbones",
        asks="which backbone shows inpainting best, on the same windows?",
        run=_backbones,
        plot=lambda tables, ax: _plot_by("model", tables, ax),
        legend=DOTS,
        details=lambda tables: _details("model", tables),
        several=True,
    )
)
register(
    StudyKind(
        name="labelling",
        asks="what does it cost to call auto-encoded pixels fake?",
        run=_labelling,
        plot=lambda tables, ax: _plot_by("scheme", tables, ax),
        legend=f"{DOTS} Whatever a scheme taught, all are scored on one truth: inpainted against the rest.",
        details=lambda tables: _details("scheme", tables),
        reads=("method",),
    )
)
