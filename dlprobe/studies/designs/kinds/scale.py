"""The study of scale: the size from which on an inpainted region is detected.

Whether an image is detected (IoU of at least `hit_iou` at the validation threshold) is regressed on the logarithm of
the mask's share of a window. The regression is penalised by Jeffreys' prior (Firth 1993), so that it stays finite where
sizes separate hits from misses, as they do in small sets.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from dlprobe.cache import open_cache
from dlprobe.data.synthesis.generator.settings import LADDER
from dlprobe.errors import DataError
from dlprobe.metrics.intervals.resampling import jackknife_interval
from dlprobe.plotting import axes, curve, intervals, legend
from dlprobe.studies.designs.base import Findings, StudyKind, register
from dlprobe.studies.designs.pairing import by_source, score_row
from dlprobe.studies.designs.telling import notes, shown_models
from dlprobe.studies.displays import MARKING_EVERYTHING
from dlprobe.studies.fitting.scoring import EVERYTHING
from dlprobe.studies.pixels import inpainted_windows
from dlprobe.studies.results import FAKE_VARIANTS, with_interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dlprobe.studies.designs.definition import Question
    from dlprobe.studies.designs.workshop import Workshop
    from dlprobe.studies.runs import Run

#: Bins of sizes lie between neighbouring rungs of the ladder, at their geometric mean.
_EDGES = (0.0, *(float(np.sqrt(low * high)) for low, high in pairwise(LADDER)), np.inf)
_STEPS = 100
_HALF = 0.5
#: Factor between the places of two variants, so that their intervals do not lie on each other.
_APART = 1.06


class Growth(NamedTuple):
    """Chance of a detection as a function of size: ``expit(slope * (log2(share) - half))``."""

    half: float
    slope: float


def detection_growth(log2_share: NDArray[np.float64], hit: NDArray[np.bool_]) -> Growth:
    """Fit a logistic curve of hits on sizes, penalised by Jeffreys' prior.

    Parameters
    ----------
    log2_share : ndarray of float, shape (n,)
        Binary logarithm of the mask's share of a window.
    hit : ndarray of bool, shape (n,)
        Whether each image was detected.

    Returns
    -------
    Growth
        ``half`` is the binary logarithm of the size at which the chance is one half; NaN where it does not rise with
        size, or sizes do not differ.

    References
    ----------
    D. Firth, Bias reduction of maximum likelihood estimates, Biometrika 80 (1993) 27-38.
    """
    if np.unique(log2_share).size < 2:
        return Growth(float("nan"), float("nan"))
    centre = log2_share.mean()
    design = np.column_stack([np.ones(log2_share.size), log2_share - centre])
    beta, truth = np.zeros(2), hit.astype(np.float64)
    for _ in range(_STEPS):
        chance = expit(design @ beta)
        weight = chance * (1 - chance)
        information = design.T @ (weight[:, None] * design)
        leverage = weight * np.einsum("ij,jk,ik->i", design, np.linalg.inv(information), design)
        step = np.linalg.solve(information, design.T @ (truth - chance + leverage * (0.5 - chance)))
        beta += step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    if beta[1] <= 0:
        return Growth(float("nan"), float(beta[1]))
    return Growth(float(centre - beta[0] / beta[1]), float(beta[1]))


def _scale(workshop: Workshop) -> Findings:
    asked = workshop.study.options
    caches, test = workshop.caches(), workshop.test_caches()
    run = workshop.fit(caches, workshop.study.fit, test)
    tested = _tested_fakes(run)
    keys = set(zip(tested["dataset"], tested["path"], strict=True))
    sizes = {key: size for path in (*caches, *test) for key, size in inpainted_windows(open_cache(path), keys).items()}
    images = _sized(run, asked.method, asked.scheme, sizes).assign(hit=lambda rows: rows["iou_val"] >= asked.hit_iou)
    marked = _sized(run, EVERYTHING, "", sizes).assign(hit=lambda rows: rows["iou"] >= asked.hit_iou)
    seed = workshop.study.fit.seed
    by_size = pd.DataFrame.from_records(
        [
            row
            for (variant, bin_), part in images.groupby(["variant", "bin"], sort=True)
            for row in _bin_rows(part, marked[(marked["variant"] == variant) & (marked["bin"] == bin_)], seed)
        ]
    ).sort_values(["metric", "variant", "size"], ignore_index=True)
    halves = pd.DataFrame.from_records(
        [_half_row(str(variant), part, seed) for variant, part in images.groupby("variant", sort=True)]
    ).assign(hit_iou=asked.hit_iou)
    answer = [*(_told(row, asked.hit_iou) for row in halves.itertuples()), *_false_area(run, asked)]
    told = [_everything(by_size, asked.hit_iou), *notes(run, shown_models(run))]
    return Findings({"sizes": by_size, "halves": halves}, answer, told, [run.path])


def _tested_fakes(run: Run) -> pd.DataFrame:
    images = run.tables["images"]
    return images[images["variant"].isin(FAKE_VARIANTS) & (images["share"] > 0)]


def _sized(run: Run, method: str, scheme: str, sizes: Mapping[tuple[str, ...], float]) -> pd.DataFrame:
    """Return the tested fakes of one probe with the share of a window that was inpainted."""
    fakes = _tested_fakes(run)
    rows = fakes[(fakes["method"] == method) & (fakes["scheme"] == scheme)].copy()
    if rows.empty:
        msg = f"no tested fake has a score of {method} taught {scheme}; name a method and scheme that [fit] asks for"
        raise DataError(msg)
    rows["size"] = [sizes[key] for key in zip(rows["dataset"], rows["path"], strict=True)]
    rows["bin"] = np.searchsorted(_EDGES, rows["size"], side="right") - 1
    return rows


def _bin_rows(rows: pd.DataFrame, marked: pd.DataFrame, seed: int) -> list[dict[str, object]]:
    """Return IoU and share detected of one variant and size, beside what marking everything gets."""
    found = []
    for metric, ours, other in (("detected", "hit", "hit"), ("iou_val", "iou_val", "iou")):
        names = {"variant": rows["variant"].iloc[0], "metric": metric, "size": float(rows["size"].median())}
        row = score_row(by_source(rows, ours), seed, **names, rung=LADDER[rows["bin"].iloc[0]])
        everything = pd.Series(by_source(marked, other)).mean()
        found.append({**row, "everything": everything, "n_images": len(rows)})
    return found


def _half_row(variant: str, rows: pd.DataFrame, seed: int) -> dict[str, object]:
    """Return the size at which detection falls to half; NaN where that is outside the sizes looked at."""
    log2_size, hit = np.log2(rows["size"].to_numpy(dtype=float)), rows["hit"].to_numpy(dtype=bool)
    found = jackknife_interval(
        lambda index: detection_growth(log2_size[index], hit[index])._asdict(),
        rows["source_id"].to_numpy(dtype=str),
        seed=seed,
    )
    half, ends = found["half"], (float(log2_size.min()), float(log2_size.max()))
    within = ends[0] <= half.estimate <= ends[1]
    low, high = (2.0 ** float(np.clip(end, *ends)) if within else float("nan") for end in (half.low, half.high))
    return {
        "variant": variant,
        "half_share": 2.0**half.estimate if within else float("nan"),
        "half_share_low": low,
        "half_share_high": high,
        "log2_half": half.estimate,
        "slope_per_doubling": found["slope"].estimate,
        "smallest": 2.0 ** ends[0],
        "largest": 2.0 ** ends[1],
        "detected": float(hit.mean()),
        "n_sources": half.n,
        "n_images": len(rows),
    }


def _told(row: object, hit_iou: float) -> str:
    """Return one variant's answer in words; `row` is one of the halves."""
    variant, half = row.variant, row.half_share  # type: ignore[attr-defined]
    on = f"{row.n_images} images of {row.n_sources} photographs, {row.detected:.0%} detected"  # type: ignore[attr-defined]
    start, looked = f"On {variant}, detection (IoU of at least {hit_iou:g})", _range(row)
    if np.isnan(row.log2_half):  # type: ignore[attr-defined]
        return f"{start} does not rise with size within {looked} ({on})."
    if np.isnan(half):
        side = "above" if row.log2_half < np.log2(row.smallest) else "below"  # type: ignore[attr-defined]
        return f"{start} does not reach half within {looked}: it stays {side} ({on})."
    ends = (row.half_share_low, row.half_share_high)  # type: ignore[attr-defined]
    return f"{start} falls to half at {_percent(half, *ends)} of the window, sizes of {looked} looked at ({on})."


