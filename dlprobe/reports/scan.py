"""One self-contained HTML file of a scan: findings, pictures of the images they name, and where every file went."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from dlprobe.data.audit.examine import Examination, Subject, examine, grey_levels
from dlprobe.data.images import IMAGE_SUFFIXES, MAX_PIXELS, marked, read_image
from dlprobe.errors import DataError
from dlprobe.reports.page import jpeg_uri, require_html, shrunk, write_page

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from dlprobe.data.layouts import Finding
    from dlprobe.data.manifest import Manifest
    from dlprobe.data.scan import ScanResult

#: Side of a picture, and how many images and rejects a page holds: enough to see the fault, small enough to send.
PICTURE_PX = 300
MOST_IMAGES, MOST_REJECTS = 60, 200
_OUTLINE_RGB = (255, 140, 0)
_BRIGHT_PERCENTILE = 99
_ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture of an exhibit: what it is, and its pixels as a data URI."""

    label: str
    uri: str


@dataclass(frozen=True, slots=True)
class Exhibit:
    """An image that a finding names: its pictures, and what was measured on it, line by line."""

    path: str
    shots: tuple[Shot, ...]
    notes: tuple[str, ...]


def write_scan_report(
    result: ScanResult,
    out: str | os.PathLike[str],
    *,
    title: str = "dlprobe: what a scan found",
    most_images: int = MOST_IMAGES,
    max_pixels: int = MAX_PIXELS,
) -> Path:
    """Write one HTML file that needs nothing else.

    For the examples of each finding it shows the image, its mask's border, the authentic partner that the audit
    compared it with, and the difference of the two.

    Parameters
    ----------
    result : ScanResult
        Of `dlprobe.data.scan`; the images must still lie below its manifest's root.
    out : path
        File to write.
    title : str
        Heading.
    most_images : int
        Images to show in all, those of errors first.
    max_pixels : int
        Larger images are not shown.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If the file cannot be written, or its ending is not ``.html``: a slip shall not replace an image.
    """
    target = require_html(out)
    findings = sorted(result.findings, key=lambda finding: _ORDER[finding.severity])
    return write_page(
        target,
        "scan.html",
        title=title,
        root=str(result.manifest.root),
        findings=findings,
        galleries=_galleries(result.manifest, findings, most_images, max_pixels),
        counts=result.counts.to_dict("records"),
        accounting=result.accounting,
        ignored_reasons=result.ignored_reasons,
        rejects=result.rejects[:MOST_REJECTS],
        more_rejects=max(0, len(result.rejects) - MOST_REJECTS),
    )


def _galleries(
    manifest: Manifest, findings: Iterable[Finding], most_images: int, max_pixels: int
) -> list[tuple[Finding, list[Exhibit]]]:
    room = _Exhibition(manifest, max_pixels)
    galleries = []
    for finding in findings:
        exhibits = [exhibit for name in finding.examples[:most_images] if (exhibit := room.exhibit(name))]
        most_images -= len(exhibits)
        if exhibits:
            galleries.append((finding, exhibits))
    return galleries


