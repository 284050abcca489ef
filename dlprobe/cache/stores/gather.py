"""Read windows out of chunks, each straight into its slot of a buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dlprobe.cache.places import Opened

_MOST_BUFFERS = 1024  # IOV_MAX of Linux and of the BSDs


def runs(indices: NDArray[np.int64], block_windows: int) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Cut window indices into runs that lie side by side in one block.

    Parameters
    ----------
    indices : ndarray of int64, shape (n,)
        Windows in any order, repeats allowed.
    block_windows : int
        Windows in a block.

    Yields
    ------
    tuple
        Block, first window within the block, and the positions in `indices` of the run's windows, in stored order.
    """
    order = np.argsort(indices, kind="stable")
    stored = indices[order]
    breaks = np.flatnonzero((np.diff(stored) != 1) | (stored[1:] % block_windows == 0)) + 1
    for positions in np.split(order, breaks) if len(order) else ():
        block, first = divmod(int(indices[positions[0]]), block_windows)
        yield block, first, positions


def scatter(opened: Opened, offset: int, rows: memoryview, row_bytes: int, slots: NDArray[np.int64]) -> None:
    """Read consecutive rows of an object, each into its slot.

    Parameters
    ----------
    opened : Opened
        The object.
    offset : int
        First byte of the first row.
    rows : memoryview of bytes
        Buffer of rows.
    row_bytes : int
        Bytes of a row.
    slots : ndarray of int64, shape (n,)
        Row of the buffer for each row of the object.

    Raises
    ------
    EOFError
        If the object ends before.
    """
    for start in range(0, len(slots), _MOST_BUFFERS):
        part = slots[start : start + _MOST_BUFFERS].tolist()
        views = [rows[slot * row_bytes : (slot + 1) * row_bytes] for slot in part]
        opened.read_into(offset + start * row_bytes, views)
