"""Pictures of the tables of a run; the tables are `dlprobe.studies.results`'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlprobe import plotting
from dlprobe.errors import MetricError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def plot_results(results: pd.DataFrame, ax: Axes | None = None, *, scheme: str | None = None) -> Axes:
    """Draw the IoU of each method on each kind of fake, with intervals, beside marking everything.

    Parameters
    ----------
    results : DataFrame
        See `dlprobe.studies.results.summarise`.
    ax : Axes, optional
        New ones otherwise.
    scheme : str, optional
        Labelling scheme to draw; the first of the table by default.

    Returns
    -------
    Axes

    Raises
    ------
    MetricError
        If the table has no row of that scheme.
    """
    rows = results[results["metric"].str.startswith("iou@") & (results["method"] != "everything")]
    chosen = scheme or next(iter(rows["scheme"]), "")
    if chosen not in set(rows["scheme"]):
        there = ", ".join(dict.fromkeys(rows["scheme"])) or "none"
        msg = f"the run has no IoU under the scheme {chosen!r}; it has {there}"
        raise MetricError(msg)
    rows = rows[rows["scheme"] == chosen]
    rows = rows.assign(series=rows["model"] + ", " + rows["method"])
    ax = plotting.dots(
        rows, rows="kind", series="series", ax=ax, reference="everything", reference_label="marking everything"
    )
    ax.set_xlim(0, 1)
    ax.set_xlabel(f"mean IoU of INPAINTED at score 0.5, 95 % intervals (scheme {chosen})")
    return ax


def plot_comparisons(comparisons: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the paired differences of a run with their intervals; a row for each comparison, kind and metric.

    Parameters
    ----------
    comparisons : DataFrame
        See `dlprobe.studies.results.compare`.
    ax : Axes, optional
        New ones otherwise.

    Returns
    -------
    Axes

    Raises
    ------
    MetricError
        If nothing was compared.
    """
    if comparisons.empty:
        msg = "the run compared nothing; fit a second scheme, method or model"
        raise MetricError(msg)
    rows = comparisons.rename(columns={"difference": "value"})
    rows = rows.assign(row=rows["comparison"] + ", " + rows["kind"] + ", " + rows["metric"])
    ax = plotting.dots(rows, rows="row", series="model", ax=ax)
    ax.axvline(0, color="black", linestyle=":", linewidth=1)
    ax.set_xlabel("paired difference over sources")
    return ax


def plot_robustness(curves: pd.DataFrame, metric: str) -> Axes | None:
    """Draw a metric of fakes over each degradation's strengths, one panel a degradation, one curve a variant.

    Parameters
    ----------
    curves : DataFrame
        See `dlprobe.studies.evaluation.effects.curves_table`.
    metric : str
        Full name, such as ``dlprobe.original_px.iou``.

    Returns
    -------
    Axes or None
        The first panel; None if there is nothing to draw.
    """
    if curves.empty:
        return None
    rows = curves[curves["metric"] == metric].drop_duplicates(["degradation", "chain", "variant"])
    names = [name for name in dict.fromkeys(rows["degradation"]) if name != "clean"]
    if not names:
        return None
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
        strengths = sorted(set(rows.loc[rows["degradation"] == name, "strength"]))
        ax.set_xlabel(f"strength of {name}", fontsize="small")
        if len(strengths) == 1:  # no axis of fractions around it; the name of a chain holds its numbers already
            ax.set_xlabel(str(name) if ":" in name else f"{name}, strength {strengths[0]:g}", fontsize="small")
            ax.set_xticks([])
        ax.set_ylim(0, 1)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(metric)
    plotting.legend(axes[0])
    return axes[0]
