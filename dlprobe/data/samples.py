"""One image of a manifest, decoded: pixels and region map at working size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dlprobe.data.images import MAX_PIXELS, enlarge, enlarge_regions, read_image, read_mask
from dlprobe.data.manifest import MASK_READING
from dlprobe.data.provenance import region_map
from dlprobe.errors import DataError
from dlprobe.spec import sha256_of_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


class Sample(NamedTuple):
    """A decoded image.

    ``pixels`` uint8 (height, width, 3) and ``regions`` uint8 (height, width) are at working size; ``sha256`` is of the
    image file.
    """

    pixels: NDArray[np.uint8]
    regions: NDArray[np.uint8]
    sha256: str


def read_sample(root: Path, row: pd.Series, window_px: int, *, max_pixels: int = MAX_PIXELS) -> Sample:
    """Decode one row of a manifest.

    Parameters
    ----------
    root : Path
        Folder that the row's paths are relative to.
    row : Series
        A row of `Manifest.frame`.
    window_px : int
        Side of the window, which decides whether the image is enlarged.
    max_pixels : int
        Larger images are refused as decompression bombs.

    Raises
    ------
    DataError
        If image or mask is missing, damaged, or of another size than the manifest says.
    """
    path = root / row["path"]
    pixels = read_image(path, max_pixels=max_pixels)
    size = pixels.shape[0], pixels.shape[1]
    if size != (row["height"], row["width"]):
        msg = (
            f"image {path} is {size[1]}x{size[0]} px, the manifest says {row['width']}x{row['height']}; "
            "scan the data set again"
        )
        raise DataError(msg)
    regions = region_map(row["variant"], size, mask_of(row, root, size, max_pixels=max_pixels))
    return Sample(enlarge(pixels, window_px), enlarge_regions(regions, window_px), sha256_of_file(path))


def mask_of(
    row: pd.Series | Mapping[str, Any], root: Path, size: tuple[int, int], *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.bool_] | None:
    """Read the mask of a row of a manifest as the row says that it is to be read; None if it has none.

    Parameters
    ----------
    row : Series or mapping
        With ``mask``, and ``mask_reading`` where the manifest has it.
    root : Path
        Folder that the row's paths are relative to.
    size : tuple of int
        Height and width of the image.
    max_pixels : int
        Larger masks are refused as decompression bombs.

    Raises
    ------
    DataError
        If the mask is missing, damaged, or of another size than the image.
    """
    if not row["mask"]:
        return None
    return read_mask(root / row["mask"], size, reading=row.get(MASK_READING) or "", max_pixels=max_pixels)
