"""Studies of what was trained on: one generator at a time, and more and more photographs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dlprobe.errors import DataError
from dlprobe.plotting import axes, curve, figure_of, legend, mark, panels
from dlprobe.probes import Probe
from dlprobe.studies.designs.base import Findings, StudyKind, register
from dlprobe.studies.designs.pairing import by_source, difference_row, metric_of, score_row, with_holm
from dlprobe.studies.designs.telling import UNADJUSTED, how_sure, notes, shown_models, tell
from dlprobe.studies.displays import MARKING_EVERYTHING, metric_words
from dlprobe.studies.fitting.scoring import EVERYTHING
from dlprobe.studies.results import AUTHENTIC_VARIANTS, FAKE_VARIANTS, grid_of, with_interval

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from matplotlib.axes import Axes

    from dlprobe.studies.designs.workshop import Workshop
    from dlprobe.studies.runs import Run


def _generators(workshop: Workshop) -> Findings:
    """Fit on one generator at a time, hold out the others, and read how well each probe does on each."""
    asked, settings = workshop.study.options, workshop.study.fit
    names = [_painted_by(frame) for frame in workshop.frames()]
    present, tested = names[0], names[-1]
    trained = asked.generators or tuple(present)
    if unknown := sorted(set(trained) - set(present)):
        msg = f"no fake by {', '.join(unknown)} to train on; there are {', '.join(present)}"
        raise DataError(msg)
    if len(present) < 2:
        there = ", ".join(present) or "none"
        msg = f"a study of generators needs fakes by at least two, the data have those of {there}"
        raise DataError(msg)
    caches, test, cells, images = workshop.caches(), workshop.test_caches(), [], []
    for name in trained:
        others = tuple(other for other in present if other != name)
        run = workshop.fit(caches, replace(settings, hold_out=others), test)
        images.append(run.tables["images"].assign(trained=name))
        cells.append(run.path)
    scored = pd.concat(images, ignore_index=True)
    matrix = _matrix(scored, asked.method, tested, settings.seed)
    transfer = _transfer(scored[scored["method"] == asked.method], settings.seed)
    answer = [line for variant in dict.fromkeys(matrix["variant"]) for line in _told(matrix, transfer, str(variant))]
    return Findings({"matrix": matrix, "transfer": transfer}, answer, [UNADJUSTED], cells)


def _painted_by(frame: pd.DataFrame) -> list[str]:
    fakes = frame.loc[frame["variant"].isin(FAKE_VARIANTS), "generator"]
    return sorted({str(name) for name in fakes} - {""})


def _matrix(images: pd.DataFrame, method: str, tested: Collection[str], seed: int) -> pd.DataFrame:
    """Return one row a variant, generator trained on and generator tested on; kinds of masks are no generators."""
    fakes = images[images["variant"].isin(FAKE_VARIANTS) & images["generator"].isin(list(tested))]
    records = []
    for (variant, trained, generator), rows in fakes.groupby(["variant", "trained", "generator"], sort=True):
        part = rows[rows["method"] == method]
        if part.empty:
            continue
        everything = pd.Series(by_source(rows[rows["method"] == EVERYTHING], "iou")).mean()
        names = {"variant": variant, "trained": trained, "tested": generator, "metric": f"iou@{grid_of(rows)}"}
        row = score_row(by_source(part, "iou"), seed, **names)
        n_images = int(part["iou"].notna().sum())
        records.append({**row, "everything": everything, "gain": row["value"] - everything, "n_images": n_images})
    if not records:
        msg = f"no tested fake has a score of {method}; name a method that [fit] asks for"
        raise DataError(msg)
    return pd.DataFrame.from_records(records)


def _transfer(images: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return what is lost where the tested generator was not trained on, paired by photograph."""
    rows = []
    trained = set(images["trained"])
    for variant, part in images[images["variant"].isin(FAKE_VARIANTS)].groupby("variant", sort=True):
        known = part[part["generator"].isin(trained)]
        own, other = known[known["generator"] == known["trained"]], known[known["generator"] != known["trained"]]
        names = {"comparison": "other generators - its own", "kind": variant, "metric": f"iou@{grid_of(part)}"}
        if len(own) and len(other):
            ours = by_source(own, "iou")
            row = difference_row(ours, by_source(other, "iou"), seed, **names)
            rows.append({**row, "own": float(pd.Series(ours).mean())})
    return with_holm(rows)