def _percent(share: float, low: float, high: float) -> str:
    text = f"{100 * share:.1f}"
    return f"{text} %" if np.isnan(low) else f"{text} [{100 * low:.1f}, {100 * high:.1f}] %"


def _range(row: object) -> str:
    return f"{100 * row.smallest:.1f}-{100 * row.largest:.1f} %"  # type: ignore[attr-defined]


def _false_area(run: Run, asked: Question) -> list[str]:
    """Return how much of authentic photographs the same probe marks at the same threshold."""
    results = run.tables["results"]
    of = (results["method"] == asked.method) & (results["scheme"] == asked.scheme) & (results["kind"] == "real")
    rows = results[of & results["metric"].str.startswith("false_area_val@")]
    return [
        f"At the same threshold {with_interval(row.value, row.low, row.high)} of the area of real photographs is "
        f"marked ({row.n_sources} photographs)."
        for row in rows.itertuples()
    ]


def _everything(sizes: pd.DataFrame, hit_iou: float) -> str:
    reached = sizes[(sizes["metric"] == "detected") & (sizes["everything"] >= _HALF)]["rung"]
    start = (
        f"Marking every patch has an IoU of the mask's share, and so detects masks of {hit_iou:.0%} of an image or more"
    )
    if reached.empty:
        return f"{start}: none of the sizes looked at."
    return f"{start}: from the size {reached.min():.1%} of a window on a detection says little."


