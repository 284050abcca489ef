"""The order in which a cache is read, and the thread that reads ahead."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dlprobe.cache.reader import Block


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
    with ThreadPoolExecutor(1, thread_name_prefix="dlprobe-read-ahead") as pool:
        ahead = pool.submit(read, pending[0])
        for group in range(len(pending)):
            current = ahead.result()
            if group + 1 < len(pending):
                ahead = pool.submit(read, pending[group + 1])
            for start in range(0, len(current), block_windows):
                part = slice(start, start + block_windows)
                cls = None if current.cls is None else current.cls[part]
                yield block(current.embeddings[part], current.coverage[part], current.windows[part], cls)
