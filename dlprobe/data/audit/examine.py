"""Look at one image of a manifest: its mask, and its authentic partner where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from dlprobe.data.audit.verdict import Verdict, background_verdict
from dlprobe.data.images import MAX_PIXELS, RESIZED, marked, read_image, same_view
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

#: How many authentic images of the same photograph and size are tried as the partner (crops share a source_id).
MOST_PARTNERS = 4
#: Endings of files whose compression changes pixels by itself.
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")


class Subject(NamedTuple):
    """An image to be looked at: the manifest's columns that matter here, and the paths of possible partners."""

    path: str
    mask: str
    variant: str
    generator: str
    mask_kind: str
    dataset: str
    partners: tuple[str, ...]
    mask_reading: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any], partners: tuple[str, ...]) -> Subject:
        """Return the subject of a manifest's row."""
        known = {name: row[name] for name in cls._fields if name in row}
        return cls(**known, partners=partners)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What one image shows.

    Parameters
    ----------
    subject : Subject
        What was looked at.
    fault : str
        ``unreadable``, ``mask-unreadable``, ``mask-size`` or ``mask-transposed``, and then nothing else is known.
    levels : int
        Grey levels of the mask, 0 if it has none.
    brightest : int
        The mask's highest grey level.
    white_share : float
        Share of pixels above the threshold; of a mask that is read as inverted, not above it.
    partner : str
        The authentic image it was compared with.
    inside, outside : float
        Mean absolute difference from the partner in white and in black, in grey levels; NaN where unknown.
    verdict : Verdict or None
        What the background says.
    """

    subject: Subject
    fault: str = ""
    levels: int = 0
    brightest: int = 0
    white_share: float = 0.0
    partner: str = ""
    inside: float = float("nan")
    outside: float = float("nan")
    verdict: Verdict | None = None


def examine(root: Path, subject: Subject, max_pixels: int = MAX_PIXELS) -> Examination:
    """Decode an image, its mask and its partner, and compare them.

    Parameters
    ----------
    root : Path
        Folder that the paths are relative to.
    subject : Subject
        What to look at.
    max_pixels : int
        Larger images count as unreadable.

    Returns
    -------
    Examination
    """
    try:
        image = read_image(root / subject.path, max_pixels=max_pixels)
    except DataError:
        return Examination(subject=subject, fault="unreadable")
    grey = None
    if subject.mask:
        try:
            grey = grey_levels(root / subject.mask, max_pixels)
        except DataError:
            return Examination(subject=subject, fault="mask-unreadable")
        if grey.shape != image.shape[:2] and not (
            RESIZED in subject.mask_reading and same_view(grey.shape, image.shape[:2])
        ):
            turned = grey.shape == image.shape[1::-1]
            return Examination(subject=subject, fault="mask-transposed" if turned else "mask-size")
    size = image.shape[0], image.shape[1]
    mask = np.zeros(size, np.bool_) if grey is None else marked(grey, size, subject.mask_reading)
    partner, original = _partner(root, subject.partners, image, max_pixels)
    inside, outside = _differences(original, image, mask) if original is not None else (float("nan"), float("nan"))
    exact = not partner.lower().endswith(LOSSY_SUFFIXES)
    return Examination(
        subject=subject,
        levels=0 if grey is None else int(np.count_nonzero(np.bincount(grey.ravel(), minlength=256))),
        brightest=0 if grey is None else int(grey.max()),
        white_share=float(mask.mean()),
        partner=partner,
        inside=inside,
        outside=outside,
        verdict=None
        if original is None
        else background_verdict(original, image, mask, root / subject.path, exact=exact),
    )


def grey_levels(path: Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return a mask's grey levels, colours by their luma; raise `DataError` if it cannot be read."""
    return np.asarray(Image.fromarray(read_image(path, max_pixels=max_pixels)).convert("L"))


def _partner(
    root: Path, candidates: Sequence[str], image: NDArray[np.uint8], max_pixels: int
) -> tuple[str, NDArray[np.uint8] | None]:
    """Return the candidate of the same size that is nearest to the image, and its pixels."""
    nearest: tuple[float, str, NDArray[np.uint8] | None] = (float("inf"), "", None)
    for path in candidates[:MOST_PARTNERS]:
        try:
            original = read_image(root / path, max_pixels=max_pixels)
        except DataError:
            continue
        if original.shape != image.shape:
            continue
        distance = float(np.median(cv2.absdiff(original[::4, ::4], image[::4, ::4])))
        if distance < nearest[0]:
            nearest = distance, path, original
    return nearest[1:]


def _differences(original: NDArray[np.uint8], image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> tuple[float, float]:
    difference = cv2.absdiff(original, image)
    white = mask.astype(np.uint8)
    means = [
        float(np.mean(cv2.mean(difference, part)[:3])) if part.any() else float("nan") for part in (white, 1 - white)
    ]
    return means[0], means[1]
