"""Read a data set's layout into a manifest: every image opened as far as its header, every mask compared in size."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlprobe.data.images import image_size
from dlprobe.data.layouts import LAYOUTS, Record, Reject
from dlprobe.data.manifest import Manifest, crossing_sources
from dlprobe.data.provenance import VARIANTS, Variant
from dlprobe.errors import DataError

if TYPE_CHECKING:
    import os

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a data set that a user should know before trusting a number: what, where, and how many."""

    name: str
    detail: str
    count: int


@dataclass(frozen=True, slots=True)
class ScanResult:
    """A manifest, what was left out of it, and what was noticed."""

    manifest: Manifest
    rejects: list[Reject]
    findings: list[Finding]


def scan(
    root: str | os.PathLike[str], layout: str = "csv", *, progress: Progress | None = None, **options: Any
) -> ScanResult:
    """Read a data set.

    Parameters
    ----------
    root : path
        Folder (or, for the layout ``csv``, the table itself).
    layout : str
        Name of a registered layout.
    progress : callable, optional
        Called with the number of images done and in all.
    **options
        Options of the layout.

    Returns
    -------
    ScanResult
        ``.manifest``, ``.rejects`` and ``.findings``; each record of the layout is in the manifest or a reject.

    Raises
    ------
    DataError
        If the folder is missing, the layout does not fit it, or not one image can be used.
    """
    place = Path(root)
    if not place.exists():
        msg = f"nothing at {place}; give the folder of the data set"
        raise DataError(msg)
    found = list(LAYOUTS[layout](place, **options))
    folder = place.parent if place.is_file() else place
    records = [item for item in found if isinstance(item, Record)]
    rejects = [item for item in found if isinstance(item, Reject)]
    rows: list[dict[str, object]] = []
    with ThreadPoolExecutor() as pool:
        for done, checked in enumerate(pool.map(lambda r: _check(folder, r), records, chunksize=64), start=1):
            if isinstance(checked, Reject):
                rejects.append(checked)
            else:
                rows.append(checked)
            if progress:
                progress(done, len(records))
    if not rows:
        first = f"; the first: {rejects[0].path}: {rejects[0].reason}" if rejects else ""
        msg = f"{place} has no image that can be used ({len(rejects)} rejected{first})"
        raise DataError(msg)
    manifest = Manifest.from_records(rows, folder)
    return ScanResult(manifest, rejects, _findings(manifest))


def _check(root: Path, record: Record) -> dict[str, object] | Reject:
    try:
        if record.variant not in VARIANTS:
            return Reject(record.path, f"no variant {record.variant!r}; write one of {', '.join(VARIANTS)}")
        height, width = image_size(root / record.path)
        _check_mask(root, record, (height, width))
    except DataError as error:
        return Reject(record.path, str(error))
    return {**record._asdict(), "height": height, "width": width}


def _check_mask(root: Path, record: Record, size: tuple[int, int]) -> None:
    needed = VARIANTS[Variant(record.variant)].inside is not None
    if needed != bool(record.mask):
        verb = "needs a mask and has none" if needed else "has no mask, but one is named"
        msg = f"variant {record.variant} {verb}; correct the row"
        raise DataError(msg)
    if needed and (found := image_size(root / record.mask)) != size:
        msg = f"mask {root / record.mask} is {found[1]}x{found[0]} px, its image {size[1]}x{size[0]} px"
        raise DataError(msg)


def _findings(manifest: Manifest) -> list[Finding]:
    crossing = crossing_sources(manifest.frame)
    if not crossing:
        return []
    return [
        Finding(
            "source-crosses-splits", f"{', '.join(crossing[:5])} and its donors stand in several splits", len(crossing)
        )
    ]
