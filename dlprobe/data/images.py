"""Read photographs and masks from files; enlarge them by the one rule of `dlprobe.data.tiling`.

What is read is the first frame, upright by its EXIF orientation, as the RGB values that the file stores:

- an ICC profile is not applied and a gamma value is ignored, as in the published forensic code. Both are smooth maps of
  the whole image, which move no trace from one place to another;
- grey, palette and two-level images are spread to RGB; transparency is dropped and the colours beneath it stay;
- of 16 bits the upper 8 are taken, as Pillow does for colour; images of 12 or 32 bits and of floats are refused,
  because nothing in the file says what white is;
- CMYK becomes RGB by Pillow's formula, ``(1 - colour) * (1 - black)``;
- a file that ends before its pixels do is refused, even where a program has told Pillow to fill such images.
"""

from __future__ import annotations

import math
import struct
import threading
import zlib
from contextlib import contextmanager
from functools import cache
from os import SEEK_END
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from dlprobe.data.tiling import working_size
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
#: Formats that are recognised by their content; others of Pillow's run programs (EPS) or hold no photographs.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
MASK_THRESHOLD = 127
#: How a mask is read, if not as it is: black is what was manipulated; brought to the size of its image.
INVERTED, RESIZED = "inverted", "resized"
#: How far the shapes of a mask and of its image may differ: pipelines round each side to a multiple of 8 or 64 px.
MOST_STRETCH = 1 / 16
#: The same for sides of so few pixels that one of them is more.
_ONE_OF_FEW = 1 / 4
MASK_READINGS = ("", INVERTED, RESIZED, f"{INVERTED}+{RESIZED}")
#: Pillow's own limit against decompression bombs: a third of a gigabyte as RGB.
MAX_PIXELS = 1024**3 // 4 // 3

#: What a complete file of a format has at its end, and how much may follow it.
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 4096
_ORIENTATION_TAG = 0x0112
_BITS_TAG = 0x0102
_TRANSPOSING = frozenset({5, 6, 7, 8})
_SIXTEEN_BIT = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_UNSCALED = frozenset({"I", "F"})
_SCALED_FORMATS = frozenset({"PPM", "PNG"})  # where Pillow's mode I holds 16 bits
_LATE_CHUNKS = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
#: What Pillow's decoders raise on damaged files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_settings = threading.RLock()


def image_size(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return height and width in pixels, EXIF orientation applied, from the header.

    The end of the file is looked at too: where it does not say that the image is complete, the pixels are decoded.

    Parameters
    ----------
    path : Path
        A file in one of `FORMATS`.
    max_pixels : int
        More are refused as a decompression bomb; raise it for files that you trust.

    Raises
    ------
    DataError
        If the file is missing, no image, too large, or truncated.
    """
    with _opened(path, "image", max_pixels) as image:
        if not _has_its_end(path, image.format):
            image.load()
        width, height = image.size
        turned = _orientation(image, path) in _TRANSPOSING
    return (width, height) if turned else (height, width)


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return the first frame of an image as RGB; the module's text says how each kind of file becomes that.

    Parameters
    ----------
    path : Path
        A file in one of `FORMATS`.
    max_pixels : int
        More are refused as a decompression bomb; raise it for files that you trust.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)

    Raises
    ------
    DataError
        If the file is missing, truncated, no image, too large, or of a depth that defines no white.
    """
    with _opened(path, "image", max_pixels) as image:
        return np.array(_eight_bit(image).convert("RGB"))


def read_mask(
    path: Path, size: tuple[int, int], *, reading: str = "", max_pixels: int = MAX_PIXELS
) -> NDArray[np.bool_]:
    """Return a mask: True where its grey level exceeds 127.

    Parameters
    ----------
    path : Path
        An image file, white where manipulated; colours count by their luma, transparency does not.
    size : tuple of int
        Height and width of the image that it belongs to.
    reading : str
        One of `MASK_READINGS`: see `marked`.
    max_pixels : int
        More are refused as a decompression bomb; raise it for files that you trust.

    Returns
    -------
    ndarray of bool, shape (height, width)

    Raises
    ------
    DataError
        If the file is missing, truncated, no image or of another size, or if it is not black but has no level above
        127, as a mask of zeros and ones.
    """
    with _opened(path, "mask", max_pixels) as image:
        grey = np.asarray(_eight_bit(image).convert("L"))
    if grey.shape != size and not (RESIZED in reading and same_view(grey.shape, size)):
        msg = (
            f"mask {path} is {grey.shape[1]}x{grey.shape[0]} px, its image {size[1]}x{size[0]} px; "
            "give the mask that belongs to this image"
        )
        raise DataError(msg)
    if 0 < (brightest := int(grey.max())) <= MASK_THRESHOLD:
        msg = f"mask {path} is not black, yet its brightest level is {brightest}; write manipulated pixels as 255"
        raise DataError(msg)
    return marked(grey, size, reading)


def marked(grey: NDArray[np.uint8], size: tuple[int, int], reading: str = "") -> NDArray[np.bool_]:
    """Return where a mask's grey levels say manipulated.

    Parameters
    ----------
    grey : ndarray of uint8, shape (height, width)
        Of the mask, upright.
    size : tuple of int
        Height and width of its image; another size of the mask is brought to it by nearest neighbour.
    reading : str
        One of `MASK_READINGS`; ``inverted``: True where the level does not exceed 127.

    Returns
    -------
    ndarray of bool, shape `size`
    """
    if grey.shape != size:  # in whole numbers: Pillow adds up rounded steps, and misses centres that lie on a border
        y, x = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, grey.shape, strict=True))
        grey = grey[np.ix_(y, x)]
    white = grey > MASK_THRESHOLD
    return ~white if INVERTED in reading else white


