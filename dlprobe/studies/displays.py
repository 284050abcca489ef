"""How tables are shown: pictures of them, and the words for their columns, metrics and methods.

Files keep the names; pages and figures have the words, and have them from here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from dlprobe import plotting
from dlprobe.errors import MetricError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: What every score is read against: a map on which every pixel is marked.
MARKING_EVERYTHING = "marking everything"
#: Metrics, by their names without grid and suffix.
_METRICS = MappingProxyType(
    {
        "iou": "IoU",
        "f1": "F1",
        "ap": "average precision",
        "auc": "AUC",
        "mcc": "MCC",
        "false_area": "falsely marked share",
        "marked_share": "falsely marked share",
        "flagged": "share of images called generated",
        "image_flagged": "share of images called generated",
        "image_fpr": "share of authentic images called generated",
        "image_tpr": "share of fakes called generated",
        "image_auc": "AUC of whole images",
        "image_f1": "F1 of whole images",
        "image_accuracy": "accuracy of whole images",
        "image_sensitivity": "sensitivity of whole images",
        "image_specificity": "specificity of whole images",
        "combined_f1": "F1 of pixels and whole images",
        "detected": "share of images detected",
        "best_f1": "best F1",
        "n_fake": "number of fakes",
        "n_authentic": "number of authentic images",
        "empty_predictions": "share of maps without a marked pixel",
        "ece": "calibration error",
        "nll": "negative log-likelihood",
    }
)
#: What may precede a metric's name, and what may follow it.
_PREFIXES = MappingProxyType({"oracle_": "oracle", "st_": "no ring left out"})
_SUFFIXES = MappingProxyType(
    {
        "_val": "at the threshold of validation",
        "_promised": "at the promised threshold",
        "_own": "against what the scheme taught",
        "_oracle": "oracle",
        "_tempered": "tempered",
        "_macro": "mean over images",
        "_median": "median over images",
        "_micro": "all pixels together",
        "_real": "authentic images",
    }
)
#: Where a score was taken.
_GRIDS = MappingProxyType(
    {
        "patch": "on patches",
        "px": "on the pixels that all models show",
        "original_px": "on the image's own pixels",
        "input_px": "on the pixels that the model was given",
    }
)
#: Columns of tables; others are their names in words as metrics are.
_COLUMNS = MappingProxyType(
    {
        "kind": "kind of image",
        "variant": "kind of image",
        "metric": "score",
        "everything": MARKING_EVERYTHING,
        "scheme": "labelling scheme",
        "sources": "photographs",
        "n_sources": "photographs",
        "n_images": "images",
        "n_patches": "patches",
        "p_holm": "p after Holm",
        "held_out": "generators held out",
        "part": "what is varied",
        "trained": "trained on",
        "tested": "tested on",
        "own": "IoU on the generator trained on",
        "photographs": "photographs trained on",
        "photographs_mean": "the same, mean over folds",
        "size": "inpainted share of the window",
        "rung": "share that was aimed at",
        "half_share": "share of the window at which half are detected",
        "log2_half": "its logarithm to base 2, also outside the sizes looked at",
        "slope_per_doubling": "rise of the log odds with each doubling",
        "smallest": "smallest share looked at",
        "largest": "largest share looked at",
        "hit_iou": "IoU from which an image is detected",
        "chain": "degradation in full",
        "path": "image",
        "change": "change against the step before",
        "inside": "mean score inside the mask to be",
        "outside": "mean score outside",
        "partner_iou": "IoU of the photograph's own map",
        "fake_iou": "IoU of the fake's map",
        "explains": "the photograph alone explains it",
        "background": "falsely marked share of the background",
        "whole": "share of images marked all over",
        "label": "protocol",
        "images": "images",
        "oracle": "threshold chosen on these images",
        "n": "counted",
        "share": "inpainted share",
    }
)


def column_words(name: str) -> str:
    """Return what a column of a table is called where people read it."""
    return _COLUMNS.get(name) or metric_words(name)


def grid_words(grid: str) -> str:
    """Return where scores of a grid were taken, such as ``on patches``."""
    return _GRIDS.get(grid, grid)


def metric_words(metric: str) -> str:
    """Return a metric in words; of the grids only the one that is not what readers expect is said.

    Parameters
    ----------
    metric : str
        As tables have it: ``iou_val@patch``, ``tgif.original_px.f1``, ``dlprobe.original_px.iou_macro (oracle)``.
    """
    name, oracle, _ = metric.partition(" (oracle)")
    protocol, grid = "", ""
    if (parts := name.rsplit(".", 2))[1:-1] and parts[1] in _GRIDS:
        protocol, grid, name = parts
    elif name.rpartition("@")[2] in _GRIDS:
        name, _, grid = name.rpartition("@")
    more = [*([f"protocol {protocol}"] if protocol else []), *([grid_words(grid)] if grid == "input_px" else [])]
    for prefix, words in _PREFIXES.items():
        if name.startswith(prefix):
            name, more = name.removeprefix(prefix), [words, *more]
    while name not in _METRICS and (suffix := next((end for end in _SUFFIXES if name.endswith(end)), "")):
        name, more = name.removesuffix(suffix), [_SUFFIXES[suffix], *more]
    if name not in _METRICS and not grid:  # somebody's name for a scheme or a model, or a column without its own words
        return metric.replace("_", " ") if metric.isidentifier() else metric
    more += ["oracle"] if oracle and "oracle" not in more else []
    return ", ".join([_METRICS.get(name, name.replace("_", " ")), *more])


def method_words(text: str) -> str:
    """Return a method, or the comparison of two, in words."""
    return " - ".join(MARKING_EVERYTHING if name == "everything" else name for name in text.split(" - "))


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
        rows, rows="kind", series="series", ax=ax, reference="everything", reference_label=MARKING_EVERYTHING
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
    words = rows["kind"], rows["comparison"].map(method_words), rows["metric"].map(metric_words)
    rows = rows.assign(row=[f"{kind}: {comparison}, {metric}" for kind, comparison, metric in zip(*words, strict=True)])
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
    axes[0].set_ylabel(metric_words(metric))
    plotting.legend(axes[0])
    return axes[0]
