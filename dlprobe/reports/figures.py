"""Figures for reports: matplotlib without global state, colours of Okabe and Ito, readable in black and white."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def iou_by_kind(results: pd.DataFrame, scheme: str | None = None) -> bytes:
    """Draw the IoU of each method on each kind of fake, with intervals, beside marking everything.

    Parameters
    ----------
    results : DataFrame
        See `dlprobe.studies.results.summarise`.
    scheme : str, optional
        Labelling scheme to draw; the first of the table by default.

    Returns
    -------
    bytes
        A PNG.
    """
    from matplotlib.figure import Figure

    rows = results[(results["metric"] == "iou@patch") & (results["method"] != "everything")]
    chosen = scheme or next(iter(rows["scheme"]), "")
    rows = rows[rows["scheme"] == chosen]
    kinds = list(dict.fromkeys(rows["kind"]))
    figure = Figure(figsize=(9, 1.2 + 0.34 * len(kinds)), dpi=110, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(kinds))[::-1]
    groups = list(rows.groupby(["model", "method"], sort=False))
    for n, ((model, method), part) in enumerate(groups):
        part = part.set_index("kind").reindex(kinds)  # noqa: PLW2901
        offset = 0.22 * (n - (len(groups) - 1) / 2)
        spread = np.abs(part[["low", "high"]].to_numpy() - part[["value"]].to_numpy()).T
        axes.errorbar(
            part["value"],
            places - offset,
            xerr=np.nan_to_num(spread),
            fmt=_MARKERS[n % len(_MARKERS)],
            color=_COLOURS[n % len(_COLOURS)],
            markersize=5,
            capsize=2,
            label=f"{model}, {method}",
        )
    everything = rows.drop_duplicates("kind").set_index("kind").reindex(kinds)["everything"]
    axes.plot(everything, places, "|", color="black", markersize=14, markeredgewidth=2, label="marking everything")
    axes.set_yticks(places, kinds)
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"IoU of INPAINTED patches at score 0.5 (scheme {chosen})")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(fontsize="small", loc="outside upper center", ncols=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
