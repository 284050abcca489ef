"""Pictures and arrays that are written strip by strip, so that their size costs no memory."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.localization.planes import STRIP_PX, forget_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

#: Disagreement from which the overlay is hatched: the windows' scores spread over a fifth of the range.
HATCHED_FROM = 0.2
_SCORE_RGB = np.array([213, 94, 0], np.float32)  # vermillion of the Okabe-Ito palette
_HATCH_RGB = np.array([86, 180, 233], np.float32)  # its sky blue
_SHARE = 0.55
_PNG_KINDS = {("uint8", 2): (8, 0), ("uint16", 2): (16, 0), ("uint8", 3): (8, 2)}
_LEVEL = 4


def write_png(path: Path, shape: tuple[int, ...], dtype: str, rows: Callable[[slice], NDArray[Any]]) -> None:
    """Write a PNG file of grey (8 or 16 bits) or RGB (8 bits) pixels.

    Parameters
    ----------
    path : Path
    shape : tuple of int
        (height, width) or (height, width, 3).
    dtype : {"uint8", "uint16"}
    rows : callable
        Returns some rows of the picture.
    """
    bits, colour = _PNG_KINDS[dtype, len(shape)]
    packer = zlib.compressobj(_LEVEL)
    above = np.zeros((1, int(np.prod(shape[1:])) * bits // 8), np.uint8)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        _chunk(file.write, b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], bits, colour, 0, 0, 0))
        for part in row_parts(shape[0], shape[1]):
            lines = np.ascontiguousarray(rows(part), np.dtype(dtype).newbyteorder(">"))
            raw = lines.view(np.uint8).reshape(part.stop - part.start, -1)
            filtered = np.full((len(raw), raw.shape[1] + 1), 2, np.uint8)  # filter 2: the difference from the row above
            filtered[:, 1:] = raw - np.concatenate([above, raw[:-1]])
            above = raw[-1:]
            _chunk(file.write, b"IDAT", packer.compress(filtered.data))
        _chunk(file.write, b"IDAT", packer.flush())
        _chunk(file.write, b"IEND", b"")


def write_npy(path: Path, array: NDArray[np.float32]) -> None:
    """Write a two-dimensional array as .npy."""
    header = {"descr": "<f4", "fortran_order": False, "shape": array.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in row_parts(*array.shape):
            file.write(np.ascontiguousarray(array[part], "<f4").data)
            forget_pages(array)


def sixteen_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return values in [0, 1] times 65,535, rounded."""
    return np.asarray(np.rint(np.clip(values, 0, 1) * 65535), dtype=np.uint16)


def row_parts(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of an image piece by piece."""
    step = max(1, STRIP_PX // width)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def overlay(
    pixels: NDArray[np.uint8],
    scores: NDArray[np.float32],
    mask: NDArray[np.bool_],
    disagreement: NDArray[np.float32] | None = None,
    n_windows: NDArray[np.int32] | None = None,
    *,
    threshold: float = 0.5,
) -> NDArray[np.uint8]:
    """Return an image tinted by its scores, the mask's border and the confidence drawn.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width, 3)
        The image.
    scores : ndarray of float32, shape (height, width)
        In [0, 1]: `centred` on the threshold, the strength of the tint.
    mask : ndarray of bool, shape (height, width)
        Region whose border is drawn: vermillion inside, white outside.
    disagreement : ndarray of float32, shape (height, width), optional
        Sky-blue hatching where it is `HATCHED_FROM` or more.
    n_windows : ndarray of int32, shape (height, width), optional
        White dots where a single window looked, so that nothing could disagree.
    threshold : float
        Score at which the tint is half as strong as it gets.
    """
    return overlay_rows(slice(0, mask.shape[0]), pixels, scores, mask, disagreement, n_windows, threshold=threshold)


def centred(scores: NDArray[np.float32], threshold: float) -> NDArray[np.float64]:
    """Return scores moved along the scale of logits so that the threshold lies at one half, for colours.

    Dice probes know few scores between 0 and 1, and a threshold of 0.999995 leaves no colour between what is marked and
    what is not. At the threshold 0.5 scores stay what they are.

    Parameters
    ----------
    scores : ndarray of float32
        In [0, 1].
    threshold : float
        Outside (0, 1) only what is marked is coloured, and fully: a promise may allow nothing to be marked.
    """
    wide = np.asarray(scores, np.float64)
    if not 0 < threshold < 1:
        return np.asarray(wide >= threshold, np.float64)
    above, below = wide * (1 - threshold), (1 - wide) * threshold
    return np.asarray(above / (above + below))


def overlay_rows(  # noqa: PLR0917 (those of `overlay`)
    part: slice,
    pixels: NDArray[np.uint8],
    scores: NDArray[np.float32],
    mask: NDArray[np.bool_],
    disagreement: NDArray[np.float32] | None = None,
    n_windows: NDArray[np.int32] | None = None,
    *,
    threshold: float = 0.5,
) -> NDArray[np.uint8]:
    """Return some rows of what `overlay` returns: `part` of the mask, and those rows of all other arrays."""
    from scipy.ndimage import binary_dilation, binary_erosion

    unit = max(1, round(min(mask.shape) / 256))
    share = (_SHARE * centred(scores, threshold))[..., None]
    tinted = pixels * (1 - share) + _SCORE_RGB * share
    y, x = np.arange(part.start, part.stop)[:, None], np.arange(mask.shape[1])[None]
    if disagreement is not None:
        tinted[(disagreement >= HATCHED_FROM) & ((y + x) % (8 * unit) < 2 * unit)] = _HATCH_RGB
    if n_windows is not None:
        spots = (y % (16 * unit) < 2 * unit) & (x % (16 * unit) < 2 * unit)
        tinted[(n_windows == 1) & spots] = 255
    top = max(0, part.start - unit - 1)
    near = mask[top : part.stop + unit + 1]
    own = slice(part.start - top, part.stop - top)
    inner = ~binary_erosion(near, border_value=1)
    tinted[(binary_dilation(near, iterations=unit) & inner)[own]] = 255
    tinted[(near & ~binary_erosion(near, iterations=unit, border_value=1))[own]] = _SCORE_RGB
    return np.asarray(np.clip(np.rint(tinted), 0, 255), dtype=np.uint8)


def _chunk(write: Callable[[bytes], object], kind: bytes, content: bytes) -> None:
    write(struct.pack(">I", len(content)))
    write(kind)
    write(content)
    write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
