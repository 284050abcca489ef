"""How many threads torch has while an engine computes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dlprobe.spec import Pins


@contextmanager
def threads_beside(pins: Pins) -> Iterator[None]:
    """Let torch use one thread for what it does beside an engine that fills all cores by itself.

    Of two, one would find its core taken and the other wait for it in a busy loop, operation by operation.

    Parameters
    ----------
    pins : Pins
        Name the engine.
    """
    import torch

    before = torch.get_num_threads()
    if pins.engine == "openvino":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
