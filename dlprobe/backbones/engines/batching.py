"""How many windows at a time: found by trying, where a new cache is begun on a device with memory of its own."""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from dlprobe.backbones.base import Backbone
from dlprobe.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Sizes that are tried, doubling from the first, halving from there if it is too large already.
FIRST, MOST = 8, 512
#: A size that is not this much faster than half of it is not worth its memory.
WORTH = 1.03
#: What CUDA's libraries say when they, and not torch, find no memory; they raise a plain `RuntimeError`.
_ALLOCATION_FAILURES = ("out of memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED", "can't allocate memory")


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


def find_batch_size(
    backbone: Resizable, windows_per_s: Callable[[Resizable, int], float], *, block_windows: int = MOST
) -> int:
    """Return the batch size up to which a backbone gets faster, or memory lasts.

    Compiled blocks run as they are meanwhile: each size would be a compilation, of which torch makes eight and no more.

    Parameters
    ----------
    backbone : Resizable
        What embeds.
    windows_per_s : callable
        Measures the rate of a backbone in batches of a size, as the work itself will run them.
    block_windows : int
        Windows that are embedded together; larger batches would never be full.

    Raises
    ------
    BackboneError
        If memory does not hold a single window.
    """
    with torch.compiler.set_stance("force_eager"):
        found = largest_worthwhile(
            lambda size: windows_per_s(backbone.with_batch_size(size), size),
            backbone.spec.backbone,
            most=min(MOST, block_windows),
        )
    return evened(found, block_windows)


def evened(batch_size: int, block_windows: int) -> int:
    """Return the size of batches of equal size, as many as a block needs of this size.

    A compiled network computes batches that are not full as if they were: of 48 it would compute 96 windows where a
    block has 64, of 32 it computes 64.

    Parameters
    ----------
    batch_size : int
        Largest size.
    block_windows : int
        Windows in a block.
    """
    return math.ceil(block_windows / math.ceil(block_windows / batch_size))


def largest_worthwhile(rate: Callable[[int], float], name: str, *, most: int = MOST) -> int:
    """Return the largest size for which doubling still paid.

    Parameters
    ----------
    rate : callable
        From a size to windows per second; raises what `is_out_of_memory` knows if it is too large.
    name : str
        Of the backbone, for the message.
    most : int
        Largest size.
    """
    first = min(FIRST, most)
    best, fastest, size = 0, 0.0, first
    while size > best and (found := _tried(rate, size)) >= WORTH * fastest and found > 0:
        best, fastest, size = size, found, min(2 * size, most)
    size = first
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


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory did not last, whoever says it: torch, cuBLAS, cuDNN or the driver."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATION_FAILURES)


def release_memory() -> None:
    """Give back what torch keeps of a device's memory; what an exception that is being handled holds stays.

    One that is over may still be there, with the tensors of all its frames, where it refers to itself.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tried(rate: Callable[[int], float], size: int) -> float:
    """Return the rate; 0 if memory did not last."""
    try:
        return rate(size)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    release_memory()  # here, and not above, where the traceback still holds what filled it
    return 0.0
