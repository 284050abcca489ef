"""The study of what is done around a probe: how windows overlap and are put together, and what cleans the mask."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from dlprobe.errors import DataError
from dlprobe.localization import SlidingSettings
from dlprobe.plotting import dots
from dlprobe.studies.designs.base import Findings, StudyKind, register
from dlprobe.studies.designs.kinds.robustness import tested_probes
from dlprobe.studies.designs.pairing import (
    by_source,
    difference_row,
    everything_by_source,
    metric_of,
    score_row,
    variants_of,
    with_holm,
)
from dlprobe.studies.designs.telling import UNADJUSTED, ahead, notes, shown_models, tell
from dlprobe.studies.displays import MARKING_EVERYTHING, metric_words
from dlprobe.studies.evaluating import STEP_PREFIX
from dlprobe.studies.evaluation.settings import SHOWN_STEPS
from dlprobe.studies.results import FAKE_VARIANTS

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from dlprobe.studies.designs.workshop import Workshop

#: The first step of post-processing, which the others are compared with.
_ALONE = "threshold"
#: What a step of post-processing is called among those that it follows.
_STEPS = {
    _ALONE: "threshold alone",
    "guided": "then guided filter",
    "holes": "then holes filled",
    "small": "then small regions removed",
    "smooth": "then borders smoothed",
}
_SUM = (
    "Summed logits of windows are marked from the threshold on the probe's card, as their means are. It was chosen on "
    "single windows. Where it is above one half, a sum reaches it more easily the more windows see a pixel; where it "
    "is below, less easily; at one half, sums and means mark the same."
)


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
    run = workshop.fit(workshop.caches(), workshop.study.fit, workshop.test_caches())
    ways = [SlidingSettings(stride_px=stride) for stride in strides]
    ways.append(replace(ways[-1], aggregate="sum"))
    found: list[list[pd.DataFrame]] = [[] for _ in ways]
    cells: list[Path] = [run.path]
    for probe, sources in tested_probes(run, asked.method, asked.scheme):
        for number, sliding in enumerate(ways):
            post = SHOWN_STEPS if sliding == ways[-2] else None
            cells.append(workshop.evaluation(probe, sources, sliding, post=post))
            found[number].append(pd.read_parquet(cells[-1] / "images.parquet"))
    images = [pd.concat(parts, ignore_index=True) for parts in found]
    *overlap, summed = [_Setting(_name(way), _after(table, _ALONE)) for way, table in zip(ways, images, strict=True)]
    densest = images[-2]
    done = [name.removeprefix(STEP_PREFIX) for name in densest.columns if name.startswith(STEP_PREFIX)]
    steps = [_Setting(_STEPS.get(step, f"then {step}"), _after(densest, step)) for step in done]
    shown = {"overlap": overlap, "aggregation": [summed], "post-processing": steps}
    scores = pd.concat([_scores(part, settings, seed) for part, settings in shown.items()], ignore_index=True)
    compared = (overlap, [overlap[-1], summed], steps)
    differences = with_holm(
        [*_beyond_everything(overlap[0], seed), *(row for part in compared for row in _differences(part, seed))]
    )
    against = differences["comparison"].str.endswith(f" - {MARKING_EVERYTHING}")
    answer = [*(ahead(row) for _, row in differences[against].iterrows()), *tell(differences[~against])]
    told = [UNADJUSTED, _SUM, *_alike(overlap), *notes(run, shown_models(run))]
    return Findings({"scores": scores, "differences": differences}, answer, told, cells)


def _name(way: SlidingSettings) -> str:
    return f"stride {way.stride_px} px" + (", summed" if way.aggregate == "sum" else "")


def _alike(overlap: list[_Setting]) -> list[str]:
    """Return a line for each stride under which every score is that of the stride before, whatever makes them equal."""
    return [
        f"Every image that has a score has the same one under {one.name} as under {other.name}."
        for one, other in pairwise(overlap)
        if one.scores["value"].notna().any() and one.scores["value"].equals(other.scores["value"])
    ]


def _after(images: pd.DataFrame, step: str) -> pd.DataFrame:
    """Return variant, source, mask and the score after a step, which follows all steps before it."""
    return images[["variant", "source_id", "mask_share"]].assign(value=images[STEP_PREFIX + step])


def _by_source(scores: pd.DataFrame, variant: str) -> dict[str, float]:
    return by_source(scores[scores["variant"] == variant], "value")


def _scores(part: str, settings: list[_Setting], seed: int) -> pd.DataFrame:
    records = []
    for variant in variants_of(settings[0].scores):
        for setting in settings:
            names = {"setting": setting.name, "kind": variant, "metric": f"{metric_of(variant)}@original_px"}
            row = score_row(_by_source(setting.scores, variant), seed, part=part, **names)
            rows = setting.scores[setting.scores["variant"] == variant]
            everything = pd.Series(everything_by_source(rows)).mean()
            records.append({**row, "everything": everything, "n_images": len(rows)})
    return pd.DataFrame.from_records(records)


def _differences(settings: list[_Setting], seed: int) -> list[dict[str, object]]:
    """Return each setting minus the first one, paired by photograph."""
    first = settings[0]
    return [
        difference_row(
            _by_source(first.scores, variant),
            _by_source(setting.scores, variant),
            seed,
            comparison=f"{setting.name} - {first.name}",
            kind=variant,
            metric=f"{metric_of(variant)}@original_px",
        )
        for variant in variants_of(first.scores)
        for setting in settings[1:]
    ]


def _beyond_everything(setting: _Setting, seed: int) -> list[dict[str, object]]:
    """Return by how much a setting is above marking everything on each kind of fake."""
    return [
        difference_row(
            everything_by_source(setting.scores[setting.scores["variant"] == variant]),
            _by_source(setting.scores, variant),
            seed,
            comparison=f"{setting.name} - {MARKING_EVERYTHING}",
            kind=variant,
            metric="iou@original_px",
        )
        for variant in variants_of(setting.scores)
        if variant in FAKE_VARIANTS
    ]


def _plot(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    scores = tables["scores"]
    fakes = scores[scores["kind"].isin(FAKE_VARIANTS)]
    rows = fakes if len(fakes) else scores
    ax = dots(rows, rows="setting", series="kind", ax=ax, reference="everything", reference_label=MARKING_EVERYTHING)
    what = metric_words(rows["metric"].iloc[0])
    ax.set_xlabel(
        f"{what} on pixels of the whole image, mean over photographs\nwith 95 % interval, at the probe's own threshold"
    )
    return ax


register(
    StudyKind(
        name="localization",
        asks="what do overlapping windows and post-processing add?",
        run=_localization,
        plot=_plot,
        legend="Dots are means over photographs, lines their 95 % intervals, upright bars what marking everything "
        "gets. For IoU more is better; for the falsely marked share, which is drawn where there are no fakes, less is. "
        "Rows named after a stride have no post-processing; the others, under the smallest stride, have every step "
        "down to the one that they name. Two intervals that overlap decide nothing: the answer rests on "
        "differences photograph by photograph.",
        reads=("method", "scheme", "strides_px"),
    )
)
