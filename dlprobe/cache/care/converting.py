"""Move a cache from one back end to another, without loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.cache.care.verify import require_sound
from dlprobe.cache.layout import WINDOW_FIELDS
from dlprobe.cache.reader import FeatureCache
from dlprobe.cache.writer import CachePlan, open_writer

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import NDArray


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    store: str = "hdf5",
    compress: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureCache:
    """Write the same cache in another back end; there and back gives the same bytes.

    Run it again to go on after an interruption. Of an incomplete cache the recorded blocks are taken, and extraction
    can go on in the new one.

    Parameters
    ----------
    source, target : path
        Folders of a cache, and of the one to be.
    store : {"hdf5", "zarr"}
        Back end of the new one.
    compress : bool
        Compress all of it (Zarr alone).
    progress : callable, optional
        Called with the number of blocks done and in all.

    Returns
    -------
    FeatureCache
        The new one.

    Raises
    ------
    CacheError
        If the source is damaged, or the disk is full.
    OutputError
        If the target is something else.
    """
    cache = FeatureCache(source)
    plan = plan_of(cache, store=store, compress=compress)
    missing = set(cache.missing_blocks)
    with open_writer(target, plan) as writer:
        blocks = [block for block in writer.missing if block not in missing]
        for done, block in enumerate(blocks):
            if progress:
                progress(done, len(blocks))
            require_sound(cache, block)
            record = cache.record(block)
            chunks = {name: whole_chunk(cache, name, block) for name in record.chunks}
            writer.write_block(block, chunks, record.images, record.rejects)
        if progress:
            progress(len(blocks), len(blocks))
    return FeatureCache(target)


def plan_of(cache: FeatureCache, *, store: str | None, compress: bool) -> CachePlan:
    """Return the plan that a cache was made by, for another back end."""
    windows = np.frombuffer(cache.store.fixed("windows"), np.int32).reshape(-1, len(WINDOW_FIELDS))
    return CachePlan(
        spec=cache.cache_spec,
        pins=cache.pins,
        windows=windows,
        manifest=cache.store.fixed("manifest"),
        reference=cache.reference,
        software=cache.software,
        origin=cache.origin,
        store=store,
        compress=compress,
    )


def whole_chunk(cache: FeatureCache, name: str, block: int) -> NDArray[Any]:
    """Return a chunk as it is stored, padded with zeros to its full shape."""
    start, stop = cache.store.layout.block_range(block)
    found = cache.stored(name, np.arange(start, stop))
    padding = [(0, cache.cache_spec.block_windows - len(found)), *[(0, 0)] * (found.ndim - 1)]
    return np.pad(found, padding)
