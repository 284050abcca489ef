"""Spliced or fully regenerated: decided by what lies outside the mask, beside the authentic photograph.

A lossless fake is compared pixel by pixel. A JPEG fake cannot be: compression alone changes every block. There the
authentic photograph is compressed with the fake's own quantisation tables and chroma subsampling, and a block counts as
kept where the fake is no further from the photograph than that. The recipe was found on 18 published pairs of SAGI
without masks (three for each of six generators); with masks, ``benchmarks/verdict.py`` checks it on other images.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from PIL import Image, JpegImagePlugin

from dlprobe.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

#: How far from the mask a pixel must lie to count as background: soft rims, and blocks that the mask touches.
MARGIN_PX = 16
BLOCK_PX = 16
#: Errors below this many grey levels are rounding, not compression.
FLOOR_LEVELS = 0.3
#: A block is kept where its error is at most this many times that of compression.
KEPT_RATIO = 1.1
#: Kept share of the background from which an image is spliced, and up to which it is fully regenerated.
LOSSLESS_CUTS = (0.95, 0.6)
JPEG_CUTS = (0.9, 0.25)
_FEWEST_BLOCKS = 24
_NOTHING = np.zeros(0, np.bool_)
_JPEG_START = b"\xff\xd8"
#: PNG, TIFF in both orders, BMP. (TIFF may hold JPEG; then the last bits differ, and the verdict is fr or none.)
_LOSSLESS_STARTS = (b"\x89PNG", b"II*\0", b"MM\0*", b"BM")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the background of a fake says.

    Parameters
    ----------
    kind : {"sp", "fr", ""}
        Spliced, fully regenerated, or undecided.
    kept : float
        Share of the background that is as in the photograph; NaN where there was none to look at.
    recipe : {"lossless", "jpeg", ""}
        How it was compared; empty for other formats, which no recipe covers.
    """

    kind: Literal["sp", "fr", ""]
    kept: float
    recipe: Literal["lossless", "jpeg", ""]


def background_verdict(
    original: NDArray[np.uint8], image: NDArray[np.uint8], mask: NDArray[np.bool_], fake: Path, *, exact: bool = True
) -> Verdict:
    """Decide whether the background of a fake is that of its photograph.

    Parameters
    ----------
    original, image : ndarray of uint8, shape (height, width, 3)
        The photograph and the fake, decoded.
    mask : ndarray of bool, shape (height, width)
        True where the fake was generated.
    fake : Path
        The fake's file, whose header says how it was compressed.
    exact : bool
        Whether the photograph's file is lossless; else the last bit may differ between decoders.

    Returns
    -------
    Verdict

    Raises
    ------
    DataError
        If sizes differ.
    """
    if original.shape != image.shape or mask.shape != image.shape[:2]:
        msg = f"{fake}, its mask and its photograph differ in size; compare an image with its own"
        raise DataError(msg)
    outside = ~dilated(mask, MARGIN_PX)
    with fake.open("rb") as file:
        start = file.read(8)
        if start.startswith(_JPEG_START):
            file.seek(0)
            compressed = recompressed(original, JpegImagePlugin.JpegImageFile(file))
            kept = _kept_blocks(original, image, compressed, outside) if compressed is not None else _NOTHING
            return _judged(kept, JPEG_CUTS, "jpeg")
    if not start.startswith(_LOSSLESS_STARTS):
        return _judged(_NOTHING, LOSSLESS_CUTS, "")
    red, green, blue = cv2.split(cv2.absdiff(original, image))
    kept = np.maximum(np.maximum(red, green), blue)[outside] <= (0 if exact else 1)
    return _judged(kept if kept.size >= _FEWEST_BLOCKS * BLOCK_PX**2 else kept[:0], LOSSLESS_CUTS, "lossless")


def dilated(mask: NDArray[np.bool_], margin_px: int) -> NDArray[np.bool_]:
    """Return a mask grown by a square of `margin_px` on each side."""
    side = 2 * margin_px + 1
    grown: NDArray[np.bool_] = cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    return grown


def recompressed(original: NDArray[np.uint8], header: JpegImagePlugin.JpegImageFile) -> NDArray[np.uint8] | None:
    """Return a photograph as it looks after JPEG with another file's quantisation tables and chroma subsampling.

    None if that file's tables or colours are none that Pillow writes.
    """
    grey = header.mode == "L"
    if header.mode not in {"L", "RGB"} or any(not 1 <= step <= 255 for t in header.quantization.values() for step in t):
        return None
    buffer = io.BytesIO()
    subsampling = -1 if grey else max(JpegImagePlugin.get_sampling(header), 0)
    Image.fromarray(original).convert(header.mode).save(
        buffer, "JPEG", qtables=header.quantization, subsampling=subsampling
    )
    with Image.open(buffer) as image:
        return np.array(image.convert("RGB"))


def _kept_blocks(
    original: NDArray[np.uint8],
    image: NDArray[np.uint8],
    compressed: NDArray[np.uint8],
    outside: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Tell for each block of the background whether the fake is as near to the photograph as compression alone."""
    whole = _blocks(outside).all(axis=(1, 3))
    truth = _luma(original)
    error = np.abs(truth - _luma(image))
    expected = np.abs(truth - _luma(compressed))
    means = [_blocks(values).mean(axis=(1, 3))[whole] for values in (error, expected)]
    kept: NDArray[np.bool_] = means[0] < KEPT_RATIO * np.maximum(means[1], FLOOR_LEVELS)
    return kept if kept.size >= _FEWEST_BLOCKS else kept[:0]


def _luma(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(pixels).convert("L"), np.float32)


def _blocks(values: NDArray[Any]) -> NDArray[Any]:
    height, width = (side // BLOCK_PX for side in values.shape)
    return values[: height * BLOCK_PX, : width * BLOCK_PX].reshape(height, BLOCK_PX, width, BLOCK_PX)


def _judged(kept: NDArray[np.bool_], cuts: tuple[float, float], recipe: Literal["lossless", "jpeg", ""]) -> Verdict:
    if not kept.size:
        return Verdict("", float("nan"), recipe)
    share = float(kept.mean())
    return Verdict("sp" if share >= cuts[0] else "fr" if share <= cuts[1] else "", share, recipe)