def _plot(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    ax = axes(ax)
    sizes, halves = tables["sizes"], tables["halves"]
    hits = sizes[sizes["metric"] == "detected"]
    known = np.cumsum(np.isfinite(halves["half_share"].to_numpy())) - 1  # one below the other where several are known
    for number, row in enumerate(halves.itertuples()):
        part = hits[hits["variant"] == row.variant]
        aside = _APART ** (number - (len(halves) - 1) / 2)
        ends = (part["value"], part["low"], part["high"])
        intervals(ax, 100 * part["size"] * aside, *ends, series=number, label=str(row.variant))
        if np.isfinite(row.log2_half):
            shares = np.geomspace(row.smallest, row.largest, 200)
            chance = expit(row.slope_per_doubling * (np.log2(shares) - row.log2_half))
            curve(ax, 100 * shares, chance, series=number, marked=False)
        ends = ([100 * row.half_share], [100 * row.half_share_low], [100 * row.half_share_high])
        intervals(
            ax,
            [_HALF - 0.03 * int(known[number])],
            *ends,
            series=number,
            label=f"{row.variant}: half, with its interval",
            horizontal=True,
        )
    marked = hits.groupby("rung")[["size", "everything"]].mean()
    ax.plot(100 * marked["size"], marked["everything"], color="black", linewidth=1.2, label=MARKING_EVERYTHING)
    ax.axhline(_HALF, color="black", linewidth=0.8, linestyle=":")
    ax.set_xscale("log")
    ax.set_xticks([1, 10, 100], ["1", "10", "100"])
    ax.set_ylim(-0.05, 1.05)
    ax.set_xlabel("inpainted share of the window, %")
    ax.set_ylabel(f"share of images detected (IoU >= {halves['hit_iou'].iloc[0]:g})")
    legend(ax)
    return ax


register(
    StudyKind(
        name="scale",
        asks="at which size of the mask does detection fall to half?",
        run=_scale,
        plot=_plot,
        legend="Dots are the share of images detected at a size, upright lines its 95 % interval over photographs, "
        "curves the logistic fits. Where a curve crosses one half within the sizes looked at, a dot with a "
        "level line is that size with its interval. The black line is what marking every patch detects.",
        reads=("method", "scheme", "hit_iou"),
    )
)
