"""From scores of images to a table one can defend: means over sources with intervals, and paired differences."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dlprobe.data.labels import TRUTH_SCHEME
from dlprobe.metrics import holm, seed_spread
from dlprobe.metrics.intervals.studentized import bootstrap_means, paired_differences
from dlprobe.studies.evaluation.subjects import SIZE_BINS
from dlprobe.studies.fitting.scoring import EVERYTHING
from dlprobe.studies.fitting.scoring.by_source import ScoreColumns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

#: Variants with a region to find, and variants that must stay unmarked.
FAKE_VARIANTS = ("sp", "fr")
AUTHENTIC_VARIANTS = ("real", "ae", "aesp")
FAKE_METRICS = ("iou", "f1", "ap", "iou_val", "f1_val", "iou_own", "iou_promised", "f1_promised")
AUTHENTIC_METRICS = (
    "false_area",
    "flagged",
    "false_area_val",
    "flagged_val",
    "false_area_promised",
    "flagged_promised",
)
#: By which methods are compared: at 0.5 the one whose scores lie better wins, whatever each sees.
METHOD_METRICS = ("iou", "iou_val", "ap")
#: Shown to people: of all kinds, and of whole variants besides.
_OVERVIEW, _OVERVIEW_OF_VARIANTS = ("iou", "false_area"), ("iou_val", "false_area_val", "ap")
#: The method that comparisons are about, if it was fitted.
MAIN_METHOD = "dice"
#: When a kind counts as not surely won, in words.
_NOT_SURE = "the interval of the difference, each kind's own and unadjusted, reaches to 0 or below"
#: Columns of a mean over sources and its interval.
_INTERVAL = ("value", "low", "high", "n_sources")
#: What identifies a row of scores beside its kind.
METHOD_KEY = ["model", "method", "scheme"]


def kinds(images: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield every kind of image with its rows: each variant, and each of its generators, mask kinds and mask sizes.

    Fakes come before the others, in every table and figure.
    """
    of_variant = dict(iter(images.groupby("variant")))
    for variant in (name for name in (*FAKE_VARIANTS, *AUTHENTIC_VARIANTS) if name in of_variant):
        rows = of_variant[variant]
        yield variant, rows
        for column in ("generator", "mask_kind"):
            if rows[column].nunique() > 1:
                for value, part in rows.groupby(column):
                    yield f"{variant} {value or '(none)'}", part
        sizes = [size for _, size in SIZE_BINS if (rows["mask_size"] == size).any()]
        if len(sizes) > 1:
            yield from ((f"{variant} {size}", rows[rows["mask_size"] == size]) for size in sizes)


