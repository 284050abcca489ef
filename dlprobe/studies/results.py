"""From scores of images to a table one can defend: means over sources with intervals, and paired differences."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import pandas as pd

from dlprobe.data.labels import TRUTH_SCHEME
from dlprobe.metrics import bootstrap_mean, holm, paired_difference, seed_spread, source_means
from dlprobe.studies.evaluation.subjects import SIZE_BINS
from dlprobe.studies.fitting.scoring import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
#: What identifies a row of scores beside its kind.
METHOD_KEY = ["model", "method", "scheme"]


def kinds(images: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield every kind of image with its rows: each variant, and each of its generators, mask kinds and mask sizes."""
    for variant, rows in images.groupby("variant", sort=False):
        yield str(variant), rows
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


#: Where images are scored, by the name of the grid that stands in a metric's.
GRIDS = {"patch": "on patches", "px": "on the pixels that all models show"}


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
    records = []
    for kind, rows in kinds(images):
        fake = rows["variant"].iloc[0] in FAKE_VARIANTS
        for metric in FAKE_METRICS if fake else AUTHENTIC_METRICS:
            if metric not in rows:
                continue
            baseline = _mean(rows[rows["method"] == EVERYTHING], metric)
            for key, part in rows.groupby(METHOD_KEY, sort=False):
                interval = bootstrap_mean(_by_source(part, metric), seed=seed, bounds=(0, 1))
                records.append(
                    {
                        "kind": kind,
                        **dict(zip(METHOD_KEY, key, strict=True)),
                        "metric": f"{metric}@{grid_of(images)}",
                        "value": interval.estimate,
                        "low": interval.low,
                        "high": interval.high,
                        "n_sources": interval.n,
                        "n_images": part.loc[part[metric].notna(), ["dataset", "path"]].drop_duplicates().shape[0],
                        "everything": baseline,
                        **_spread(part, metric),
                        "setting": _settings(part),
                    }
                )
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
    others = [method for method in dict.fromkeys(rows["method"]) if method != EVERYTHING]
    main = MAIN_METHOD if MAIN_METHOD in others else others[0]
    others.remove(main)
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


def compare(images: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return the paired differences of `planned_comparisons`, with intervals, sign-flip p and Holm's adjustment.

    Parameters
    ----------
    images : DataFrame
        As for `summarise`.
    seed : int
        Of resampling and sign flips.
    """
    by_kind = dict(kinds(images))
    records = []
    for plan in planned_comparisons(images):
        rows = by_kind[plan.kind].set_index(METHOD_KEY).sort_index()
        if plan.left not in rows.index or plan.right not in rows.index:
            continue
        left, right = (_by_source(rows.loc[[side]], plan.metric) for side in (plan.left, plan.right))
        found = paired_difference(left, right, seed=seed, bounds=(-1, 1))
        records.append(
            {
                "model": plan.right[0],
                "comparison": plan.name,
                "kind": plan.kind,
                "metric": f"{plan.metric}@{grid_of(images)}",
                "difference": found.estimate,
                "low": found.low,
                "high": found.high,
                "p": found.p,
                "n_sources": found.n,
            }
        )
    table = pd.DataFrame.from_records(records)
    return table.assign(p_holm=holm(table["p"].to_numpy())) if len(table) else table


def overview(results: pd.DataFrame) -> pd.DataFrame:
    """Return the table that people read first: one row per kind, one column per method and scheme.

    A cell is the IoU on fakes and the false area on authentic images, both at the score 0.5, with its interval; of
    whole variants also at the threshold chosen on validation, and the AP.
    """
    metric = results["metric"].str.partition("@")[0]
    whole = results["kind"].isin((*FAKE_VARIANTS, *AUTHENTIC_VARIANTS)) & metric.isin(_OVERVIEW_OF_VARIANTS)
    wanted = results[metric.isin(_OVERVIEW) | whole]
    several = results["model"].nunique() > 1
    rows: list[dict[str, object]] = []
    for (kind, metric), part in wanted.groupby(["kind", "metric"], sort=False):
        first = part.iloc[0]
        row: dict[str, object] = {
            "kind": kind,
            "metric": metric,
            "images": int(part["n_images"].max()),
            "sources": int(part["n_sources"].max()),
            "everything": f"{first['everything']:.3f}",
        }
        for cell in part[part["method"] != EVERYTHING].itertuples():
            name = f"{cell.method} {cell.scheme}"
            row[f"{cell.model}: {name}" if several else name] = with_interval(cell.value, cell.low, cell.high)
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
    """Return one line for each model that names the kinds of fake in which it does not surely beat marking everything.

    Surely: the interval of the difference in IoU lies above 0. Kinds with too few sources for an interval are left out.
    """
    if comparisons.empty:
        return []
    against = comparisons[comparisons["comparison"].str.endswith(f" - {EVERYTHING}") & comparisons["low"].notna()]
    lost = against[against["low"] <= 0]
    return [
        f"{model}: does not surely beat marking everything on "
        + ", ".join(
            f"{row.kind} ({with_interval(row.difference, row.low, row.high, signed=True)})" for row in part.itertuples()
        )
        for model, part in lost.groupby("model", sort=False)
    ]


def on_thresholds(images: pd.DataFrame) -> list[str]:
    """Return what a reader of several methods must know of the score 0.5."""
    if images.loc[images["method"] != EVERYTHING, "method"].nunique() < 2:
        return []
    text = (
        "at the score 0.5 methods differ by where their scores lie as much as by what they see: a difference in iou "
        "alone is none between methods; read iou_val (each at its threshold of validation) and ap beside it"
    )
    return [text]


def with_interval(value: float, low: float, high: float, *, signed: bool = False) -> str:
    """Return ``0.512 [0.431, 0.590]``; without the brackets where there is no interval."""
    if pd.isna(value):
        return ""
    form = "+.3f" if signed else ".3f"
    return f"{value:{form}}" if pd.isna(low) else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _by_source(rows: pd.DataFrame, metric: str) -> dict[str, float]:
    return source_means(rows[metric].to_numpy(dtype=float), rows["source_id"].to_numpy(dtype=str))


def _mean(rows: pd.DataFrame, metric: str) -> float:
    first = rows[rows["model"] == rows["model"].iloc[0]] if len(rows) else rows
    values = [value for value in _by_source(first, metric).values() if value == value]  # noqa: PLR0124 (drops NaN)
    return sum(values) / len(values) if values else float("nan")


def _spread(rows: pd.DataFrame, metric: str) -> dict[str, float]:
    """Return the number of seeds, their spread and that of sources."""
    seeds = list(dict.fromkeys(rows["seed"])) if "seed" in rows else [0]
    nothing = {"seeds": len(seeds), "seed_sd": float("nan"), "sampling_error": float("nan")}
    if len(seeds) < 2:
        return nothing
    table = pd.DataFrame({seed: _by_source(rows[rows["seed"] == seed], metric) for seed in seeds}).dropna()
    if len(table) < 2:
        return nothing
    found = seed_spread(table.to_numpy().T)
    return {"seeds": found.seeds, "seed_sd": found.seed_sd, "sampling_error": found.sampling_error}


def _settings(rows: pd.DataFrame) -> str:
    return "; ".join(sorted({str(setting) for setting in rows["setting"] if setting}))