class _Exhibition:
    """Finds what an example of a finding names, and shows it."""

    def __init__(self, manifest: Manifest, max_pixels: int) -> None:
        self._root = manifest.root
        self._max_pixels = max_pixels
        self._rows: dict[str, dict[str, Any]] = {}
        self._partners: defaultdict[tuple[Any, ...], list[str]] = defaultdict(list)
        for row in manifest.frame.to_dict("records"):
            self._rows[row["path"]] = row
            if row["mask"]:
                self._rows.setdefault(row["mask"], row)
            if row["variant"] == "real":
                self._partners[_family(row)].append(row["path"])

    def exhibit(self, name: str) -> Exhibit | None:
        """Show an image of the manifest, or a file that never came into it; None for what is no file, as a source."""
        if row := self._rows.get(name):
            return self._record(row)
        try:
            pixels = read_image(self._root / name, max_pixels=self._max_pixels)
        except DataError as error:
            return Exhibit(name, (), (str(error),)) if _is_picture(self._root / name) else None
        return Exhibit(name, (Shot("image", _picture(pixels)),), ("not in the manifest",))

    def _record(self, row: dict[str, Any]) -> Exhibit:
        partners = () if row["variant"] == "real" else tuple(self._partners[_family(row)])
        found = examine(self._root, Subject.of(row, partners), self._max_pixels)
        try:
            shots = tuple(self._shots(found))
        except DataError as error:
            return Exhibit(row["path"], (), (str(error),))
        return Exhibit(row["path"], shots, tuple(_notes(row, found)))

    def _shots(self, found: Examination) -> Iterator[Shot]:
        image = self._read(found.subject.path)
        yield Shot("image", _picture(image))
        if found.subject.mask and not found.fault:
            grey = grey_levels(self._root / found.subject.mask, self._max_pixels)
            white = marked(grey, (image.shape[0], image.shape[1]), found.subject.mask_reading)
            yield Shot("mask outlined", jpeg_uri(_outline(image, white)))
        elif found.subject.mask and found.fault in {"mask-size", "mask-transposed"}:
            yield Shot("mask", _picture(self._read(found.subject.mask)))
        if found.partner:
            partner = self._read(found.partner)
            difference, gain = amplified(cv2.absdiff(image, partner))
            yield Shot("authentic partner", _picture(partner))
            yield Shot(f"difference x {gain:.3g}", _picture(difference))

    def _read(self, name: str) -> NDArray[np.uint8]:
        return read_image(self._root / name, max_pixels=self._max_pixels)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _family(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["source_id"], row["width"], row["height"]


def _notes(row: dict[str, Any], found: Examination) -> Iterator[str]:
    origin = [f"{name} {row[name]}" for name in ("variant", "generator", "split", "source_id", "mask") if row[name]]
    yield ", ".join(origin)
    if found.fault:
        yield found.fault
    elif found.subject.mask:
        yield f"white covers {found.white_share:.1%}, {found.levels} grey levels"
    if found.partner:
        means = ((found.inside, "white"), (found.outside, "black"))
        changed = " and ".join(f"{mean:.1f} levels in {where}" for mean, where in means if not isnan(mean))
        yield f"differs from {found.partner} by {changed}"
    if found.verdict and found.verdict.kind:
        yield f"its background is that of {found.verdict.kind}: {found.verdict.kept:.1%} is kept"


def outlined(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return an image with a mask's border: orange where the mask is white, black outside it.

    Parameters
    ----------
    image : ndarray of uint8, shape (height, width, 3)
        RGB.
    mask : ndarray of bool, shape (height, width)
        White where True.
    """
    white, cross = mask.astype(np.uint8), np.ones((3, 3), np.uint8)
    drawn = image.copy()
    drawn[(cv2.dilate(white, cross) > 0) & ~mask] = 0
    drawn[mask & (cv2.erode(white, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0) == 0)] = _OUTLINE_RGB
    return drawn


def amplified(difference: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """Return a difference made visible, and the factor: its brightest hundredth, zeros left out, becomes white.

    Parameters
    ----------
    difference : ndarray of uint8, shape (height, width, 3)
        Of two images.
    """
    changed = difference[difference > 0]
    gain = 255 / float(np.percentile(changed, _BRIGHT_PERCENTILE)) if changed.size else 1.0
    return np.rint(np.minimum(difference * np.float32(gain), 255)).astype(np.uint8), gain


def _outline(image: NDArray[np.uint8], white: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return outlined(shrunk(image, PICTURE_PX), shrunk(white * np.uint8(255), PICTURE_PX) > 0)


def _picture(pixels: NDArray[np.uint8]) -> str:
    return jpeg_uri(shrunk(pixels, PICTURE_PX))