def tables_of_models(of_models: Mapping[str, Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Return the tables of several models, each as one with the column ``model``, by their name."""
    names = next(iter(of_models.values()))
    return {
        name: pd.concat([tables[name].assign(model=model) for model, tables in of_models.items()], ignore_index=True)
        for name in names
    }


def grid_of(images: pd.DataFrame) -> str:
    """Return the grid that images were scored on, which is part of every metric's name: ``patch`` or ``px``."""
    return str(images["grid"].iloc[0]) if len(images) else "patch"


def summarise(images: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return means over sources with studentized intervals, in long form.

    Parameters
    ----------
    images : DataFrame
        Rows of `dlprobe.studies.fitting.scoring.score_images` with a column ``model``.
    seed : int
        Of the resampling.

    Returns
    -------
    DataFrame
        One row per kind, model, method, scheme and metric: ``value``, ``low``, ``high`` (NaN below 8 sources),
        ``n_sources``, ``n_images``, and ``everything``, what marking all patches gets there. With several seeds the
        value and its interval are those of the mean over seeds of each source; ``seeds`` is their number, ``seed_sd``
        their spread (see `dlprobe.metrics.SeedSpread`) and ``sampling_error`` that of sources, both NaN with one seed.
    """
    images = images.reset_index(drop=True)
    columns, grid = ScoreColumns(images, METHOD_KEY), grid_of(images)
    settings = images["setting"].to_numpy()
    records: list[dict[str, object]] = []
    for kind, rows in kinds(images):
        of_kind, means = [], []
        fake = rows["variant"].iloc[0] in FAKE_VARIANTS
        parts = columns.parts(rows.index.to_numpy())
        everything = next((part for (_, method, _), part in parts.items() if method == EVERYTHING), None)
        for metric in FAKE_METRICS if fake else AUTHENTIC_METRICS:
            if metric not in columns:
                continue
            baseline = float("nan") if everything is None else _mean(columns.by_source(everything, metric))
            for key, part in parts.items():
                means.append(columns.by_source(part, metric))
                of_kind.append(
                    {
                        "kind": kind,
                        **dict(zip(METHOD_KEY, key, strict=True)),
                        "metric": f"{metric}@{grid}",
                        **dict.fromkeys(_INTERVAL),
                        "n_images": columns.n_files(part, metric),
                        "everything": baseline,
                        **_spread(columns, part, metric),
                        "setting": "; ".join(sorted({str(setting) for setting in settings[part] if setting})),
                    }
                )
        intervals = bootstrap_means(np.array(means), seed=seed, bounds=(0, 1)) if means else []
        for record, interval in zip(of_kind, intervals, strict=True):
            record |= dict(zip(_INTERVAL, interval, strict=False))
        records += of_kind
    return pd.DataFrame.from_records(records)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two rows of scores that are compared source by source: `right` minus `left`, each (model, method, scheme)."""

    name: str
    left: tuple[str, str, str]
    right: tuple[str, str, str]
    kind: str
    metric: str


def planned_comparisons(images: pd.DataFrame) -> list[Comparison]:
    """Return the comparisons of a run, fixed before any score is looked at.

    Each Dice probe against marking everything (IoU on each kind of fake); Dice against every other method (IoU at the
    score 0.5, IoU at the threshold chosen on validation, and AP, on ``sp`` and ``fr``); each pair of schemes (false
    area on ``ae``, IoU on ``sp`` and ``fr``); each pair of models under the scheme of the truth (IoU and AP on each
    variant). Where no head was fitted by Dice, the first method stands for it.
    """
    rows = images[METHOD_KEY].drop_duplicates()
    models = list(dict.fromkeys(rows["model"]))
    main, *others = methods_of(rows)
    schemes = list(dict.fromkeys(rows.loc[rows["method"] == main, "scheme"]))
    fakes = [kind for kind, part in kinds(images) if part["variant"].iloc[0] in FAKE_VARIANTS]
    variants = [variant for variant in FAKE_VARIANTS if (images["variant"] == variant).any()]
    head = TRUTH_SCHEME if TRUTH_SCHEME in schemes else schemes[0]
    plan: list[Comparison] = []
    for model in models:
        right = (model, main, head)
        plan += [Comparison(f"{main} - {EVERYTHING}", (model, EVERYTHING, ""), right, kind, "iou") for kind in fakes]
        for method in others:
            left, name = (model, method, head), f"{main} - {method}"
            plan += [Comparison(name, left, right, kind, metric) for kind in variants for metric in METHOD_METRICS]
        for one, other in combinations(schemes, 2):
            left, right = (model, main, one), (model, main, other)
            name = f"{other} - {one}"
            plan += [Comparison(name, left, right, kind, "iou") for kind in variants]
            if (images["variant"] == "ae").any():
                plan.append(Comparison(name, left, right, "ae", "false_area"))
    for one, other in combinations(models, 2):
        left, right = (other, main, head), (one, main, head)
        plan += [Comparison(f"{one} - {other}", left, right, kind, m) for kind in variants for m in ("iou", "ap")]
    return plan


def methods_of(rows: pd.DataFrame) -> list[str]:
    """Return the methods of a table but marking everything, the one that comparisons are about first."""
    names = [str(method) for method in dict.fromkeys(rows["method"]) if method != EVERYTHING]
    main = MAIN_METHOD if MAIN_METHOD in names else names[0]
    return [main, *(name for name in names if name != main)]


def compare(images: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return the paired differences of `planned_comparisons`, with intervals, sign-flip p and Holm's adjustment.

    Parameters
    ----------
    images : DataFrame
        As for `summarise`.
    seed : int
        Of resampling and sign flips.
    """
    images = images.reset_index(drop=True)
    columns, grid = ScoreColumns(images, METHOD_KEY), grid_of(images)
    by_kind = {kind: columns.parts(rows.index.to_numpy()) for kind, rows in kinds(images)}
    plans = [plan for plan in planned_comparisons(images) if {plan.left, plan.right} <= by_kind[plan.kind].keys()]
    differences = np.array(
        [
            columns.by_source(by_kind[plan.kind][plan.right], plan.metric)
            - columns.by_source(by_kind[plan.kind][plan.left], plan.metric)
            for plan in plans
        ]
    ).reshape(len(plans), -1)
    records = [
        {
            "model": plan.right[0],
            "comparison": plan.name,
            "kind": plan.kind,
            "metric": f"{plan.metric}@{grid}",
            "difference": found.estimate,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            "n_sources": found.n,
        }
        for plan, found in zip(plans, paired_differences(differences, seed=seed, bounds=(-1, 1)), strict=True)
    ]
    table = pd.DataFrame.from_records(records)
    return table.assign(p_holm=holm(table["p"].to_numpy())) if len(table) else table


def overview(results: pd.DataFrame) -> pd.DataFrame:
    """Return the table that people read first: one row per kind, one column per method and scheme.

    A cell is the IoU on fakes and the false area on authentic images, both at the score 0.5, with its interval; of
    whole variants also at the threshold chosen on validation, and the AP.
    """
    several = results["model"].nunique() > 1

    def name(cell: Any) -> str:
        method = f"{cell.method} {cell.scheme}"
        return f"{cell.model}: {method}" if several else method

    return _spread_out(results, ["kind", "metric"], name)


def by_scheme(results: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return the numbers of `overview` of some methods, one column a scheme; methods and models are rows."""
    rows = results[results["method"].isin(list(methods))]
    apart = [column for column in ("model", "method") if rows[column].nunique() > 1]
    table = _spread_out(rows, ["kind", "metric", *apart], lambda cell: str(cell.scheme))
    counts = [name for name in ("images", "sources") if name in table]
    return table[[*(name for name in table.columns if name not in counts), *counts]]  # narrow screens show scores first


def digest(results: pd.DataFrame) -> pd.DataFrame:
    """Return what a terminal has room for: whole variants at the score 0.5, a row a probe, `value` with its interval.

    All methods are there under the scheme of the truth, or the first, and the main method under every other scheme.
    """
    metric = results["metric"].str.partition("@")[0]
    rows = results[results["kind"].isin((*FAKE_VARIANTS, *AUTHENTIC_VARIANTS)) & metric.isin(_OVERVIEW)]
    rows = rows[rows["method"] != EVERYTHING]
    main, *_ = methods_of(rows)
    head = TRUTH_SCHEME if (rows["scheme"] == TRUTH_SCHEME).any() else rows["scheme"].iloc[0]
    rows = rows[(rows["method"] == main) | (rows["scheme"] == head)]
    ends = zip(rows["value"], rows["low"], rows["high"], strict=True)
    return pd.DataFrame(
        {
            "model": rows["model"],
            "kind": rows["kind"],
            "metric": rows["metric"],
            "probe": rows["method"] + " " + rows["scheme"],
            "value": [with_interval(*each) for each in ends],
            "everything": rows["everything"].map("{:.3f}".format, na_action="ignore").fillna(""),
        }
    )


def _spread_out(results: pd.DataFrame, key: list[str], name: Callable[[Any], str]) -> pd.DataFrame:
    """Return one row a key, one column for each name of a cell."""
    metric = results["metric"].str.partition("@")[0]
    whole = results["kind"].isin((*FAKE_VARIANTS, *AUTHENTIC_VARIANTS)) & metric.isin(_OVERVIEW_OF_VARIANTS)
    wanted = results[metric.isin(_OVERVIEW) | whole]
    rows: list[dict[str, object]] = []
    for names, part in wanted.groupby(key, sort=False):
        row: dict[str, object] = {
            **dict(zip(key, names, strict=True)),
            "images": int(part["n_images"].max()),
            "sources": int(part["n_sources"].max()),
            "everything": f"{part.iloc[0]['everything']:.3f}",
        }
        for cell in part[part["method"] != EVERYTHING].itertuples():
            row[name(cell)] = with_interval(cell.value, cell.low, cell.high)
        rows.append(row)
    return pd.DataFrame.from_records(rows).fillna("")


def side_by_side(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return the comparisons as people read them: differences with their intervals, p as it is and after Holm."""
    if comparisons.empty:
        return comparisons
    told = comparisons[["comparison", "model", "kind", "metric"]].copy()
    ends = zip(comparisons["difference"], comparisons["low"], comparisons["high"], strict=True)
    told["difference"] = [with_interval(*each, signed=True) for each in ends]
    return told.assign(
        p=comparisons["p"].map("{:.4f}".format),
        p_holm=comparisons["p_holm"].map("{:.4f}".format),
        sources=comparisons["n_sources"],
    )


def flagged_rows(model: str, flags: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """Return one row of the results, without any score, for each method and scheme that could not be fitted."""
    rows = [{"model": model, "method": m, "scheme": s, "n_sources": 0, "flag": why} for (m, s), why in flags.items()]
    return pd.DataFrame.from_records(rows).assign(kind="", metric="", setting="") if rows else pd.DataFrame()


def losses_to_everything(comparisons: pd.DataFrame) -> list[str]:
    """Return one line for each model that has kinds of fake in which it does not surely beat marking everything."""
    lost = lost_to_everything(comparisons)
    if lost.empty:
        return []
    counts = comparisons[_against_everything(comparisons)].groupby("model").size()
    return [f"{model}: {told_losses(part, counts[model])}" for model, part in lost.groupby("model", sort=False)]


def lost_to_everything(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return the comparisons with marking everything that are not surely won.

    Surely: the interval of the difference in IoU lies above 0. Kinds with too few sources for an interval are left out.
    """
    if comparisons.empty:
        return comparisons
    return comparisons[_against_everything(comparisons) & (comparisons["low"] <= 0)]


def told_losses(lost: pd.DataFrame, of: int, because: str = _NOT_SURE) -> str:
    """Return of kinds that are not surely won the whole variants by name, and how many there are of how many."""
    whole = lost[lost["kind"].isin(FAKE_VARIANTS)]
    told = [
        f"{row.kind} ({with_interval(row.difference, row.low, row.high, signed=True) or 'not defined'})"
        for row in whole.itertuples()
    ]
    if more := len(lost) - len(whole):
        told.append(f"{more} narrower {'kinds' if more > 1 else 'kind'}, which comparisons.csv names")
    start = f"does not surely beat marking everything on {len(lost)} of {of} kinds of fake"
    return f"{start}, where {because}: {' and '.join(told)}"


def _against_everything(comparisons: pd.DataFrame) -> pd.Series:
    return comparisons["comparison"].str.endswith(f" - {EVERYTHING}") & comparisons["low"].notna()


def on_thresholds(images: pd.DataFrame) -> list[str]:
    """Return what a reader of several methods must know of the score 0.5."""
    if images.loc[images["method"] != EVERYTHING, "method"].nunique() < 2:
        return []
    text = (
        "at the score 0.5 methods differ by where their scores lie as much as by what they see: a difference in IoU "
        "there is none between methods; read the IoU at each one's threshold of validation (iou_val) and the average "
        "precision (ap) beside it"
    )
    return [text]


def with_interval(value: float, low: float, high: float, *, signed: bool = False) -> str:
    """Return ``0.512 [0.431, 0.590]``; without the brackets where there is no interval."""
    if pd.isna(value):
        return ""
    form = "+.3f" if signed else ".3f"
    return f"{value:{form}}" if pd.isna(low) else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _mean(values: NDArray[np.float64]) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")


def _spread(columns: ScoreColumns, rows: NDArray[np.intp], metric: str) -> dict[str, float]:
    """Return the number of seeds, their spread and that of sources."""
    of_seeds = columns.of_seeds(rows)
    nothing = {"seeds": len(of_seeds), "seed_sd": float("nan"), "sampling_error": float("nan")}
    if len(of_seeds) < 2:
        return nothing
    table = np.stack([columns.by_source(part, metric) for part in of_seeds])
    if (~np.isnan(table).any(axis=0)).sum() < 2:
        return nothing
    found = seed_spread(table)
    return {"seeds": found.seeds, "seed_sd": found.seed_sd, "sampling_error": found.sampling_error}
