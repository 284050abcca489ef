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

from dlprobe.data.synthesis.generator.settings import LADDER
from dlprobe.errors import DataError
from dlprobe.metrics import bootstrap_mean, source_means
from dlprobe.metrics.resampling import jackknife_interval
from dlprobe.plotting import axes, curve, intervals, legend
from dlprobe.studies.designs.base import Findings, StudyKind, register
from dlprobe.studies.designs.kinds.comparing import notes
from dlprobe.studies.results import FAKE_VARIANTS, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dlprobe.studies.designs.workshop import Workshop
    from dlprobe.studies.runs import Run

#: Bins of sizes lie between neighbouring rungs of the ladder, at their geometric mean.
_EDGES = (0.0, *(float(np.sqrt(low * high)) for low, high in pairwise(LADDER)), np.inf)
_STEPS = 100


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
    run = workshop.fit(workshop.caches()[:1], workshop.study.fit, workshop.test_caches()[:1])
    images = _sized(run, asked.method, asked.scheme).assign(hit=lambda rows: rows["iou_val"] >= asked.hit_iou)
    seed = workshop.study.fit.seed
    by_size = pd.DataFrame.from_records(
        [
            row
            for (variant, bin_), part in images.groupby(["variant", "bin"], sort=True)
            for row in _bin_rows(str(variant), int(bin_), part, seed)
        ]
    )
    halves = pd.DataFrame.from_records(
        [_half_row(str(variant), part, seed) for variant, part in images.groupby("variant", sort=True)]
    )
    answer = [_told(row, asked.hit_iou) for row in halves.itertuples()]
    return Findings({"sizes": by_size, "halves": halves}, [*answer, *notes(run)], [run.path])


def _sized(run: Run, method: str, scheme: str) -> pd.DataFrame:
    """Return the tested fakes of one probe with the share of a window that was inpainted."""
    images = run.tables["images"]
    chosen = (images["method"] == method) & (images["scheme"] == scheme) & images["variant"].isin(FAKE_VARIANTS)
    rows = images[chosen & (images["share"] > 0)].copy()
    if rows.empty:
        msg = f"no tested fake has a score of {method} taught {scheme}; name a method and scheme that [fit] asks for"
        raise DataError(msg)
    model = next(iter(run.record["models"].values()))["model"]
    rows["size"] = rows["share"] * rows["n_units"] / (model["window_px"] // model["patch_px"]) ** 2
    rows["bin"] = np.searchsorted(_EDGES, rows["size"], side="right") - 1
    return rows


def _bin_rows(variant: str, bin_: int, rows: pd.DataFrame, seed: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for metric in ("iou_val", "hit"):
        by_source = source_means(rows[metric].to_numpy(dtype=float), rows["source_id"].to_numpy(dtype=str))
        value = bootstrap_mean(by_source, seed=seed, bounds=(0, 1))
        found.append(
            {
                "variant": variant,
                "metric": metric,
                "size": float(rows["size"].median()),
                "rung": LADDER[bin_],
                "value": value.estimate,
                "low": value.low,
                "high": value.high,
                "n_sources": value.n,
                "n_images": len(rows),
            }
        )
    return found


def _half_row(variant: str, rows: pd.DataFrame, seed: int) -> dict[str, object]:
    log2_size, hit = np.log2(rows["size"].to_numpy(dtype=float)), rows["hit"].to_numpy(dtype=bool)
    found = jackknife_interval(
        lambda index: detection_growth(log2_size[index], hit[index])._asdict(),
        rows["source_id"].to_numpy(dtype=str),
        seed=seed,
    )
    half = found["half"]
    return {
        "variant": variant,
        "half_share": 2.0**half.estimate,
        "half_share_low": 2.0**half.low,
        "half_share_high": 2.0**half.high,
        "slope_per_doubling": found["slope"].estimate,
        "smallest": float(rows["size"].min()),
        "largest": float(rows["size"].max()),
        "hit_rate": float(hit.mean()),
        "n_sources": half.n,
        "n_images": len(rows),
    }


def _told(row: object, hit_iou: float) -> str:
    """Return one variant's answer in words; `row` is one of the halves."""
    variant, half = row.variant, row.half_share  # type: ignore[attr-defined]
    on = f"{row.n_images} images of {row.n_sources} photographs"  # type: ignore[attr-defined]
    asked = f"{variant}: detection (IoU of at least {hit_iou:g})"
    if np.isnan(half):
        return f"{asked} does not rise with size: {row.hit_rate:.0%} of {on} are detected"  # type: ignore[attr-defined]
    percent = with_interval(100 * half, 100 * row.half_share_low, 100 * row.half_share_high)  # type: ignore[attr-defined]
    text = f"{asked} falls to half at {percent} % of the window, {on}"
    if not row.smallest <= half <= row.largest:  # type: ignore[attr-defined]
        text += f"; outside the sizes looked at, {row.smallest:.1%} to {row.largest:.1%}"  # type: ignore[attr-defined]
    return text


def _plot(tables: dict[str, pd.DataFrame], ax: Axes | None) -> Axes:
    ax = axes(ax)
    sizes, halves = tables["sizes"], tables["halves"]
    shares = np.geomspace(LADDER[0] / 2, 1, 200)
    hits = sizes[sizes["metric"] == "hit"]
    for number, row in enumerate(halves.itertuples()):
        part = hits[hits["variant"] == row.variant]
        intervals(ax, 100 * part["size"], part["value"], part["low"], part["high"], series=number, label=row.variant)
        if np.isfinite(row.half_share):
            chance = expit(row.slope_per_doubling * (np.log2(shares) - np.log2(row.half_share)))
            curve(ax, 100 * shares, chance, series=number)
    ax.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    ax.set_xscale("log")
    ax.set_ylim(-0.05, 1.05)
    ax.set_xlabel("inpainted share of the window, %")
    ax.set_ylabel("share of images detected")
    legend(ax)
    return ax


register(StudyKind("scale", "at which size of the mask does detection fall to half?", _scale, _plot))
