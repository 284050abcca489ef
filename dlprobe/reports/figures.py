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
