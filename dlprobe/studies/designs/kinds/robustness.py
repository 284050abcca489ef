"""The study of what degradations leave: the same photographs, clean and under each strength, by probes of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dlprobe.errors import DataError
from dlprobe.localization import SlidingSettings
from dlprobe.metrics import paired_difference
from dlprobe.plotting import curve, legend, panels
from dlprobe.studies.designs.base import Findings, StudyKind, register
from dlprobe.studies.designs.pairing import (
    by_source,
    difference_row,
    everything_by_source,
    metric_of,
    score_row,
    variants_of,
    with_holm,
)
from dlprobe.studies.designs.telling import LEVEL, UNADJUSTED, ahead, notes, shown_models
from dlprobe.studies.designs.workshop import known_generators
from dlprobe.studies.displays import MARKING_EVERYTHING, metric_words
from dlprobe.studies.results import FAKE_VARIANTS, with_interval

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from dlprobe.studies.designs.workshop import Workshop
    from dlprobe.studies.runs import Run

_CONDITION = ["degradation", "strength"]
_CLEAN = "clean"
#: Where nothing is inpainted, all that is marked is false.
_FALSE_AREA = "marked_share"
_NOTES = (
    "A difference is degraded minus clean, photograph by photograph; intervals are each row's own, unadjusted.",
    "The largest loss is picked after looking at all conditions: it is a selection, and by its choice too large.",
    "Marked is from the threshold on the probe's card, which was chosen on clean images.",
)


def _robustness(workshop: Workshop) -> Findings:
    asked = workshop.study.options
    run = workshop.fit(workshop.caches(), workshop.study.fit, workshop.test_caches())
    by, missing = known_generators(asked.generators, workshop.frames()[-1:])
    if by:
        missing.insert(0, f"Degraded are photographs as they are and images by {', '.join(by)} alone.")
    parts, cells = [], [run.path]
    for probe, sources in tested_probes(run, asked.method, asked.scheme):
        sliding = SlidingSettings(stride_px=asked.stride_px)
        found = workshop.evaluation(probe, sources, sliding, degrade=asked.degrade, generators=by)
        parts.append(pd.read_parquet(found / "images.parquet"))
        cells.append(found)
    images, seed = pd.concat(parts, ignore_index=True), workshop.study.fit.seed
    curves, clean = _curves(images, seed), _beyond_everything(images, seed)
    told = [*missing, UNADJUSTED, *_NOTES, *notes(run, shown_models(run))]
    answer = [*(ahead(row) for _, row in clean.iterrows()), *_little_to_lose(clean), *_answer(curves)]
    return Findings({"curves": curves, "clean_against_everything": clean}, answer, told, cells)


def tested_probes(run: Run, method: str, scheme: str) -> list[tuple[Path, set[str]]]:
    """Return each fold's probe with the photographs that it is tested on."""
    images = run.tables["images"]
    rows = images[(images["method"] == method) & (images["scheme"] == scheme)]
    if rows.empty:
        msg = f"the fit has no {method} probe of {scheme}; name a method and a scheme that [fit] asks for"
        raise DataError(msg)
    found = []
    for fold, part in rows.groupby("fold"):
        paths = sorted((run.path / "probes").glob(f"*/folds/{method}-{scheme}-{fold}.safetensors"))
        if len(paths) != 1:
            msg = f"{method} has no map that can be saved and moved over images; name another method in [options]"
            raise DataError(msg)
        found.append((paths[0], set(part["source_id"])))
    return found


