"""Studies of what was trained on: one generator at a time, and more and more photographs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dlprobe.errors import DataError
from dlprobe.plotting import axes, curve, legend
from dlprobe.studies.designs.base import Findings, StudyKind, register
from dlprobe.studies.designs.kinds.comparing import notes
from dlprobe.studies.results import FAKE_VARIANTS, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dlprobe.studies.designs.workshop import Workshop


def _generators(workshop: Workshop) -> Findings:
    """Fit on one generator at a time, hold out the others, and read how well each probe does on each."""
    asked = workshop.study.options
    frame = workshop.manifest().frame
    present = sorted(frame.loc[frame["variant"].isin(FAKE_VARIANTS), "generator"].unique())
    trained = asked.generators or tuple(present)
    if unknown := sorted(set(trained) - set(present)):
        msg = f"no fake by {', '.join(unknown)} to train on; there are {', '.join(present)}"
        raise DataError(msg)
    if len(present) < 2:
        msg = (
            f"a study of generators needs fakes by at least two, the data have those of {', '.join(present) or 'none'}"
        )
        raise DataError(msg)
    caches, parts, cells = workshop.caches()[:1], [], []
    for name in trained:
        others = tuple(other for other in present if other != name)
        run = workshop.fit(caches, replace(workshop.study.fit, schemes=(asked.scheme,), hold_out=others))
        parts.append(_by_generator(run.tables["results"], asked.method).assign(trained=name))
        cells.append(run.path)
    matrix = pd.concat(parts, ignore_index=True)
    answer = [_transfer(matrix, variant) for variant in dict.fromkeys(matrix["variant"])]
    return Findings({"matrix": matrix}, [line for line in answer if line], cells)


def _by_generator(results: pd.DataFrame, method: str) -> pd.DataFrame:
    rows = results[(results["method"] == method) & results["metric"].str.startswith("iou@")]
    parts = rows["kind"].str.partition(" ")
    rows = rows.assign(variant=parts[0], tested=parts[2], gain=rows["value"] - rows["everything"])
    columns = ["variant", "tested", "metric", "value", "low", "high", "everything", "gain", "n_sources", "n_images"]
    return rows.loc[rows["tested"] != "", columns]


def _transfer(matrix: pd.DataFrame, variant: str) -> str:
    rows = matrix[matrix["variant"] == variant]
    own, other = rows[rows["trained"] == rows["tested"]], rows[rows["trained"] != rows["tested"]]
    if own.empty or other.empty:
        return ""
    worst = other.loc[other["gain"].idxmin()]
    found = with_interval(worst["value"], worst["low"], worst["high"])
    return (
        f"{variant}: IoU {own['value'].mean():.3f} where the tested generator was trained on, "
        f"{other['value'].mean():.3f} where it was not (means of {len(own)} and {len(other)} cells); worst from "
        f"{worst['trained']} to {worst['tested']}: {found}, marking everything {worst['everything']:.3f}"
    )


def _plot_matrix(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    matrix = tables["matrix"]
    variant = matrix["variant"].iloc[0]
    table = matrix[matrix["variant"] == variant].pivot_table(index="trained", columns="tested", values="value")
    ax = axes(ax, width_in=2.5 + 0.9 * table.shape[1], height_in=1.8 + 0.5 * table.shape[0])
    image = ax.imshow(table.to_numpy(), vmin=0, vmax=1, cmap="cividis", aspect="auto")
    ends = matrix[matrix["variant"] == variant].groupby(["trained", "tested"])[["low", "high"]].mean()
    for (y, x), value in np.ndenumerate(table.to_numpy()):
        if np.isnan(value):
            continue
        low, high = ends.loc[(table.index[y], table.columns[x])]
        words = f"{value:.2f}" if np.isnan(low) else f"{value:.2f}\n[{low:.2f}, {high:.2f}]"
        ax.text(x, y, words, ha="center", va="center", fontsize="small", color="black" if value > 0.5 else "white")
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=30, ha="right")
    ax.set_yticks(range(table.shape[0]), table.index)
    ax.set_xlabel("tested on")
    ax.set_ylabel("trained on")
    ax.figure.colorbar(image, ax=ax, label=f"IoU on {variant}")
    return ax


def _data_size(workshop: Workshop) -> Findings:
    """Fit on more and more photographs, and read how the scores of the same tested photographs grow."""
    asked = workshop.study.options
    caches, parts, cells = workshop.caches()[:1], [], []
    for count in sorted(set(asked.sources)):
        run = workshop.fit(caches, replace(workshop.study.fit, schemes=(asked.scheme,), train_sources=count))
        results = run.tables["results"]
        wanted = (results["method"] == asked.method) & results["metric"].str.split("@").str[0].isin(
            ["iou", "false_area"]
        )
        plain = results["kind"].isin([*FAKE_VARIANTS, "real", "ae"])
        columns = ["kind", "metric", "value", "low", "high", "everything", "n_sources", "n_images"]
        parts.append(results.loc[wanted & plain, columns].assign(train_sources=count))
        cells.append(run.path)
    growth = pd.concat(parts, ignore_index=True)
    return Findings({"growth": growth}, [*_growth(growth), *notes(run)], cells)


def _growth(growth: pd.DataFrame) -> list[str]:
    lines = []
    for (kind, metric), rows in growth.groupby(["kind", "metric"], sort=False):
        few, many = rows.iloc[0], rows.iloc[-1]
        lines.append(
            f"{kind}: {metric} {with_interval(few['value'], few['low'], few['high'])} from {few['train_sources']} "
            f"photographs, {with_interval(many['value'], many['low'], many['high'])} from {many['train_sources']}"
        )
    return lines


def _plot_growth(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    ax = axes(ax)
    for number, (name, rows) in enumerate(tables["growth"].groupby(["kind", "metric"], sort=False)):
        curve(ax, rows["train_sources"], rows["value"], rows["low"], rows["high"], series=number, label=": ".join(name))
    ax.set_xscale("log", base=2)
    ax.set_xticks(
        sorted(tables["growth"]["train_sources"].unique()), sorted(tables["growth"]["train_sources"].unique())
    )
    ax.set_xlabel("photographs trained on")
    ax.set_ylabel("mean over tested photographs")
    legend(ax)
    return ax


register(StudyKind("generators", "does a probe of one generator find the others' work?", _generators, _plot_matrix))
register(StudyKind("data-size", "how many photographs are enough to train on?", _data_size, _plot_growth))
