"""Figures of reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlprobe import plotting

if TYPE_CHECKING:
    import pandas as pd


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
    rows = results[(results["metric"] == "iou@patch") & (results["method"] != "everything")]
    chosen = scheme or next(iter(rows["scheme"]), "")
    rows = rows[rows["scheme"] == chosen]
    rows = rows.assign(series=rows["model"] + ", " + rows["method"])
    ax = plotting.dots(rows, rows="kind", series="series", reference="everything", reference_label="marking everything")
    ax.set_xlim(0, 1)
    ax.set_xlabel(f"IoU of INPAINTED patches at score 0.5 (scheme {chosen})")
    return plotting.png(ax)