def _told(matrix: pd.DataFrame, transfer: pd.DataFrame, variant: str) -> list[str]:
    rows = matrix[matrix["variant"] == variant]
    other = rows[rows["trained"] != rows["tested"]]
    lines = []
    for _, row in (transfer[transfer["kind"] == variant] if len(transfer) else transfer).iterrows():
        change = with_interval(row["difference"], row["low"], row["high"], signed=True)
        lines.append(
            f"On {variant}, a probe has an IoU of {row['own']:.3f} on the generator that it was trained on; on the "
            f"others it changes by {change} {how_sure(row)}."
        )
    if other["gain"].notna().any():
        worst = other.loc[other["gain"].idxmin()]
        found = with_interval(worst["value"], worst["low"], worst["high"])
        lines.append(
            f"On {variant}, least is gained over marking everything, picked out of {len(other)} cells, from "
            f"{worst['trained']} to {worst['tested']}: {found}, where that gets {worst['everything']:.3f}."
        )
    return lines


def _plot_matrix(tables: dict[str, pd.DataFrame], ax: Axes | None, at: int = 0) -> Axes:
    matrix = tables["matrix"]
    variant = list(dict.fromkeys(matrix["variant"]))[at]
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
    figure_of(ax).colorbar(image, ax=ax, label=f"IoU on {variant}")
    return ax


def _other_matrix(tables: dict[str, pd.DataFrame]) -> Axes | None:
    return _plot_matrix(tables, None, 1) if tables["matrix"]["variant"].nunique() > 1 else None


@dataclass(frozen=True, slots=True)
class _Size:
    """A fit on so many photographs: how many were asked for, those that trained in each fold, and the scores."""

    asked: int
    trained: tuple[frozenset[str], ...]
    run: Run

    @property
    def count(self) -> str:
        """How many photographs trained, from fold to fold."""
        few, many = (end(map(len, self.trained)) for end in (min, max))
        return str(few) if few == many else f"{few} to {many}"

    @property
    def mean(self) -> float:
        """How many trained on average over the folds."""
        return float(np.mean([len(part) for part in self.trained]))


def _data_size(workshop: Workshop) -> Findings:
    """Fit on more and more photographs, and read how the scores of the same tested photographs grow."""
    asked, settings = workshop.study.options, workshop.study.fit
    if not asked.sources:
        msg = "a study of data-size needs numbers of photographs to train on; name them in [options] sources"
        raise DataError(msg)
    caches, test, sizes = workshop.caches(), workshop.test_caches(), []
    for count in sorted(set(asked.sources)):
        run = workshop.fit(caches, replace(settings, train_sources=count), test)
        sizes.append(_Size(count, trained_on(run, asked.method, asked.scheme), run))
    kept, lines = _distinct(sizes)
    growth = pd.DataFrame.from_records([row for size in kept for row in _size_rows(size, asked.method, settings.seed)])
    differences = with_holm(
        [
            row
            for few, many in itertools.pairwise(kept)
            for row in _size_differences(few, many, asked.method, settings.seed)
        ]
    )
    told = [*lines, *notes(kept[-1].run, shown_models(kept[-1].run))]
    tables = {"growth": growth, "differences": differences}
    return Findings(
        tables, [*_grown(growth), *tell(differences)], [UNADJUSTED, *told], [size.run.path for size in sizes]
    )


def trained_on(run: Run, method: str, scheme: str) -> tuple[frozenset[str], ...]:
    """Return the photographs that trained in each fold, as the cards of its probes say."""
    cards = [Probe.load(path).card for path in sorted((run.path / "probes").glob(f"*/folds/{method}-{scheme}-*"))]
    if not cards and method in set(run.tables["images"]["method"]):
        msg = f"{method} has no probe that is saved with who trained it; name another method in [options]"
        raise DataError(msg)
    if not cards:
        msg = f"the fit has no {method} probe of {scheme}; name a method and a scheme that [fit] asks for"
        raise DataError(msg)
    return tuple(frozenset(card["data"]["train_sources"]) for card in cards)


def _distinct(sizes: Sequence[_Size]) -> tuple[list[_Size], list[str]]:
    """Return the fits that differ, and a line on those that trained on what a smaller one had trained on."""
    kept: list[_Size] = []
    lines = []
    for size in sizes:
        if kept and kept[-1].trained == size.trained:
            lines.append(
                f"{size.asked} photographs are those of {kept[-1].asked}, and left out: photographs that share a donor "
                "stay together, and no more fit in."
            )
        else:
            kept.append(size)
        if size.count != str(size.asked):
            lines.append(f"{size.asked} photographs were asked for and {size.count} trained, because donors join them.")
    return kept, lines


