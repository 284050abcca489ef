"""Large maps, row by row: kept in memory while they are small, else in temporary files that have no name.

A file without a name is gone as soon as the last array on it is, also after ``kill -9``. Rows are written through the
file and read through a read-only memory map, whose pages `forget_pages` gives back, so that neither counts as memory.
"""

from __future__ import annotations

import math
import mmap
import tempfile
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
    """An array that is written row by row, from the first to the last.

    Parameters
    ----------
    shape : tuple of int
        Of the whole array.
    dtype : dtype
    scratch : Scratch or None
        Where its file is; None keeps it in memory.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, scratch: Scratch | None = None) -> None:
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._rows = 0
        self._memory: NDArray[Any] | None = np.empty(shape, dtype) if scratch is None else None
        self._file: IO[bytes] | None = None
        if scratch is not None:
            self._file = tempfile.TemporaryFile(dir=scratch.folder)  # noqa: SIM115 (closed by `array`)

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows, shape (n, ...).

        Raises
        ------
        OutputError
            If the disk is full.
        """
        if self._memory is not None:
            self._memory[self._rows : self._rows + len(rows)] = rows
        elif self._file is not None:
            try:
                self._file.write(np.ascontiguousarray(rows, self._dtype).data)
            except OSError as error:
                needed = math.prod(self._shape) * self._dtype.itemsize / 1e9
                msg = f"no room for a temporary file of {needed:.1f} GB ({error}); give TMPDIR a larger disk"
                raise OutputError(msg) from error
        self._rows += len(rows)

    def array(self) -> NDArray[Any]:
        """Return the whole array, once all rows are in."""
        if self._memory is None and self._file is not None:
            with self._file as file:
                file.flush()
                self._memory = np.memmap(file, self._dtype, mode="r", shape=self._shape)
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
    maps : ndarray of float32, shape (rows, columns, channels)
        Probabilities.
    size : tuple of int
        New rows and columns.
    store : RowStore
        Of shape (*size, channels).

    Notes
    -----
    Done in strips whose margins hold all that the filter looks at; only the rounding of the filter's positions, some
    1e-7, tells the result from that of one piece.
    """
    rows, columns = maps.shape[:2]
    scale = rows / size[0]
    margin = math.ceil(_BICUBIC_SUPPORT * max(scale, 1)) + 1
    step = max(1, round(STRIP_PX / max(columns, size[1]) / max(scale, 1)))
    for first in range(0, size[0], step):
        last = min(first + step, size[0])
        top, bottom = max(0, math.floor(first * scale) - margin), min(rows, math.ceil(last * scale) + margin)
        box = (0, first * scale - top, columns, min(last * scale, rows) - top)
        piece = maps[top:bottom]
        channels = [
            np.asarray(_image(piece[..., i]).resize((size[1], last - first), Image.Resampling.BICUBIC, box=box))
            for i in range(maps.shape[2])
        ]
        store.append(np.clip(np.stack(channels, axis=-1), 0, 1))
        forget_pages(maps)


def _image(channel: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(channel))
