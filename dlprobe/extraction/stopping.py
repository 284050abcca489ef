"""End in order when asked to: SIGTERM becomes an exception, as SIGINT is one already."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: What shells report of a process that ended by SIGTERM.
EXIT_SIGTERM = 128 + signal.SIGTERM


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise `SystemExit` in the main thread, so that locks and scratch files are cleared away.

    Does nothing in other threads, and where the program has a handler of its own.
    """
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not mine:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(EXIT_SIGTERM)