def _size_rows(size: _Size, method: str, seed: int) -> list[dict[str, object]]:
    rows = []
    images = size.run.tables["images"]
    for variant, part in images[images["variant"].isin([*FAKE_VARIANTS, *AUTHENTIC_VARIANTS])].groupby("variant"):
        metric = metric_of(str(variant))
        ours = part[part["method"] == method]
        names = {
            "kind": variant,
            "photographs": size.count,
            "photographs_mean": size.mean,
            "metric": f"{metric}@{grid_of(part)}",
        }
        everything = pd.Series(by_source(part[part["method"] == EVERYTHING], metric)).mean()
        row = score_row(by_source(ours, metric), seed, **names)
        rows.append({**row, "everything": everything, "n_images": int(ours[metric].notna().sum())})
    return rows


def _size_differences(few: _Size, many: _Size, method: str, seed: int) -> list[dict[str, object]]:
    """Return what more photographs change, on the tested photographs of both."""
    tables = [size.run.tables["images"] for size in (few, many)]
    before, after = (table[table["method"] == method] for table in tables)
    return [
        difference_row(
            by_source(before[before["variant"] == variant], metric_of(variant)),
            by_source(after[after["variant"] == variant], metric_of(variant)),
            seed,
            comparison=f"a probe of {many.count} photographs - a probe of {few.count} photographs",
            kind=variant,
            metric=f"{metric_of(variant)}@{grid_of(before)}",
        )
        for variant in dict.fromkeys(before["variant"])
    ]


def _grown(growth: pd.DataFrame) -> list[str]:
    """Return one sentence a metric: where it begins and where it ends on every kind."""
    lines = []
    for metric, rows in growth.groupby("metric", sort=False):
        ends = {kind: (part.iloc[0], part.iloc[-1]) for kind, part in rows.groupby("kind", sort=False)}
        few, many = next(iter(ends.values()))
        told = [f"{one['value']:.3f} to {last['value']:.3f} on {kind}" for kind, (one, last) in ends.items()]
        lines.append(
            f"From {few['photographs']} photographs trained on to {many['photographs']}, the "
            f"{metric_words(str(metric))} goes from {', '.join(told)} ({few['n_sources']} tested photographs)."
        )
    return lines


def _plot_growth(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    """Draw one panel a metric, or all on the axes that are given."""
    growth = tables["growth"]
    metrics = [metric for metric in ("iou", "false_area") if growth["metric"].str.startswith(f"{metric}@").any()]
    drawn = panels(len(metrics), side_in=4.2) if ax is None else [ax] * len(metrics)
    for on, metric in zip(drawn, metrics, strict=True):
        rows = growth[growth["metric"].str.startswith(f"{metric}@")]
        for number, (kind, part) in enumerate(rows.groupby("kind", sort=False)):
            ends = (part["value"], part["low"], part["high"])
            curve(on, part["photographs_mean"], *ends, series=number, label=str(kind))
        if metric == "iou":
            _mark_everything(on, rows)
        on.set_xscale("log", base=2)
        counts = rows.drop_duplicates("photographs_mean")
        on.set_xticks(counts["photographs_mean"].tolist(), counts["photographs"].tolist())
        on.set_xticks([], minor=True)
        on.set_ylim(0, 1)
        on.grid(alpha=0.3)
        on.set_xlabel("photographs trained on")
        on.set_ylabel(f"{metric_words(metric)} ({'higher' if metric == 'iou' else 'lower'} is better)")
        legend(on)
    return drawn[0]


def _mark_everything(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw what marking everything gets: a black line where kinds share it, else one in the colour of each kind."""
    kinds = list(dict.fromkeys(rows["kind"]))
    for level, part in rows.groupby(rows["everything"].round(3)):
        own = list(dict.fromkeys(part["kind"]))
        colour = mark(kinds.index(own[0])).colour if len(own) == 1 < len(kinds) else "black"
        label = MARKING_EVERYTHING if len(own) == len(kinds) else f"{MARKING_EVERYTHING}, {', '.join(map(str, own))}"
        ax.axhline(float(str(level)), color=colour, linestyle=":", linewidth=1.2, label=label)


register(
    StudyKind(
        name="generators",
        asks="does a probe of one generator find the others' work?",
        run=_generators,
        plot=_plot_matrix,
        legend="Each cell is the mean IoU over photographs with its 95 % interval, of a probe that was fitted on the "
        "row's generator alone and is tested on the column's; more is better. What marking everything gets "
        "stands in the table.",
        details=_other_matrix,
        reads=("method", "scheme", "generators"),
    )
)
register(
    StudyKind(
        name="data-size",
        asks="how many photographs are enough to train on?",
        run=_data_size,
        plot=_plot_growth,
        legend="Dots are means over the tested photographs, bands their 95 % intervals; dotted is the IoU of marking "
        "everything, in the colour of its kind where kinds differ. The same photographs are tested at every size: the "
        "answer rests on differences between sizes, photograph by photograph.",
        reads=("method", "scheme", "sources"),
    )
)
