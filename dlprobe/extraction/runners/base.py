"""What a runner is given, and what it has to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dlprobe.backbones.base import Backbone
    from dlprobe.cache import CacheWriter
    from dlprobe.data.manifest import Manifest


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Job:
    """What every block of an extraction is made from.

    Parameters
    ----------
    manifest : Manifest
        Of the images.
    backbone : Backbone
        What embeds.
    windows : ndarray of int32, shape (n_windows, 6)
        The windows table of the cache.
    max_pixels : int
        Larger images are rejects.
    """

    manifest: Manifest
    backbone: Backbone
    windows: NDArray[np.int32]
    max_pixels: int


class Runner(Protocol):
    """Computes blocks and writes them."""

    def run(self, job: Job, writer: CacheWriter, blocks: Sequence[int], written: Callable[[int], None]) -> None:
        """Compute and record blocks; call `written` with the number of each that is recorded, in this thread."""
        ...
