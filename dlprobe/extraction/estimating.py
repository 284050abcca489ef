"""How long an extraction will take, measured on the machine that will do it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.cache import FeatureCache
from dlprobe.cache.layout import ROOT_RECORD, recorded_blocks
from dlprobe.cache.locks import require_shard
from dlprobe.cache.places import open_place
from dlprobe.cache.stores import store_kind
from dlprobe.extraction.embedding import run_backbone
from dlprobe.spec import require_same

if TYPE_CHECKING:
    import os

    from dlprobe.backbones.base import Backbone
    from dlprobe.cache import Shard
    from dlprobe.extraction.planning import Plan

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
        Loaded as it will be used.
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
    CacheError
        If there is no such shard, or what is there is damaged.
    IdentityError
        If the cache that is there is of another identity.
    """
    require_shard(shard)
    blocks = range(shard[0], plan.n_blocks, shard[1])
    kind, recorded = _begun(plan, path) or (store or "zarr", set())
    left = [block for block in blocks if block not in recorded]
    windows = plan.windows_in(left)
    batch_size = max(1, min(backbone.pins.batch_size, windows))
    rate = windows_per_s(backbone, batch_size, cls=plan.cache_spec.cls)
    return {
        "images": len(np.unique(plan.windows[:, 0])),
        "recorded_blocks": len(blocks) - len(left),
        "windows": windows,
        "blocks": len(left),
        "bytes": plan.bytes_of(left, kind),
        "windows_per_s": round(rate, 3),
        "eta_s": round(windows / rate, 1),
    }


def _begun(plan: Plan, path: str | os.PathLike[str] | None) -> tuple[str, set[int]] | None:
    """Return the back end of a cache that is there, and the blocks that were recorded."""
    if path is None or not (place := open_place(path)).exists(ROOT_RECORD):
        return None
    advice = "give the same manifest and settings, or another path"
    require_same(FeatureCache(path).cache_spec, plan.cache_spec, f"the cache {place} and this extraction", advice)
    return store_kind(place), recorded_blocks(place)


def windows_per_s(backbone: Backbone, batch_size: int, *, cls: bool = False) -> float:
    """Return the rate at which a backbone embeds noise, after one batch to warm up.

    Parameters
    ----------
    backbone : Backbone
        What embeds.
    batch_size : int
        Windows at a time.
    cls : bool
        Ask for CLS tokens, too.
    """
    side = backbone.spec.window_px
    noise = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8)
    run_backbone(backbone, noise, cls=cls)
    start, batches = time.perf_counter(), 0
    while batches < _MAX_BATCHES and (batches == 0 or time.perf_counter() - start < _MIN_SECONDS):
        run_backbone(backbone, noise, cls=cls)
        batches += 1
    return batches * batch_size / (time.perf_counter() - start)
