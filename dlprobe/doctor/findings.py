"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found, and what to do next if it is not as it should be.

    Parameters
    ----------
    topic : str
        Such as ``gemm cpu bfloat16``.
    found : str
        For people.
    value : float, optional
        For programs, where there is a number; its unit stands in `unit`.
    unit : str
        Such as ``GFLOP/s``.
    advice : str
        Empty if nothing is wrong.
    """

    topic: str
    found: str
    value: float | None = None
    unit: str = ""
    advice: str = ""

    def row(self) -> dict[str, Any]:
        """Return a flat row of JSON values."""
        return asdict(self)


def measured(topic: str, value: float, unit: str, *, digits: int = 3, advice: str = "") -> Finding:
    """Return a finding that is a number."""
    return Finding(topic=topic, found=f"{value:.{digits}g} {unit}", value=value, unit=unit, advice=advice)
