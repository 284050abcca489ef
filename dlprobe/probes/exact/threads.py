"""Threads that each add up tiles of rows, with a BLAS that uses one thread in each of them.

A BLAS splits every product over its threads, which then wait in a busy loop for the next: what lies between two
products has one core, and on a busy machine the loops take it from whoever works. Here each thread keeps a tile from
its first product to its last.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from threadpoolctl import threadpool_info, threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    Tile = TypeVar("Tile")
    Sums = TypeVar("Sums")


#: Each thread keeps sums of its own, of which a Hessian of 3,072 features takes 75 MB.
MOST_THREADS = 16


class TileThreads:
    """As many threads as the BLAS has when they are made, which has one until the end of the ``with`` statement."""

    def __init__(self) -> None:
        found = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
        self.count = min(max(found, default=1), MOST_THREADS)
        self._stack = ExitStack()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        one = partial(threadpool_limits, 1, user_api="blas")
        self._stack.enter_context(one())
        if self.count > 1:  # a BLAS on OpenMP counts for each thread, which so has to say it, too
            self._pool = ThreadPoolExecutor(self.count, "dlprobe-tiles", initializer=one)
            self._stack.enter_context(self._pool)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def fold(self, tiles: Iterable[Tile], make: Callable[[], Sums], add: Callable[[Sums, Tile], None]) -> list[Sums]:
        """Add tiles to one accumulator for each thread, taking turns, so that the order of sums is always the same.

        Parameters
        ----------
        tiles : iterable
            Iterated in this thread, a tile ahead of the others; a tile must stay as it is.
        make : callable
            Returns an empty accumulator.
        add : callable
            Adds a tile to an accumulator, in place.

        Returns
        -------
        list
            The accumulators.
        """
        sums = [make() for _ in range(self.count)]
        if self._pool is None:
            for tile in tiles:
                add(sums[0], tile)
            return sums
        running: list[Future[None] | None] = [None] * self.count
        try:
            for number, tile in enumerate(tiles):
                turn = number % self.count
                before, running[turn] = running[turn], None
                if before is not None:
                    before.result()
                running[turn] = self._pool.submit(add, sums[turn], tile)
        finally:
            left = [each.exception() for each in running if each is not None]
        for error in left:
            if error is not None:
                raise error
        return sums
