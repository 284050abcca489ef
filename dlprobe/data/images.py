"""Read photographs and masks from files; enlarge them by the one rule of `dlprobe.data.tiling`."""

from __future__ import annotations

import struct
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from dlprobe.data.tiling import working_size
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

from contextlib import contextmanager

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
MASK_THRESHOLD = 127
_ORIENTATION_TAG = 0x0112
_TRANSPOSING = frozenset({5, 6, 7, 8})
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width in pixels, EXIF orientation applied, from the header alone.

    Raises
    ------
    DataError
        If the file is missing or no image.
    """
    with _opened(path, "image") as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION_TAG) in _TRANSPOSING
    return (width, height) if turned else (height, width)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return the first frame of an image as RGB.

    EXIF orientation is applied, grey and palette images are spread to RGB, transparency is dropped, and 16 bits are
    scaled to 8.

    Parameters
    ----------
    path : Path
        Any format that Pillow reads.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)

    Raises
    ------
    DataError
        If the file is missing, truncated or no image.
    """
    with _opened(path, "image") as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _SIXTEEN_BIT:
            grey = np.asarray(upright).astype(np.float64) / 257.0
            return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(upright.convert("RGB"))


def read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask: True where its grey level exceeds 127.

    Parameters
    ----------
    path : Path
        An image file, white where manipulated.
    size : tuple of int
        Height and width of the image that it belongs to.

    Returns
    -------
    ndarray of bool, shape (height, width)

    Raises
    ------
    DataError
        If the file is missing, no image or of another size.
    """
    with _opened(path, "mask") as image:
        grey = np.asarray(ImageOps.exif_transpose(image).convert("L"))
    if grey.shape != size:
        msg = (
            f"mask {path} is {grey.shape[1]}x{grey.shape[0]} px, its image {size[1]}x{size[0]} px; "
            "give the mask that belongs to this image"
        )
        raise DataError(msg)
    return grey > MASK_THRESHOLD


def enlarge(image: NDArray[np.uint8], window_px: int) -> NDArray[np.uint8]:
    """Return an image at its working size (PIL bicubic); the image itself where nothing is to be done."""
    return _resized(image, window_px, Image.Resampling.BICUBIC)


def enlarge_regions(regions: NDArray[np.uint8], window_px: int) -> NDArray[np.uint8]:
    """Return a region map at its image's working size (nearest neighbour)."""
    return _resized(regions, window_px, Image.Resampling.NEAREST)


def _resized(pixels: NDArray[np.uint8], window_px: int, filter_: Image.Resampling) -> NDArray[np.uint8]:
    height, width = working_size(pixels.shape[0], pixels.shape[1], window_px)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), filter_))


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except FileNotFoundError as error:
        msg = f"no {what} at {path}; check the path and the root that it is relative to"
        raise DataError(msg) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        msg = f"{what} {path} has more pixels than Pillow trusts ({Image.MAX_IMAGE_PIXELS}); check what it is"
        raise DataError(msg) from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        struct.error,
        TypeError,
        ZeroDivisionError,
    ) as error:
        # what Pillow's decoders raise on damaged files
        msg = f"{what} {path} cannot be read ({error}); replace the file or leave it out"
        raise DataError(msg) from error
