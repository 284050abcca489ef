"""The study of frozen against fine-tuned backbones: on generators that were trained on, and on generators held out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from dlprobe.errors import DataError
from dlprobe.metrics import bootstrap_mean, holm, paired_difference, source_means
from dlprobe.plotting import dots
from dlprobe.studies.designs.base import Findings, StudyKind, register
from dlprobe.studies.designs.kinds.comparing import notes, sentence
from dlprobe.studies.fitting.scoring import EVERYTHING
from dlprobe.studies.results import FAKE_VARIANTS, grid_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from matplotlib.axes import Axes

    from dlprobe.studies.designs.workshop import Workshop

#: The mode that leaves the backbone as it is.
FROZEN = "head"
SEEN, HELD_OUT = "generators trained on", "generators held out"
_BY_SOURCE = dict[str, float]


def _adaptation(workshop: Workshop) -> Findings:
    modes, settings = workshop.study.options.modes, workshop.study.finetune
    if FROZEN not in modes or len(modes) < 2:
        msg = f"a study of adaptation compares {FROZEN!r} with at least one other mode; the modes are {list(modes)}"
        raise DataError(msg)
    runs = workshop.adaptations()
    images = pd.concat([run.tables["images"] for run in runs], ignore_index=True)
    images = images.assign(mode=images["model"].str.split().str[-1], kind=_kind(images, settings.hold_out))
    moved = [mode for mode in modes if mode != FROZEN]
    differences = _differences(images, moved, settings.seed)
    answer = [f"{row.comparison} on {row.kind}: {sentence(row)}" for row in differences.itertuples()]
    told = [note for run in runs for note in notes(run)]
    return Findings(
        {"scores": _scores(images, modes, settings.seed), "differences": differences},
        [*answer, *dict.fromkeys(told)],
        [run.path for run in runs],
    )


def _kind(images: pd.DataFrame, hold_out: Collection[str]) -> pd.Series:
    """Return the variant, and whether its generator was held out where some were."""
    known = images["generator"].isin(list(hold_out)).map({True: HELD_OUT, False: SEEN})
    told = (images["generator"] != "") & bool(hold_out)
    return images["variant"].where(~told, images["variant"] + ", " + known)


def _metric(rows: pd.DataFrame) -> str:
    return "iou" if rows["variant"].iloc[0] in FAKE_VARIANTS else "false_area"


def _by_source(rows: pd.DataFrame, metric: str) -> _BY_SOURCE:
    return source_means(rows[metric].to_numpy(dtype=float), rows["source_id"].to_numpy(dtype=str))


def _scores(images: pd.DataFrame, modes: Collection[str], seed: int) -> pd.DataFrame:
    """Return one row per kind and mode: mean over photographs with its interval, and what marking everything gets."""
    records = []
    for kind, rows in images.groupby("kind", sort=False):
        metric = _metric(rows)
        marked = rows[(rows["method"] == EVERYTHING) & (rows["mode"] == FROZEN)]
        everything = bootstrap_mean(_by_source(marked, metric), seed=seed).estimate
        for mode in modes:
            part = rows[(rows["mode"] == mode) & (rows["method"] != EVERYTHING)]
            found = bootstrap_mean(_by_source(part, metric), seed=seed, bounds=(0, 1))
            records.append(
                {
                    "kind": kind,
                    "metric": f"{metric}@{grid_of(rows)}",
                    "mode": mode,
                    "value": found.estimate,
                    "low": found.low,
                    "high": found.high,
                    "everything": everything,
                    "n_sources": found.n,
                    "n_images": len(part),
                }
            )
    return pd.DataFrame.from_records(records)


def _differences(images: pd.DataFrame, moved: Collection[str], seed: int) -> pd.DataFrame:
    """Return each mode minus the frozen one on each kind, and how much of it is lost from seen to held-out generators.

    The loss is a difference of differences, photograph by photograph: (mode minus frozen) on held-out generators, minus
    the same on those that were trained on.
    """
    fitted = images[images["method"] != EVERYTHING]
    values: dict[tuple[str, str], _BY_SOURCE] = {}
    metrics: dict[str, str] = {}
    for (kind, mode), rows in fitted.groupby(["kind", "mode"], sort=False):
        metrics[kind] = _metric(rows)
        values[kind, mode] = _by_source(rows, metrics[kind])
    for variant in dict.fromkeys(fitted["variant"]):
        seen, held = f"{variant}, {SEEN}", f"{variant}, {HELD_OUT}"
        if seen in metrics and held in metrics:
            kind = f"{variant}, held out minus trained on"
            metrics[kind] = metrics[seen]
            for mode in (FROZEN, *moved):
                ours, others = values[held, mode], values[seen, mode]
                values[kind, mode] = {name: ours[name] - others[name] for name in ours.keys() & others.keys()}
    records = []
    for kind, metric in metrics.items():
        for mode in moved:
            found = paired_difference(values[kind, FROZEN], values[kind, mode], seed=seed, bounds=(-2, 2))
            records.append(
                {
                    "comparison": f"{mode} - {FROZEN}",
                    "kind": kind,
                    "metric": f"{metric}@{grid_of(fitted)}",
                    "difference": found.estimate,
                    "low": found.low,
                    "high": found.high,
                    "p": found.p,
                    "n_sources": found.n,
                }
            )
    table = pd.DataFrame.from_records(records)
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def _plot(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    rows = tables["scores"].assign(row=lambda table: table["kind"] + ": " + table["metric"])
    ax = dots(rows, rows="row", series="mode", ax=ax, reference="everything", reference_label="marking everything")
    ax.set_xlabel("mean over photographs with 95 % interval, at the score 0.5")
    return ax


register(StudyKind("adaptation", "does a frozen backbone generalise better than a fine-tuned one?", _adaptation, _plot))
