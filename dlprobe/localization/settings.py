"""Everything that determines a score map beside the image, the backbone and the probe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from dlprobe.errors import DataError

Upsample = Literal["bicubic", "bilinear", "nearest"]
Aggregate = Literal["mean", "sum"]
Blend = Literal["none", "hann"]
UPSAMPLES: tuple[Upsample, ...] = ("bicubic", "bilinear", "nearest")
AGGREGATES: tuple[Aggregate, ...] = ("mean", "sum")
BLENDS: tuple[Blend, ...] = ("none", "hann")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """Where the dense stride is spent: see `dlprobe.localization.adaptive`.

    Parameters
    ----------
    coarse_every : int
        The coarse pass takes every n-th window along each side, and the last one.
    margin : float
        A patch is undecided where its coarse score is nearer than this to the threshold.
    edge_px : int
        And where it lies nearer than this to the border of the region that the coarse pass marks.
    budget : float
        Largest share of the dense windows that both passes take together; the coarse pass is always whole.
    threshold : float, optional
        The probe's own by default.

    Raises
    ------
    DataError
        If a value is out of range.
    """

    coarse_every: int = 2
    margin: float = 0.2
    edge_px: int = 28
    budget: float = 0.4
    threshold: float | None = None

    def __post_init__(self) -> None:
        _require("coarse_every", self.coarse_every, self.coarse_every >= 2, "at least 2")
        _require("margin", self.margin, 0 <= self.margin <= 1, "from 0 to 1")
        _require("edge_px", self.edge_px, self.edge_px >= 0, "at least 0")
        _require("budget", self.budget, 0 < self.budget <= 1, "above 0, up to 1")
        if self.threshold is not None:
            _require("threshold", self.threshold, 0 <= self.threshold <= 1, "from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingSettings:
    """How a window slides and how what it says is put together.

    Parameters
    ----------
    stride_px : int
        Distance of two windows; the last one is clamped to the border.
    upsample : {"bicubic", "bilinear", "nearest"}
        From patches to pixels, of logits.
    aggregate : {"mean", "sum"}
        Of the logits of overlapping windows. A sum makes borders and centre incomparable; it is there to reproduce
        others' numbers.
    blend : {"none", "hann"}
        Weight of a pixel by its place in the window: all alike, or a Hann window, which trusts the centre more.
    adaptive : Adaptive, optional
        Take the dense stride only where a coarse pass is undecided.

    Raises
    ------
    DataError
        If a value is none of those listed, or two do not go together.
    """

    stride_px: int = 128
    upsample: Upsample = "bicubic"
    aggregate: Aggregate = "mean"
    blend: Blend = "none"
    adaptive: Adaptive | None = None

    def __post_init__(self) -> None:
        _require("stride_px", self.stride_px, self.stride_px >= 1, "at least 1")
        _require("upsample", self.upsample, self.upsample in UPSAMPLES, f"one of {', '.join(UPSAMPLES)}")
        _require("aggregate", self.aggregate, self.aggregate in AGGREGATES, f"one of {', '.join(AGGREGATES)}")
        _require("blend", self.blend, self.blend in BLENDS, f"one of {', '.join(BLENDS)}")
        if self.aggregate == "sum" and (self.blend != "none" or self.adaptive is not None):
            msg = "a sum over windows needs equal weights on a regular grid; leave out blend and adaptive, or take mean"
            raise DataError(msg)

    def record(self) -> dict[str, Any]:
        """Return the settings as a dictionary of JSON values."""
        return asdict(self)


def _require(name: str, value: object, holds: bool, needed: str) -> None:
    if not holds:
        msg = f"{name} is {value!r}; write {needed}"
        raise DataError(msg)
