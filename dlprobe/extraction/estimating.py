"""How many windows at a time, and how long an extraction will take, measured on the machine that will do it."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dlprobe.backbones.engines.threads import threads_beside
from dlprobe.cache import FeatureCache
from dlprobe.cache.layout import ROOT_RECORD, recorded_blocks
from dlprobe.cache.locks import require_shard
from dlprobe.cache.places import open_place
from dlprobe.cache.stores import store_kind
from dlprobe.errors import BackboneError, IdentityError
from dlprobe.extraction.embedding import AHEAD, start_batch
from dlprobe.spec import require_same

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from dlprobe.backbones.base import Backbone
    from dlprobe.backbones.engines.batching import Resizable
    from dlprobe.cache import Shard
    from dlprobe.extraction.embedding import Encoded
    from dlprobe.extraction.planning import Plan
    from dlprobe.spec import CacheSpec

T = TypeVar("T")

_MIN_SECONDS = 1.0
_MAX_BATCHES = 8


def estimate(
    plan: Plan,
    backbone: Backbone,
    path: str | os.PathLike[str] | None = None,
    *,
    shard: Shard = (0, 1),
    store: str | None = None,
) -> dict[str, Any]:
    """Time a few batches of noise and say what is still to be done of a plan.

    Parameters
    ----------
    plan : Plan
        What is to be done.
    backbone : Backbone
        Loaded as it will be used; its batch size is found as it will be there.
    path : path, optional
        Where the cache is to be; what is recorded there is done.
    shard : tuple of int
        Which of how many, as for `dlprobe.extraction.extract`.
    store : {"zarr", "hdf5"}, optional
        Back end of a new cache.

    Returns
    -------
    dict
        ``images`` of the manifest; ``recorded_blocks`` of the shard; of what is left of it ``windows``, ``blocks`` and
        ``bytes`` on the disk (see `Plan.bytes_of`); ``windows_per_s`` of the backbone alone, and ``eta_s``, which
        leaves decoding and writing out.

    Raises
    ------
    BackboneError
        If memory does not hold the batches.
    CacheError
        If there is no such shard, or what is there is damaged.
    IdentityError
        If the cache that is there is of another identity.
    """
    require_shard(shard)
    spec = plan.cache_spec
    blocks = range(shard[0], plan.n_blocks, shard[1])
    kind, recorded, pinned = _begun(plan, path) or (store or "zarr", set(), None)
    left = [block for block in blocks if block not in recorded]
    windows = plan.windows_in(left)

    def timed(settled: Backbone) -> float:
        size = max(1, min(settled.pins.batch_size, spec.block_windows, windows))
        return windows_per_s(settled, size, dtype=spec.dtype, cls=spec.cls)

    rate = with_fitting_batches(timed, backbone, spec, lambda: pinned)
    return {
        "images": len(np.unique(plan.windows[:, 0])),
        "recorded_blocks": len(blocks) - len(left),
        "windows": windows,
        "blocks": len(left),
        "bytes": plan.bytes_of(left, kind),
        "windows_per_s": round(rate, 3),
        "eta_s": round(windows / rate, 1),
    }


def _begun(plan: Plan, path: str | os.PathLike[str] | None) -> tuple[str, set[int], int | None] | None:
    """Return the back end of a cache that is there, the blocks that were recorded, and its batch size."""
    if path is None or not (place := open_place(path)).exists(ROOT_RECORD):
        return None
    advice = "give the same manifest and settings, or another path"
    cache = FeatureCache(path)
    require_same(cache.cache_spec, plan.cache_spec, f"the cache {place} and this extraction", advice)
    return store_kind(place), recorded_blocks(place), cache.pins.batch_size


def with_fitting_batches(
    run: Callable[[Backbone], T], backbone: Backbone, spec: CacheSpec, pinned: Callable[[], int | None]
) -> T:
    """Run with the batch size that was chosen, that a cache pins, or that is found; halve the last where memory ends.

    Once a block is written its size stays: then memory that does not last is an error. Where several runs begin a cache
    together, and each finds a size of its own, all take the one that was written first.

    Parameters
    ----------
    run : callable
        Takes the backbone; leaves no cache behind if it fails before the first block.
    backbone : Backbone
        Of the type `dlprobe.backbones.engines.batching.Resizable` if its batch size may be found.
    spec : CacheSpec
        Of what is to be embedded: batches that are found or compiled are no larger than a block, and equal.
    pinned : callable
        Gives the batch size of a cache that is there.

    Raises
    ------
    BackboneError
        If memory does not last.
    """
    from dlprobe.backbones.engines.batching import Resizable, evened, halved, is_out_of_memory, release_memory

    automatic = isinstance(backbone, Resizable) and backbone.automatic_batch
    settled = _settled(backbone, spec, pinned) if isinstance(backbone, Resizable) else backbone
    while True:
        size, full = settled.pins.batch_size, False
        try:
            return run(settled)
        except IdentityError:
            written = pinned()
            if not automatic or written in {None, size} or not isinstance(settled, Resizable):
                raise
            settled = settled.with_batch_size(written or size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if not automatic or pinned() is not None:
                raise _no_memory(size, automatic=automatic) from error
            full = True
        if full and isinstance(settled, Resizable):
            release_memory()  # now that no traceback holds it
            smaller = halved(settled)
            settled = smaller.with_batch_size(evened(smaller.pins.batch_size, spec.block_windows))


def _settled(backbone: Resizable, spec: CacheSpec, pinned: Callable[[], int | None]) -> Resizable:
    from dlprobe.backbones.engines.batching import evened, find_batch_size

    if not backbone.automatic_batch:
        size = backbone.pins.batch_size
        uneven = backbone.pins.compiled and pinned() != size  # what a cache pins stays, be it as it may
        return backbone.with_batch_size(evened(size, spec.block_windows)) if uneven else backbone

    def rate(candidate: Resizable, size: int) -> float:
        return windows_per_s(candidate, size, dtype=spec.dtype, cls=spec.cls)

    return backbone.with_batch_size(pinned() or find_batch_size(backbone, rate, block_windows=spec.block_windows))


def _no_memory(size: int, *, automatic: bool) -> BackboneError:
    if automatic:
        return BackboneError(
            f"memory does not hold batches of {size} windows any more, which the cache pins; free some"
        )
    advice = f"give fewer (--batch-size {size // 2})" if size > 1 else "free some, or choose a smaller window or model"
    return BackboneError(f"memory does not hold batches of {size} windows; {advice}")


def windows_per_s(backbone: Backbone, batch_size: int, *, dtype: str = "float16", cls: bool = False) -> float:
    """Return the rate at which a backbone embeds noise, as an extraction runs it, after one batch to warm up.

    Parameters
    ----------
    backbone : Backbone
        What embeds.
    batch_size : int
        Windows at a time. On a device with memory of its own, as many batches as in an extraction are at work at once.
    dtype : str
        Storage type, into which the device turns embeddings.
    cls : bool
        Ask for CLS tokens, too.
    """
    with threads_beside(backbone.pins):
        return _windows_per_s(backbone, batch_size, dtype, cls=cls)


def _windows_per_s(backbone: Backbone, batch_size: int, dtype: str, *, cls: bool) -> float:
    side = backbone.spec.window_px
    noise = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8)
    start_batch(backbone, noise, dtype, cls=cls)()
    fewest = 1 + AHEAD if backbone.pins.device == "cuda" else 1
    at_work: deque[Callable[[], Encoded]] = deque()
    start, batches = time.perf_counter(), 0
    while batches < fewest or (batches < _MAX_BATCHES and time.perf_counter() - start < _MIN_SECONDS):
        at_work.append(start_batch(backbone, noise, dtype, cls=cls))
        batches += 1
        if len(at_work) > AHEAD:
            at_work.popleft()()
    while at_work:
        at_work.popleft()()
    return batches * batch_size / (time.perf_counter() - start)
