"""All that `dlprobe doctor` looks at, in its order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dlprobe.doctor.engines import SMALL_BACKBONE, SMALL_WINDOW_PX, compare_engines
from dlprobe.doctor.findings import Finding, measured
from dlprobe.doctor.machine import look_around
from dlprobe.doctor.rates import disk_rates, gemm_rates

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator


def examine(
    backbone: str | None = None,
    *,
    weights: str = "random:0",
    window_px: int | None = None,
    folder: str | os.PathLike[str] = ".",
    timing: bool = False,
) -> Iterator[Finding]:
    """Look at this machine: what is installed, how fast it computes and stores, whether its engines agree.

    Parameters
    ----------
    backbone : str, optional
        Whose engines are compared and whose rate is estimated; a small network of timm's if none is named.
    weights : str
        Of the backbone; neither rates nor parity need trained ones.
    window_px : int, optional
        Side of a window.
    folder : path
        Where writing and reading are measured, with a file of 256 MB that is taken away.
    timing : bool
        Time each engine for some seconds, and not only estimate its rate from that of matrix products.

    Yields
    ------
    Finding
        In the order in which they are found.

    Raises
    ------
    BackboneError
        If there is no such backbone.
    """
    yield from look_around()
    gemm = gemm_rates()
    for (device, precision), rate in gemm.items():
        yield measured(f"gemm {device} {precision}", rate / 1e9, "GFLOP/s")
    yield from disk_rates(Path(folder))
    side = SMALL_WINDOW_PX if backbone is None and window_px is None else window_px
    yield from compare_engines(backbone or SMALL_BACKBONE, weights, side, gemm, timing=timing)
