"""Provenance classes of pixels, variants of images, and the region map that follows from a variant and a mask."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlprobe.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Provenance(IntEnum):
    """Where a pixel comes from."""

    PRISTINE = 0
    AUTOENCODED = 1
    INPAINTED = 2
    VOID = 255


#: The classes in the order of the last axis of a coverage array.
COVERAGE_CLASSES = (Provenance.PRISTINE, Provenance.AUTOENCODED, Provenance.INPAINTED, Provenance.VOID)


class Variant(StrEnum):
    """How an image came to be."""

    REAL = "real"
    AE = "ae"
    AESP = "aesp"
    SP = "sp"
    FR = "fr"


class Regions(NamedTuple):
    """Provenance inside and outside the mask; `inside` is None where the variant has no mask."""

    inside: Provenance | None
    outside: Provenance


#: The variant table: the one place that says what a variant does to the pixels inside and outside its mask.
VARIANTS: dict[Variant, Regions] = {
    Variant.REAL: Regions(None, Provenance.PRISTINE),
    Variant.AE: Regions(None, Provenance.AUTOENCODED),
    Variant.AESP: Regions(Provenance.AUTOENCODED, Provenance.PRISTINE),
    Variant.SP: Regions(Provenance.INPAINTED, Provenance.PRISTINE),
    Variant.FR: Regions(Provenance.INPAINTED, Provenance.AUTOENCODED),
}


def region_map(variant: str, size: tuple[int, int], mask: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """Return the provenance class of every pixel.

    Parameters
    ----------
    variant : str
        One of `Variant`.
    size : tuple of int
        Height and width of the image, in pixels.
    mask : ndarray of bool, shape (height, width), or None
        True where the variant's inside is; required by `aesp`, `sp` and `fr`, and refused by `real` and `ae`.

    Returns
    -------
    ndarray of uint8, shape (height, width)

    Raises
    ------
    DataError
        If the variant is unknown, or the mask is missing, superfluous or of another size.
    """
    if variant not in VARIANTS:
        msg = f"no variant {variant!r}; write one of {', '.join(VARIANTS)}"
        raise DataError(msg)
    inside, outside = VARIANTS[Variant(variant)]
    regions = np.full(size, outside, np.uint8)
    if inside is None:
        if mask is not None:
            msg = f"variant {variant!r} has no mask, but one was given; leave the mask empty or correct the variant"
            raise DataError(msg)
        return regions
    if mask is None:
        msg = f"variant {variant!r} needs a mask and has none; name its mask or correct the variant"
        raise DataError(msg)
    if mask.shape != size:
        msg = f"the mask is {_size(mask.shape)}, its image {_size(size)} (width x height); give the mask of this image"
        raise DataError(msg)
    regions[mask] = inside
    return regions


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
