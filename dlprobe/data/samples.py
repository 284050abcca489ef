"""One image of a manifest, decoded: pixels and region map at working size."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dlprobe.data.images import MAX_PIXELS, enlarge, enlarge_regions, read_image, read_mask
from dlprobe.data.provenance import region_map
from dlprobe.errors import DataError
from dlprobe.spec import sha256_of_file

if TYPE_CHECKING:
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
    mask = read_mask(root / row["mask"], size, max_pixels=max_pixels) if row["mask"] else None
    regions = region_map(row["variant"], size, mask)
    return Sample(enlarge(pixels, window_px), enlarge_regions(regions, window_px), sha256_of_file(path))
