"""The study of what is done around a probe: how densely windows overlap, and what cleans the mask afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from dlprobe.errors import DataError
from dlprobe.metrics import bootstrap_mean, holm, paired_difference, source_means
from dlprobe.plotting import dots
from dlprobe.studies.designs.base import Findings, StudyKind, register
from dlprobe.studies.designs.kinds.comparing import sentence
from dlprobe.studies.designs.kinds.robustness import tested_probes
from dlprobe.studies.evaluating import STEP_PREFIX
from dlprobe.studies.results import FAKE_VARIANTS

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from dlprobe.studies.designs.workshop import Workshop

#: The first step of post-processing, which the others are compared with.
_ALONE = "threshold"


class _Setting(NamedTuple):
    """What was done, and the score of every image under it."""

    name: str
    scores: pd.DataFrame


def _localization(workshop: Workshop) -> Findings:
    asked, seed = workshop.study.options, workshop.study.fit.seed
    strides = sorted(set(asked.strides_px), reverse=True)
    if len(strides) < 2 or strides[-1] < 1:
        msg = f"a study of localization compares at least two strides, each 1 px or more; they are {strides}"
        raise DataError(msg)
    run = workshop.fit(workshop.caches()[:1], workshop.study.fit)
    found: dict[int, list[pd.DataFrame]] = {stride: [] for stride in strides}
    cells: list[Path] = [run.path]
    for probe, sources in tested_probes(run, asked.method, asked.scheme):
        for stride in strides:
            cell = workshop.evaluation(probe, sources, stride)
            found[stride].append(pd.read_parquet(cell / "images.parquet"))
            cells.append(cell)
    images = {stride: pd.concat(parts, ignore_index=True) for stride, parts in found.items()}
    overlap = [_Setting(f"stride {stride} px", _after(table, _ALONE)) for stride, table in images.items()]
    densest = images[strides[-1]]
    done = [name.removeprefix(STEP_PREFIX) for name in densest.columns if name.startswith(STEP_PREFIX)]
    steps = [_Setting(f"{_ALONE} alone" if step == _ALONE else f"to {step}", _after(densest, step)) for step in done]
    scores = pd.concat([_scores("overlap", overlap, seed), _scores("post-processing", steps, seed)], ignore_index=True)
    differences = pd.concat([_differences(part, seed) for part in (overlap, steps)], ignore_index=True)
    differences["p_holm"] = holm(differences["p"].to_numpy())
    answer = [f"{row.comparison} on {row.kind}: {sentence(row)}" for row in differences.itertuples()]
    return Findings({"scores": scores, "differences": differences}, answer, cells)


def _after(images: pd.DataFrame, step: str) -> pd.DataFrame:
    """Return variant, source and the score after a step, which follows all steps before it."""
    return images[["variant", "source_id"]].assign(value=images[STEP_PREFIX + step])


def _by_source(scores: pd.DataFrame, variant: str) -> dict[str, float]:
    rows = scores[scores["variant"] == variant]
    return source_means(rows["value"].to_numpy(dtype=float), rows["source_id"].to_numpy(dtype=str))


def _metric(variant: str) -> str:
    return f"{'iou' if variant in FAKE_VARIANTS else 'false_area'}@original_px"


def _scores(part: str, settings: list[_Setting], seed: int) -> pd.DataFrame:
    records = []
    for variant in dict.fromkeys(settings[0].scores["variant"]):
        for setting in settings:
            value = bootstrap_mean(_by_source(setting.scores, variant), seed=seed, bounds=(0, 1))
            records.append(
                {
                    "part": part,
                    "kind": variant,
                    "metric": _metric(variant),
                    "setting": setting.name,
                    "value": value.estimate,
                    "low": value.low,
                    "high": value.high,
                    "n_sources": value.n,
                    "n_images": int((setting.scores["variant"] == variant).sum()),
                }
            )
    return pd.DataFrame.from_records(records)


def _differences(settings: list[_Setting], seed: int) -> pd.DataFrame:
    """Return each setting minus the first one, paired by photograph."""
    first, records = settings[0], []
    for variant in dict.fromkeys(first.scores["variant"]):
        for setting in settings[1:]:
            before, after = _by_source(first.scores, variant), _by_source(setting.scores, variant)
            change = paired_difference(before, after, seed=seed, bounds=(-1, 1))
            records.append(
                {
                    "comparison": f"{setting.name} - {first.name}",
                    "kind": variant,
                    "metric": _metric(variant),
                    "difference": change.estimate,
                    "low": change.low,
                    "high": change.high,
                    "p": change.p,
                    "n_sources": change.n,
                }
            )
    return pd.DataFrame.from_records(records)


def _plot(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    scores = tables["scores"]
    fakes = scores[scores["kind"].isin(FAKE_VARIANTS)]
    rows = fakes if len(fakes) else scores
    ax = dots(rows, rows="setting", series="kind", ax=ax)
    ax.set_xlabel(f"{rows['metric'].iloc[0]}: mean over photographs with 95 % interval, at the probe's own threshold")
    return ax


register(StudyKind("localization", "what do overlapping windows and post-processing add?", _localization, _plot))
