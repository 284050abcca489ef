"""Memory that is used again once nobody looks at it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Of the first byte of an array: a cache line, which is what copies and vector instructions like.
_ALIGNMENT = 64
#: Memory is not given away to an array that needs less than this part of it.
_MOST_WASTE = 2


class Buffers:
    """A pool of memory for arrays.

    Fresh memory costs a page fault for every 4 KiB, more than it takes to copy a file from the page cache into memory
    that is already there. Memory is handed out again only when no array that views it is left, so that a caller
    may keep what it was given for as long as it likes. Threads may share a pool, and a fork does not hurt it: nothing
    is locked, a piece of memory is out of the list while it is looked at.

    Parameters
    ----------
    most : int
        Pieces of memory that are kept; when all are in use, more are allocated and the oldest forgotten.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[bytearray] = []

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array with undefined content."""
        count = math.prod(shape)
        memory = self._find(count * dtype.itemsize + _ALIGNMENT)
        offset = -np.frombuffer(memory, np.uint8).ctypes.data % _ALIGNMENT
        array: NDArray[Any] = np.frombuffer(memory, dtype, count, offset).reshape(shape)
        self._kept.append(memory)
        while len(self._kept) > self._most:
            self._kept.pop(0)
        return array

    def _find(self, needed: int) -> bytearray:
        for _ in range(len(self._kept)):
            try:
                memory = self._kept.pop(0)
            except IndexError:  # another thread was faster
                break
            if needed <= len(memory) <= _MOST_WASTE * needed and not _in_use(memory):
                return memory
            self._kept.append(memory)
        return bytearray(needed)


def _in_use(memory: bytearray) -> bool:
    """Tell whether an array views the memory: then its length cannot be changed, says Python's buffer protocol."""
    try:
        memory.append(memory.pop())
    except BufferError:
        return True
    return False
