"""The study of frozen against fine-tuned backbones: on generators that were trained on, and on generators held out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
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
from dlprobe.studies.designs.telling import UNADJUSTED, how_sure, known_metric, notes, tell
from dlprobe.studies.designs.workshop import known_generators
from dlprobe.studies.displays import MARKING_EVERYTHING
from dlprobe.studies.fitting.scoring import EVERYTHING
from dlprobe.studies.results import AUTHENTIC_VARIANTS, FAKE_VARIANTS, grid_of, with_interval

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from matplotlib.axes import Axes

    from dlprobe.studies.designs.workshop import Workshop
    from dlprobe.studies.runs import Run

#: The mode that leaves the backbone as it is.
FROZEN = "head"
SEEN, HELD_OUT = "generators trained on", "generators held out"
#: What follows the variant where a mode's loss from the former to the latter is compared.
_LOSS = ", held out minus trained on"
#: The note of a fold on the epoch that a mode kept.
_EPOCH = re.compile(r"(?P<model>.+): epoch (?P<epoch>\d+) (?P<rest>of \d+.*)")
_BY_SOURCE = dict[str, float]


def _adaptation(workshop: Workshop) -> Findings:
    modes, settings = workshop.study.options.modes, workshop.study.finetune
    if FROZEN not in modes or len(modes) < 2:
        msg = f"a study of adaptation compares {FROZEN!r} with at least one other mode; the modes are {list(modes)}"
        raise DataError(msg)
    held, missing = known_generators(settings.hold_out, [workshop.manifest().frame])
    runs = workshop.adaptations(replace(settings, hold_out=held))
    images = pd.concat([run.tables["images"] for run in runs], ignore_index=True)
    images = images.assign(mode=images["model"].str.split().str[-1], kind=_kind(images, held))
    images = images.iloc[np.argsort(images["kind"].map(_place), kind="stable")]
    moved = [mode for mode in modes if mode != FROZEN]
    differences = _differences(images, moved, settings.seed)
    asked = differences[differences["kind"].str.endswith(_LOSS)]
    answer = tell(asked, _lost) if len(asked) else []
    return Findings(
        {"scores": _scores(images, modes, settings.seed), "differences": differences},
        [*answer, *tell(differences.drop(asked.index))],
        [UNADJUSTED, *missing, *_notes(runs)],
        [run.path for run in runs],
        f"{len(runs)} folds, each photograph tested once" if len(runs) > 1 else "",
    )


def _lost(row: pd.Series) -> str:
    """Return in words how much more one mode loses from generators trained on to those held out."""
    mode, frozen = str(row["comparison"]).split(" - ", 1)
    ends = [float(row[name]) for name in ("difference", "low", "high")]
    variant = str(row["kind"]).partition(",")[0]
    if known_metric(str(row["metric"])) != "iou":
        return (
            f"From generators trained on to those held out, the falsely marked share of {variant} changes by "
            f"{with_interval(*ends, signed=True)} under {mode} against {frozen}, the frozen backbone {how_sure(row)}."
        )
    less = ends[0] > 0
    told = with_interval(*(ends if less else [-ends[0], -ends[2], -ends[1]]))
    return (
        f"From generators trained on to those held out, {mode} loses {told} {'less' if less else 'more'} IoU on "
        f"{variant} than {frozen}, the frozen backbone {how_sure(row)}."
    )


def _place(kind: str) -> int:
    """Return where a kind stands in tables: by variant, and generators that were trained on before those held out."""
    variant, _, generators = kind.partition(", ")
    return 2 * [*FAKE_VARIANTS, *AUTHENTIC_VARIANTS].index(variant) + (generators == HELD_OUT)


def _notes(runs: Sequence[Run]) -> list[str]:
    """Return what the folds say, each line once with the folds that say it; epochs in one line where all have one."""
    said: dict[str, list[int]] = {}
    epochs: dict[tuple[str, str], list[tuple[int, str]]] = {}
    if len(runs) == 1:
        return notes(runs[0])
    for fold, run in enumerate(runs, 1):
        for note in notes(run):
            if found := _EPOCH.fullmatch(note):
                epochs.setdefault((found["model"], found["rest"]), []).append((fold, found["epoch"]))
            else:
                said.setdefault(note, []).append(fold)
    lines = []
    for (model, rest), kept in epochs.items():
        if len(kept) == len(runs):
            lines.append(f"{model}: epochs {', '.join(epoch for _, epoch in kept)} {rest}, fold by fold")
            continue
        for fold, epoch in kept:
            said.setdefault(f"{model}: epoch {epoch} {rest}", []).append(fold)
    return lines + [
        note if len(folds) == len(runs) else f"Fold {' and '.join(map(str, folds))} of {len(runs)}: {note}"
        for note, folds in said.items()
    ]


def _kind(images: pd.DataFrame, hold_out: Collection[str]) -> pd.Series:
    """Return the variant, and whether its generator was held out where some were."""
    known = images["generator"].isin(list(hold_out)).map({True: HELD_OUT, False: SEEN})
    told = (images["generator"] != "") & bool(hold_out)
    return images["variant"].where(~told, images["variant"] + ", " + known)


def _scores(images: pd.DataFrame, modes: Collection[str], seed: int) -> pd.DataFrame:
    """Return one row per kind and mode: mean over photographs with its interval, and what marking everything gets."""
    records = []
    for kind, rows in images.groupby("kind", sort=False):
        metric = metric_of(rows["variant"].iloc[0])
        marked = rows[(rows["method"] == EVERYTHING) & (rows["mode"] == FROZEN)]
        everything = pd.Series(by_source(marked, metric), dtype=float).mean()
        for mode in modes:
            part = rows[(rows["mode"] == mode) & (rows["method"] != EVERYTHING)]
            names = {"kind": kind, "mode": mode, "metric": f"{metric}@{grid_of(rows)}"}
            row = score_row(by_source(part, metric), seed, **names)
            records.append({**row, "everything": everything, "n_images": len(part)})
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
        metrics[kind] = metric_of(rows["variant"].iloc[0])
        values[kind, mode] = by_source(rows, metrics[kind])
    for variant in dict.fromkeys(fitted["variant"]):
        seen, held = f"{variant}, {SEEN}", f"{variant}, {HELD_OUT}"
        if seen in metrics and held in metrics:
            kind = f"{variant}{_LOSS}"
            metrics[kind] = metrics[seen]
            for mode in (FROZEN, *moved):
                ours, others = values[held, mode], values[seen, mode]
                values[kind, mode] = {name: ours[name] - others[name] for name in ours.keys() & others.keys()}
    return with_holm(
        [
            difference_row(
                values[kind, FROZEN],
                values[kind, mode],
                seed,
                reach=2.0,
                comparison=f"{mode} - {FROZEN}",
                kind=kind,
                metric=f"{metric}@{grid_of(fitted)}",
            )
            for kind, metric in metrics.items()
            for mode in moved
        ]
    )


def _plot(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    rows = tables["scores"].assign(row=row_names)
    ax = dots(rows, rows="row", series="mode", ax=ax, reference="everything", reference_label=MARKING_EVERYTHING)
    ax.set_xlabel(axis_name(rows))
    return ax


register(
    StudyKind(
        name="adaptation",
        asks="does a frozen backbone generalise better than a fine-tuned one?",
        run=_adaptation,
        plot=_plot,
        legend=f"{DOTS} head leaves the backbone frozen; lora moves queries and values by updates of low rank; full "
        "moves every weight.",
        tests=False,
        trains="finetune",
        reads=("modes", "folds"),
    )
)
