"""How many threads torch has while an engine computes."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dlprobe.spec import Pins


class _Beside:
    """How many callers are beside an engine, and how many threads torch had before the first of them."""

    lock = threading.Lock()
    callers = 0
    threads = 0


@contextmanager
def threads_beside(pins: Pins) -> Iterator[None]:
    """Let torch use one thread for what it does beside an engine that fills all cores by itself.

    A second thread would find its core taken, and the first would wait for it in a busy loop at every operation. Each
    thread has a number of its own, and begins with what was set last by any: all go back to what the first one found.

    Parameters
    ----------
    pins : Pins
        Name the engine.
    """
    if pins.engine != "openvino":
        yield
        return
    import torch

    with _Beside.lock:
        if not _Beside.callers:
            _Beside.threads = torch.get_num_threads()
        _Beside.callers += 1
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread that has not asked takes what any other sets, even later
    try:
        yield
    finally:
        with _Beside.lock:
            _Beside.callers -= 1
            torch.set_num_threads(_Beside.threads)
