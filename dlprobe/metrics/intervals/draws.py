"""What is drawn for every interval and every paired test of a number of sources, drawn once and kept.

A table has hundreds of scores of the same sources, all on the same resamples. Drawing them takes longer than using
them, and a count fits into a byte, so the latest are kept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

#: Resamples are drawn and given in blocks of about this many numbers, to bound memory.
_BLOCK_NUMBERS = 4_000_000
#: What has up to this many numbers, of a byte each, is kept: at 9,999 resamples that of 3,200 sources, 32 MB. Two of
#: each kind stay for the life of the process.
_KEPT_NUMBERS = 32_000_000


def draws(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each of n sources is drawn in each resample, in blocks, shape (block, n)."""
    kept = n * resamples <= _KEPT_NUMBERS
    for block in _kept_draws(n, resamples, seed) if kept else _new_draws(n, resamples, seed):
        yield block.astype(np.float64)


def coins(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield the sign, 1 or -1, of each of n sources in each random pattern, in blocks, shape (block, n)."""
    kept = n * resamples <= _KEPT_NUMBERS
    for block in _kept_coins(n, resamples, seed) if kept else _new_coins(n, resamples, seed):
        yield block.astype(np.float64) * 2 - 1


def _new_draws(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    for block in _blocks(n, resamples):
        drawn = rng.integers(0, n, size=(block, n)) + n * np.arange(block)[:, None]
        # a source is drawn once on average: more than 255 times has a probability below 1e-500
        yield np.bincount(drawn.ravel(), minlength=block * n).reshape(block, n).astype(np.uint8)


def _new_coins(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    for block in _blocks(n, resamples):
        yield rng.integers(0, 2, size=(block, n)).astype(np.uint8)


@lru_cache(maxsize=2)
def _kept_draws(n: int, resamples: int, seed: int) -> list[NDArray[np.uint8]]:
    return list(_new_draws(n, resamples, seed))


@lru_cache(maxsize=2)
def _kept_coins(n: int, resamples: int, seed: int) -> list[NDArray[np.uint8]]:
    return list(_new_coins(n, resamples, seed))


def _blocks(n: int, resamples: int) -> Iterator[int]:
    """Yield how many resamples of n sources come at once."""
    step = max(1, _BLOCK_NUMBERS // n)
    yield from (min(step, resamples - at) for at in range(0, resamples, step))
