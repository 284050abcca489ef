"""From one score map to a row of metrics, and from rows to a table with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dlprobe.errors import MetricError
from dlprobe.metrics.protocols.base import PROTOCOLS, check_pair

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dlprobe.metrics.intervals.studentized import Interval

    Rows: TypeAlias = Sequence[Mapping[str, float]] | Mapping[str, ArrayLike]


def evaluate_map(
    score: NDArray[np.generic],
    mask: NDArray[np.bool_],
    protocol: str = "dlprobe",
    threshold: float = 0.5,
    *,
    ignore: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """Score one map against its mask under a named protocol.

    Parameters
    ----------
    score : ndarray, shape (h, w)
        Score map: floats in [0, 1], 8-bit levels (divided by 255: 127 is below one half, 128 above), or a hard mask.
    mask : ndarray of bool, shape (h, w)
        Where the image is inpainted; all False for an authentic image. On the protocol's grid (`Protocol.grid`).
    protocol : str
        A name in `PROTOCOLS`.
    threshold : float
        To which scores are compared, with the protocol's own comparison.
    ignore : ndarray of bool, optional
        Pixels that count nowhere (VOID).

    Returns
    -------
    dict of str to float
        The protocol's metrics of this image (nan where one is undefined), what a map that marks everything would
        score, the counts at the threshold, and the shares of mask and of marked area. Some columns only matter to
        `aggregate`, which knows the images that count.

    Raises
    ------
    RegistryError
        If there is no such protocol.
    MetricError
        If map and mask do not fit, or the map is not within [0, 1].
    """
    return PROTOCOLS[protocol].score_map(check_pair(score, mask, ignore), threshold)


def aggregate(rows: Rows, protocol: str = "dlprobe") -> dict[str, float]:
    """Reduce the rows of many images to one number a metric, as the protocol averages.

    Parameters
    ----------
    rows : sequence of mapping, or mapping of str to array_like, shape (n,)
        What `evaluate_map` returned, by image or by column, under the same protocol. ``image_score`` and
        ``image_flagged`` may have been replaced (by the 99th percentile on the processed-size map, and by another
        policy for images).
    protocol : str
        A name in `PROTOCOLS`.

    Notes
    -----
    An image whose mask is empty counts as authentic, also one that was auto-encoded (`ae`, `aesp`): aggregate the rows
    of each variant apart to keep `real` and `ae` beside each other.
    """
    columns = _columns(rows)
    return {name: average.value(columns) for name, average in PROTOCOLS[protocol].averages.items()}


def aggregate_intervals(
    rows: Rows,
    sources: Sequence[str],
    protocol: str = "dlprobe",
    *,
    level: float = 0.95,
    resamples: int = 1999,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return `aggregate` with an interval for each metric, resampled by source.

    Parameters
    ----------
    rows : sequence of mapping, or mapping of str to array_like, shape (n,)
        What `evaluate_map` returned, by image or by column.
    sources : sequence of str
        The source_id of each row's image.
    protocol : str
        A name in `PROTOCOLS`.
    level, resamples, seed
        As in `dlprobe.metrics.bootstrap_mean`.

    Returns
    -------
    dict of str to Interval
        Without tallies of images, which have no interval.

    Notes
    -----
    Means and micro ratios: studentized bootstrap of a ratio of sums over sources (`ratio_interval`). Medians: Woodruff
    (`median_interval`). AUCs and the like of image scores: `jackknife_interval`. All are cut to [0, 1].
    """
    columns, names = _columns(rows), np.asarray(sources, dtype=str)
    n_rows = columns["mask_share"].size
    if names.size != n_rows:
        msg = f"{n_rows} rows and {names.size} source_ids do not belong together; pass one source_id a row"
        raise MetricError(msg)
    settings = {"level": level, "resamples": resamples, "seed": seed, "bounds": (0.0, 1.0)}
    found = {name: average.interval(columns, names, settings) for name, average in PROTOCOLS[protocol].averages.items()}
    return {name: interval for name, interval in found.items() if interval is not None}


def _columns(rows: Rows) -> dict[str, NDArray[np.float64]]:
    columns = {name: np.asarray(values, np.float64) for name, values in _by_column(rows).items()}
    if columns and "mask_share" not in columns:
        msg = "the rows have no column mask_share; pass what `evaluate_map` returned"
        raise MetricError(msg)
    shares = columns["mask_share"] if columns else np.empty(0)
    if not shares.size:
        msg = "there are no rows to aggregate; score at least one image"
        raise MetricError(msg)
    if odd := [name for name, values in columns.items() if values.ndim != 1 or values.shape != shares.shape]:
        msg = f"the columns {', '.join(odd)} have another shape than one number an image; pass rows or whole columns"
        raise MetricError(msg)
    return columns


def _by_column(rows: Rows) -> Mapping[str, ArrayLike]:
    if not isinstance(rows, Sequence):
        return rows  # a DataFrame, too
    keys = list(rows[0]) if rows else []
    for at, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            odd = ", ".join(sorted(row.keys() ^ rows[0].keys()))
            msg = f"row {at} and row 0 do not share the columns {odd}; score all images under one protocol"
            raise MetricError(msg)
    return {key: [row[key] for row in rows] for key in keys}