def _curves(images: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return one row a variant and condition, and how far it is from the clean images, which differ by nothing."""
    records = []
    for variant in variants_of(images):
        rows = images[images["variant"] == variant]
        metric = _column(rows, "iou" if variant in FAKE_VARIANTS else _FALSE_AREA)
        before = by_source(rows[rows["degradation"] == _CLEAN], metric)
        for (degradation, strength), part in rows.groupby(_CONDITION, sort=False):
            after = by_source(part, metric)
            told = metric.replace(_FALSE_AREA, "false_area")
            row = score_row(after, seed, variant=variant, degradation=degradation, strength=strength, metric=told)
            row["everything"] = float(np.mean(list(everything_by_source(part).values())))
            change = paired_difference(before, after, seed=seed, bounds=(-1, 1))
            clean = degradation == _CLEAN
            row["difference"] = np.nan if clean else change.estimate
            row["difference_low"] = np.nan if clean else change.low
            row["difference_high"] = np.nan if clean else change.high
            records.append({**row, "n_images": int(part[metric].notna().sum())})
    return pd.DataFrame.from_records(records)


def _column(images: pd.DataFrame, name: str) -> str:
    """Return the full name of a metric of the own protocol."""
    return next(
        column for column in map(str, images.columns) if column.startswith("dlprobe.") and column.endswith(f".{name}")
    )


def _beyond_everything(images: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return by how much the probe is above marking everything on clean fakes: what a loss is read against."""
    clean = images[images["degradation"] == _CLEAN]
    of_variant = {variant: clean[clean["variant"] == variant] for variant in variants_of(clean)}
    return with_holm(
        [
            difference_row(
                everything_by_source(rows),
                by_source(rows, _column(rows, "iou")),
                seed,
                comparison=f"the probe on clean images - {MARKING_EVERYTHING}",
                kind=variant,
                metric="iou@original_px",
            )
            for variant, rows in of_variant.items()
            if variant in FAKE_VARIANTS
        ]
    )


def _little_to_lose(clean: pd.DataFrame) -> list[str]:
    """Return a line on the fakes on which the clean probe does not surely beat marking everything."""
    open_ = [str(row["kind"]) for _, row in clean.iterrows() if not (row["difference"] > 0 and row["p_holm"] < LEVEL)]
    if not open_:
        return []
    where = f"On {' and '.join(open_)} marking everything is not surely beaten even on clean images"
    return [f"{where}: what is lost there is lost from a score that marking everything may reach."]


def _answer(curves: pd.DataFrame) -> list[str]:
    """Return what is left of each variant's score, and the largest loss; an improvement is none."""
    lines = []
    for (variant, _metric), rows in curves.groupby(["variant", "metric"], sort=False):
        degraded, clean = rows[rows["degradation"] != _CLEAN], rows[rows["degradation"] == _CLEAN].iloc[0]
        fake = variant in FAKE_VARIANTS
        told = with_interval(clean["value"], clean["low"], clean["high"])
        start = f"On {variant}, {metric_words(metric_of(variant))} {told} clean"
        loss = -degraded["difference"] if fake else degraded["difference"]
        if not (loss > 0).any():
            lines.append(f"{start}; none of {len(degraded)} conditions makes it worse on average.")
            continue
        worst = degraded.loc[loss.idxmax()]
        change = with_interval(worst["difference"], worst["difference_low"], worst["difference_high"], signed=True)
        lines.append(
            f"{start}; of {len(degraded)} conditions the largest loss, a selection, is {change} under "
            f"{worst['degradation']} {worst['strength']:g} ({clean['n_sources']} photographs)."
        )
    return lines


def _plot(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    """Draw one panel a variant, or the first variant on the axes that are given."""
    curves = tables["curves"]
    names = variants_of(curves)
    drawn = panels(len(names), columns=1, width_in=9.0, height_in=2.9) if ax is None else [ax]
    for on, variant in zip(drawn, names, strict=False):
        rows = curves[curves["variant"] == variant]
        _draw(on, rows)
        on.set_ylabel(f"{metric_words(metric_of(variant))} on {variant}")
    legend(drawn[0])
    drawn[-1].set_xlabel("strength, in each degradation's own unit")
    return drawn[0]


def _draw(ax: Axes, rows: pd.DataFrame) -> None:
    clean, degraded = rows[rows["degradation"] == _CLEAN].iloc[0], rows[rows["degradation"] != _CLEAN]
    labels: list[str] = []
    for number, (name, part) in enumerate(degraded.groupby("degradation", sort=False)):
        at = np.arange(len(labels), len(labels) + len(part))
        curve(ax, at, part["value"], part["low"], part["high"], series=number, label=str(name))
        labels += [f"{strength:g}" for strength in part["strength"]]
    ax.axhline(clean["value"], color="black", linewidth=1, linestyle=(0, (4, 2)), label=_CLEAN)
    ax.axhline(clean["everything"], color="black", linewidth=1.2, linestyle=":", label=MARKING_EVERYTHING)
    ax.set_xticks(range(len(labels)), labels, fontsize="small")
    ax.set_ylim(0, 1)
    ax.grid(axis="y", alpha=0.3)


register(
    StudyKind(
        name="robustness",
        asks="what do compression, scaling and noise leave of the score?",
        run=_robustness,
        plot=_plot,
        legend="Each curve is a degradation at several strengths; bands are 95 % intervals over photographs, the "
        "dashed line is the score of the images as they are, the dotted one what marking everything gets, 1 on "
        "authentic images. For IoU more is better; for the falsely marked share, which is that of authentic images, "
        "less is.",
        reads=("method", "scheme", "degrade", "generators", "stride_px"),
    )
)
