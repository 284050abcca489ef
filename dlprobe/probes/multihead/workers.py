"""Threads that each take a part of a batch and run torch single-threaded on it.

torch splits every single operation over its threads and waits for the slowest. A step is made of many short ones on
tiles that fit a cache: it would mostly wait, and on a busy machine do little else. Here a thread keeps its part until
the next wait, and its tiles stay in the cache of its core.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    Result = TypeVar("Result")


#: Work over so few numbers is done at once where it is: handing it to a thread takes longer.
SMALL_NUMBERS = 1 << 17


class Workers:
    """As many threads as torch has when they are made; none on a CUDA device, whose operations need no help.

    Use it in a ``with`` statement, at whose end the threads end.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._count = 1 if device.type == "cuda" else torch.get_num_threads()
        self._pool = (
            ThreadPoolExecutor(self._count, "dlprobe-fit", torch.set_num_threads, (1,)) if self._count > 1 else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let these be the only threads: torch's own number of threads is one until the end of the ``with``."""
        if self._pool is None:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def map(self, work: Callable[[slice], Result], total: int, numbers: int | None = None) -> list[Result]:
        """Cut a range into one part for each thread, and return what `work` returns for each part, in order.

        Parameters
        ----------
        work : callable
            Takes a slice of the range.
        total : int
            Length of the range.
        numbers : int, optional
            How many numbers the work goes over in all; up to `SMALL_NUMBERS` of them are one part for the caller.

        Returns
        -------
        list
        """
        if numbers is not None and numbers <= SMALL_NUMBERS and total:
            return [work(slice(0, total))]
        ends = [total * i // self._count for i in range(self._count + 1)]
        parts = [slice(start, stop) for start, stop in itertools.pairwise(ends) if start < stop]
        if self._pool is None or len(parts) == 1:
            return [work(part) for part in parts]
        return list(self._pool.map(work, parts))
