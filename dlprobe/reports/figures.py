"""Figures of reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlprobe import plotting
from dlprobe.studies.displays import plot_results

if TYPE_CHECKING:
    import pandas as pd


def iou_by_kind(results: pd.DataFrame, scheme: str | None = None) -> bytes:
    """Return `dlprobe.studies.displays.plot_results` as a PNG."""
    return plotting.png(plot_results(results, scheme=scheme))


def robustness_curves(curves: pd.DataFrame, metric: str) -> bytes:
    """Draw a metric of fakes over each degradation's strengths, one panel a degradation, one curve a variant.

    Parameters
    ----------
    curves : DataFrame
        See `dlprobe.studies.evaluation.effects.curves_table`.
    metric : str
        Full name, such as ``dlprobe.original_px.iou``.

    Returns
    -------
    bytes
        A PNG; empty if there is nothing to draw.
    """
    if curves.empty:
        return b""
    rows = curves[curves["metric"] == metric].drop_duplicates(["degradation", "chain", "variant"])
    names = [name for name in dict.fromkeys(rows["degradation"]) if name != "clean"]
    if not names:
        return b""
    variants = list(dict.fromkeys(rows["variant"]))
    axes = plotting.panels(len(names))
    for ax, name in zip(axes, names, strict=True):
        for series, variant in enumerate(variants):
            part = rows[(rows["degradation"] == name) & (rows["variant"] == variant)].sort_values("strength")
            plotting.curve(ax, part["strength"], part["value"], series=series, label=variant)
            plotting.intervals(ax, part["strength"], part["value"], part["low"], part["high"], series=series)
            clean = rows[(rows["degradation"] == "clean") & (rows["variant"] == variant)]["value"]
            look = plotting.mark(series)
            ax.axhline(float(clean.iloc[0]), color=look.colour, linestyle=":", linewidth=1)
        ax.set_xlabel(f"strength of {name}", fontsize="small")
        ax.set_ylim(0, 1)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(metric)
    plotting.legend(axes[0])
    return plotting.png(axes[0])
