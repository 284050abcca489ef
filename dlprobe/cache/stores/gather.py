"""Read windows out of chunks, each straight into its slot of a buffer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

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


def scatter(handle: int, offset: int, rows: memoryview, row_bytes: int, slots: NDArray[np.int64]) -> None:
    """Read consecutive rows of a file, each into its slot.

    Parameters
    ----------
    handle : int
        Open file.
    offset : int
        First byte of the first row.
    rows : memoryview of bytes
        Buffer of rows.
    row_bytes : int
        Bytes of a row.
    slots : ndarray of int64, shape (n,)
        Row of the buffer for each row of the file.

    Raises
    ------
    EOFError
        If the file ends before.
    """
    for start in range(0, len(slots), _MOST_BUFFERS):
        part = slots[start : start + _MOST_BUFFERS].tolist()
        views = [rows[slot * row_bytes : (slot + 1) * row_bytes] for slot in part]
        _read_fully(handle, views, offset + start * row_bytes)


def _read_fully(handle: int, views: list[memoryview], offset: int) -> None:
    while views:
        count = os.preadv(handle, views, offset)
        if count == 0:
            raise EOFError
        offset += count
        while views and count >= views[0].nbytes:
            count -= views.pop(0).nbytes
        if count:
            views[0] = views[0][count:]
