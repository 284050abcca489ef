"""The order in which a cache is read, and the thread that reads ahead."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dlprobe.cache.reader import Block


#: How long the thread that reads ahead waits for the caller to drop a block.
_PATIENCE_S = 0.05


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of the order of an epoch, from that of a fit."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def groups(
    selected: NDArray[np.int64], block_windows: int, *, seed: int | None, buffer_blocks: int
) -> list[NDArray[np.int64]]:
    """Return the windows that are mixed with each other, group after group, in the order in which they are handed out.

    Parameters
    ----------
    selected : ndarray of int64
        Ascending window indices.
    block_windows : int
        Windows in a block.
    seed : int or None
        Of the shuffle; None keeps the stored order, one block a group.
    buffer_blocks : int
        Blocks in a shuffled group.
    """
    borders = np.flatnonzero(np.diff(selected // block_windows)) + 1
    per_block = np.split(selected, borders)
    if seed is None:
        return per_block
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(per_block))
    starts = range(0, len(order), buffer_blocks)
    return [rng.permutation(np.concatenate([per_block[i] for i in order[s : s + buffer_blocks]])) for s in starts]


def stream(
    read: Callable[[NDArray[np.int64]], Block],
    selected: NDArray[np.int64],
    block_windows: int,
    *,
    seed: int | None,
    buffer_blocks: int,
    block: type[Block],
    by_group: bool,
) -> Iterator[Block]:
    """Yield blocks of at most `block_windows` windows while a thread reads on.

    Parameters
    ----------
    read : callable
        Reads windows by index.
    selected, block_windows, seed, buffer_blocks
        As for `groups`.
    block : type
        Class of what is yielded.
    by_group : bool
        Read a whole group at a time, for stores where windows apart from each other cost more than memory. Else as many
        windows are read as are handed out at once, so that a wide mix takes no more memory than a narrow one.
    """
    pending = groups(selected, block_windows, seed=seed, buffer_blocks=buffer_blocks)
    if not by_group:
        pending = [group[i : i + block_windows] for group in pending for i in range(0, len(group), block_windows)]
    hands = _Hands()
    with ThreadPoolExecutor(1, thread_name_prefix="dlprobe-read-ahead") as pool:
        ahead = pool.submit(read, pending[0])
        for group in range(len(pending)):
            current = ahead.result()
            if group + 1 < len(pending):
                ahead = pool.submit(hands.read_once, hands.empty, read, pending[group + 1])
            for start in range(0, len(current), block_windows):
                part = slice(start, start + block_windows)
                cls = None if current.cls is None else current.cls[part]
                yield block(hands.given(current.embeddings[part]), current.coverage[part], current.windows[part], cls)


class _Hands:
    """Whether the caller still holds what it was given last.

    Reading ahead may begin just before a block is handed out, and most callers drop the one before just after that:
    whoever waits for it can have its memory, and two blocks of memory do instead of three. A caller that keeps what
    it was given is not waited for a second time.
    """

    def __init__(self) -> None:
        self._patience_s = _PATIENCE_S
        self.empty = threading.Event()
        self.empty.set()

    def given(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array, and see when it is dropped."""
        self.empty = empty = threading.Event()
        weakref.finalize(array, empty.set).atexit = False
        return array

    def read_once(
        self, empty: threading.Event, read: Callable[[NDArray[np.int64]], Block], windows: NDArray[np.int64]
    ) -> Block:
        """Read when the caller has dropped what it was given before, or not soon enough."""
        if not empty.wait(self._patience_s):
            self._patience_s = 0.0
        return read(windows)