def same_view(mask: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Tell whether a mask of another size can show the whole of its image: it is stretched by no more than rounding.

    One whose sides are exchanged cannot, however near to a square: it lies on its side.

    Parameters
    ----------
    mask, image : tuple of int
        Height and width of each, in pixels.
    """
    if mask == image[::-1] != image:
        return False
    return stretch(mask, image) <= max(MOST_STRETCH, min(_ONE_OF_FEW, 1 / min(*mask, *image)))


def stretch(mask: tuple[int, ...], image: tuple[int, ...]) -> float:
    """Return by how much more a mask is enlarged on one side than on the other to be as large as its image."""
    sides = sorted(new / old for new, old in zip(image, mask, strict=True))
    return sides[1] / sides[0] - 1


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


def _eight_bit(image: Image.Image) -> Image.Image:
    """Decode, turn upright, drop transparency and reduce 16 bits to 8."""
    ImageOps.exif_transpose(image, in_place=True)
    image.info.pop("transparency", None)
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def _orientation(image: Image.Image, path: Path) -> int | None:
    """Return how the image must still be turned, without decoding it."""
    if image.format == "PNG" and not _has_late_chunks(path):
        found = Image.Image.getexif(image).get(_ORIENTATION_TAG)  # PngImageFile.getexif decodes all pixels first
    else:
        found = image.getexif().get(_ORIENTATION_TAG)
    if image.format == "TIFF" and found == image.tag_v2.get(_ORIENTATION_TAG):  # type: ignore[attr-defined]
        return None  # Pillow gives the size of a TIFF file upright
    return found


def _has_its_end(path: Path, kind: str | None) -> bool:
    """Tell whether the end of a file is that of its format, or as long as its header says; True where neither is."""
    with path.open("rb", buffering=0) as file:
        start = file.read(8)
        size = file.seek(0, SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    if kind in _ENDS:
        return _ENDS[kind] in tail
    if kind == "WEBP":
        return bool(struct.unpack("<I", start[4:])[0] + 8 <= size)
    return kind != "BMP" or bool(struct.unpack("<I", start[2:6])[0] <= size)


def _has_late_chunks(path: Path) -> bool:
    """Tell whether a PNG file has chunks behind its pixels that could hold an orientation."""
    pixels_seen = False
    with path.open("rb", buffering=0) as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            pixels_seen = pixels_seen or kind == b"IDAT"
            if pixels_seen and kind in _LATE_CHUNKS:
                return True
            file.seek(length + 4, 1)
    return False


def _require_readable(image: Image.Image, what: str, path: Path, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        msg = f"{what} {path} has {width * height:,} pixels, more than {max_pixels:,}; raise the limit if you trust it"
        raise DataError(msg)
    bits = image.tag_v2.get(_BITS_TAG, ()) if image.format == "TIFF" else ()  # type: ignore[attr-defined]
    if 12 in bits or (image.mode in _UNSCALED and image.format not in _SCALED_FORMATS):
        msg = f"{what} {path} has 12 or 32 bits a channel and does not say what white is; save it with 8 or 16 bits"
        raise DataError(msg)


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF came with Pillow 11.3


@contextmanager
def _opened(path: Path, what: str, max_pixels: int) -> Iterator[Image.Image]:
    try:
        # opened here, because Pillow 13 maps a file that it opens itself and scrambles turned TIFF images
        with path.open("rb") as file, _strict_pillow(max_pixels), Image.open(file, formats=_known_formats()) as image:
            _require_readable(image, what, path, max_pixels)
            yield image
    except FileNotFoundError as error:
        msg = f"no {what} at {path}; check the path and the root that it is relative to"
        raise DataError(msg) from error
    except UnidentifiedImageError as error:
        msg = f"{what} {path} is damaged or in none of the formats {', '.join(_known_formats())}; replace it"
        raise DataError(msg) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        msg = f"{what} {path} has more than {max_pixels:,} pixels; raise the limit if you trust it"
        raise DataError(msg) from error
    except _DAMAGE as error:
        msg = f"{what} {path} cannot be read ({error}); replace the file or leave it out"
        raise DataError(msg) from error


@contextmanager
def _strict_pillow(max_pixels: int) -> Iterator[None]:
    """Hold Pillow's two process-wide settings at what we promise, and give them back; mostly there is nothing to do."""
    with _settings:
        kept = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        if kept[1] or max_pixels > (kept[0] or math.inf):
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = max_pixels, False
            try:
                yield
            finally:
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = kept
            return
    yield
