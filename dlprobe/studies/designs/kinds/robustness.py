"""The study of what degradations leave: the same photographs, clean and under each strength, by probes of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dlprobe.errors import DataError
from dlprobe.metrics import bootstrap_mean, paired_difference, source_means
from dlprobe.plotting import axes, curve, legend
from dlprobe.studies.designs.base import Findings, StudyKind, register
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


def _robustness(workshop: Workshop) -> Findings:
    asked = workshop.study.options
    run = workshop.fit(workshop.caches()[:1], workshop.study.fit)
    parts, cells = [], [run.path]
    for probe, sources in tested_probes(run, asked.method, asked.scheme):
        found = workshop.evaluation(probe, sources, asked.stride_px, (asked.degrade,))
        parts.append(pd.read_parquet(found / "images.parquet"))
        cells.append(found)
    images = pd.concat(parts, ignore_index=True)
    curves = _curves(images, workshop.study.fit.seed)
    return Findings({"curves": curves}, _answer(curves), cells)


def tested_probes(run: Run, method: str, scheme: str) -> list[tuple[Path, set[str]]]:
    """Return each fold's probe with the photographs that it is tested on."""
    images = run.tables["images"]
    rows = images[(images["method"] == method) & (images["scheme"] == scheme)]
    if rows.empty:
        msg = f"the fit has no {method} probe of {scheme}; name a method and a scheme that [fit] asks for"
        raise DataError(msg)
    found = []
    for fold, part in rows.groupby("fold"):
        [path] = sorted((run.path / "probes").glob(f"*/folds/{method}-{scheme}-{fold}.safetensors"))
        found.append((path, set(part["source_id"])))
    return found


def _curves(images: pd.DataFrame, seed: int) -> pd.DataFrame:
    records = []
    for variant, rows in images.groupby("variant", sort=False):
        name = "iou" if variant in FAKE_VARIANTS else _FALSE_AREA
        metric = next(
            column for column in rows.columns if column.startswith("dlprobe.") and column.endswith(f".{name}")
        )
        clean = rows[rows["degradation"] == _CLEAN]
        before = _by_source(clean, metric)
        for (degradation, strength), part in rows.groupby(_CONDITION, sort=False):
            after = _by_source(part, metric)
            value = bootstrap_mean(after, seed=seed, bounds=(0, 1))
            change = paired_difference(before, after, seed=seed, bounds=(-1, 1))
            records.append(
                {
                    "variant": variant,
                    "degradation": degradation,
                    "strength": strength,
                    "metric": metric.replace(_FALSE_AREA, "false_area"),
                    "value": value.estimate,
                    "low": value.low,
                    "high": value.high,
                    "difference": change.estimate,
                    "difference_low": change.low,
                    "difference_high": change.high,
                    "n_sources": value.n,
                    "n_images": int(part[metric].notna().sum()),
                }
            )
    return pd.DataFrame.from_records(records)


def _by_source(rows: pd.DataFrame, metric: str) -> dict[str, float]:
    return source_means(rows[metric].to_numpy(dtype=float), rows["source_id"].to_numpy(dtype=str))


def _answer(curves: pd.DataFrame) -> list[str]:
    lines = []
    for (variant, metric), rows in curves.groupby(["variant", "metric"], sort=False):
        degraded = rows[rows["degradation"] != _CLEAN]
        clean = rows[rows["degradation"] == _CLEAN].iloc[0]
        by = degraded["difference"] if variant in FAKE_VARIANTS else -degraded["difference"]
        worst = degraded.loc[by.idxmin()] if by.notna().any() else clean
        change = with_interval(worst["difference"], worst["difference_low"], worst["difference_high"], signed=True)
        lines.append(
            f"{variant}: {metric} {with_interval(clean['value'], clean['low'], clean['high'])} clean; worst under "
            f"{worst['degradation']} {worst['strength']:g}: {change}, {clean['n_sources']} photographs"
        )
    return lines


def _plot(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    curves = tables["curves"]
    variant = next((name for name in FAKE_VARIANTS if (curves["variant"] == name).any()), curves["variant"].iloc[0])
    rows = curves[curves["variant"] == variant]
    clean, degraded = rows[rows["degradation"] == _CLEAN].iloc[0], rows[rows["degradation"] != _CLEAN]
    ax, labels, start = axes(ax, width_in=9.0), [], 0
    for number, (name, part) in enumerate(degraded.groupby("degradation", sort=False)):
        at = np.arange(start, start + len(part))
        curve(ax, at, part["value"], part["low"], part["high"], series=number, label=str(name))
        labels += [f"{strength:g}" for strength in part["strength"]]
        start += len(part)
    ax.axhline(clean["value"], color="black", linewidth=1, linestyle=(0, (4, 2)), label=_CLEAN)
    ax.set_xticks(range(start), labels)
    ax.set_xlabel("strength, in each degradation's own unit")
    ax.set_ylabel(f"{rows['metric'].iloc[0]} on {variant}")
    legend(ax)
    return ax


register(StudyKind("robustness", "what do compression, scaling and noise leave of the score?", _robustness, _plot))
