"""Large maps, row by row: kept in memory while they are small, else in temporary files that have no name.

A file without a name is gone as soon as the last array on it is, also after ``kill -9``. Rows are written through the
file and read through a read-only memory map, whose pages `forget_pages` gives back, so that neither counts as memory.
"""

from __future__ import annotations

import math
import mmap
import tempfile
import weakref
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dlprobe.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

#: Pixels that are worked on at a time.
STRIP_PX = 1 << 22
_BICUBIC_SUPPORT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """Where the maps of an image are kept.

    Parameters
    ----------
    memory_bytes : int
        Maps of one image that take more together go to temporary files.
    folder : Path, optional
        Of these files; the system's folder for temporary files by default.
    """

    memory_bytes: int = 256 << 20
    folder: Path | None = None


class RowStore:
    """Planes that are written row by row, from the first to the last; each plane lies in one piece.

    Parameters
    ----------
    shape : tuple of int
        Planes, rows, columns.
    dtype : dtype
    scratch : Scratch or None
        Where its file is; None keeps it in memory.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: DTypeLike, scratch: Scratch | None = None) -> None:
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._rows = 0
        self._memory: NDArray[Any] | None = np.empty(shape, dtype) if scratch is None else None
        self._file: IO[bytes] | None = None
        if scratch is not None:
            self._file = tempfile.TemporaryFile(dir=scratch.folder)  # noqa: SIM115
            weakref.finalize(self, self._file.close)

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows, shape (planes, n, columns).

        Raises
        ------
        OutputError
            If the disk is full.
        """
        stop = self._rows + rows.shape[1]
        if self._memory is not None:
            self._memory[:, self._rows : stop] = rows
        elif self._file is not None:
            try:
                for number, plane in enumerate(rows):
                    self._file.seek((number * self._shape[1] + self._rows) * self._shape[2] * self._dtype.itemsize)
                    self._file.write(np.ascontiguousarray(plane, self._dtype).data)
            except OSError as error:
                needed = math.prod(self._shape) * self._dtype.itemsize / 1e9
                msg = f"no room for a temporary file of {needed:.1f} GB ({error}); give TMPDIR a larger disk"
                raise OutputError(msg) from error
        self._rows = stop

    def array(self) -> NDArray[Any]:
        """Return the planes, once all rows are in."""
        if self._memory is None and self._file is not None:
            self._file.flush()
            self._memory = np.memmap(self._file, self._dtype, mode="r", shape=self._shape)
        if self._memory is None:
            msg = "a store has neither memory nor a file"
            raise ValueError(msg)
        return self._memory


def forget_pages(array: NDArray[Any]) -> None:
    """Give back the memory of a mapped array; what is needed again is read again. Nothing happens to others."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def strips(array: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield an array of at least two axes piece by piece along its longer side, with the pieces' rows or columns.

    Yields
    ------
    tuple of (slice, ndarray)
        Rows of the array if it is at least as high as wide, else columns; and the piece itself, whose memory is given
        back when the next one is asked for.
    """
    axis = long_axis(array.shape)
    length, across = array.shape[axis], array.shape[1 - axis]
    step = max(1, STRIP_PX // across)
    for start in range(0, length, step):
        part = slice(start, min(start + step, length))
        yield part, array[part] if axis == 0 else array[:, part]
        forget_pages(array)


def long_axis(shape: tuple[int, ...]) -> int:
    """Return 0 for an array at least as high as wide, else 1: the axis along which large maps are cut and stored."""
    return 0 if shape[0] >= shape[1] else 1


def resize_rows(maps: NDArray[np.float32], size: tuple[int, int], store: RowStore) -> None:
    """Append maps of values in [0, 1] to a store at another size: PIL bicubic, then clipped to [0, 1].

    Parameters
    ----------
    maps : ndarray of float32, shape (planes, rows, columns)
        Probabilities.
    size : tuple of int
        New rows and columns.
    store : RowStore
        Of shape (planes, *size).

    Notes
    -----
    Pillow resizes along the rows, which needs no other row; along the columns its filter is applied here, strip by
    strip, because the place of a strip that one gives to Pillow is rounded to float32.
    """
    rows, columns = maps.shape[1:]
    first, weights = _bicubic(rows, size[0])
    step = max(1, STRIP_PX // max(columns, size[1]) * size[0] // max(rows, size[0]))
    for start in range(0, size[0], step):
        part = slice(start, min(start + step, size[0]))
        top, bottom = int(first[part].min()), int(first[part].max()) + weights.shape[1]
        across = np.stack([_resized_across(plane[top:bottom], size[1]) for plane in maps])
        taps = np.minimum(first[part, None] - top + np.arange(weights.shape[1]), across.shape[1] - 1)
        resized = np.zeros((len(maps), len(taps), size[1]))
        for tap, weight in zip(taps.T, weights[part].T, strict=True):
            resized += across[:, tap] * weight[:, None]
        store.append(np.clip(resized, 0, 1).astype(np.float32))
        forget_pages(maps)


def _resized_across(plane: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image.resize((columns, len(plane)), Image.Resampling.BICUBIC))


def _bicubic(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return, for each new row, the first old row that Pillow's bicubic filter looks at, and the weights from there on.

    The filter is that of Keys with a = -0.5, widened where the map shrinks, cut and normalised at the borders.
    """
    scale = old / new
    width = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    first = np.maximum((centres - _BICUBIC_SUPPORT * width + 0.5).astype(np.int64), 0)
    stop = np.minimum((centres + _BICUBIC_SUPPORT * width + 0.5).astype(np.int64), old)
    rows = first[:, None] + np.arange((stop - first).max())
    x = np.abs((rows - centres[:, None] + 0.5) / width)
    weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
    weights[rows >= stop[:, None]] = 0
    return first, weights / weights.sum(axis=1, keepdims=True)
