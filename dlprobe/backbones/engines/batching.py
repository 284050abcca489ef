"""How many windows at a time: found by trying, where a new cache is begun on a device with memory of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch

from dlprobe.backbones.base import Backbone
from dlprobe.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Sizes that are tried, doubling from the first, halving from there if it is too large already.
FIRST, MOST = 8, 512
#: A size that is not this much faster than half of it is not worth its memory.
WORTH = 1.03
_REPEATS = 3


@runtime_checkable
class Resizable(Backbone, Protocol):
    """A backbone whose batch size may be changed, and that says whether anybody chose it.

    Attributes
    ----------
    automatic_batch : bool
        Nobody did: it is to be found where a cache is begun.
    """

    automatic_batch: bool

    def with_batch_size(self, batch_size: int) -> Resizable:
        """Return the same backbone with this batch size, which is then no longer automatic."""
        ...


def find_batch_size(backbone: Resizable) -> int:
    """Return the batch size up to which a backbone gets faster, or memory lasts.

    Parameters
    ----------
    backbone : Resizable
        What embeds.

    Raises
    ------
    BackboneError
        If memory does not hold a single window.
    """
    return largest_worthwhile(lambda size: windows_per_s(backbone.with_batch_size(size), size), backbone.spec.backbone)


def largest_worthwhile(rate: Callable[[int], float], name: str) -> int:
    """Return the largest size for which doubling still paid.

    Parameters
    ----------
    rate : callable
        From a size to windows per second; raises `torch.OutOfMemoryError` if it is too large.
    name : str
        Of the backbone, for the message.
    """
    best, fastest, size = 0, 0.0, FIRST
    while size <= MOST and (found := _tried(rate, size)) >= WORTH * fastest and found > 0:
        best, fastest, size = size, found, 2 * size
    size = FIRST
    while best == 0 and size > 1:
        size //= 2
        best = size if _tried(rate, size) > 0 else 0
    if best == 0:
        msg = f"memory does not hold one window of {name}; free some, or choose a smaller window or model"
        raise BackboneError(msg)
    return best


def halved(backbone: Resizable) -> Resizable:
    """Return a backbone that did not fit into memory with half the batch size; raise `BackboneError` if it was 1."""
    size = backbone.pins.batch_size
    if size == 1:
        msg = f"memory does not hold one window of {backbone.spec.backbone}; free some, or choose a smaller model"
        raise BackboneError(msg)
    return backbone.with_batch_size(size // 2)


def windows_per_s(backbone: Backbone, batch_size: int) -> float:
    """Return the rate at which a backbone embeds noise in batches of one size, after one to warm up."""
    side = backbone.spec.window_px
    noise = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8)
    backbone(noise).sum().item()
    start = time.perf_counter()
    for _ in range(_REPEATS):
        backbone(noise).sum().item()
    return _REPEATS * batch_size / (time.perf_counter() - start)


def _tried(rate: Callable[[int], float], size: int) -> float:
    """Return the rate; 0 if memory did not last."""
    try:
        return rate(size)
    except torch.OutOfMemoryError:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return 0.0
