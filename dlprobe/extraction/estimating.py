"""How long an extraction will take, measured on the machine that will do it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.extraction.embedding import run_backbone

if TYPE_CHECKING:
    from dlprobe.backbones.base import Backbone
    from dlprobe.extraction.planning import Plan

_MIN_SECONDS = 1.0
_MAX_BATCHES = 8


def estimate(plan: Plan, backbone: Backbone) -> dict[str, Any]:
    """Time a few batches of noise and say what a plan amounts to.

    Parameters
    ----------
    plan : Plan
        What is to be done.
    backbone : Backbone
        Loaded as it will be used.

    Returns
    -------
    dict
        ``images``, ``windows``, ``blocks``, ``bytes`` on the disk without region maps, ``windows_per_s`` of the
        backbone alone, and ``eta_s``, which leaves decoding and writing out.
    """
    batch_size = min(backbone.pins.batch_size, len(plan.windows))
    rate = windows_per_s(backbone, batch_size, cls=plan.cache_spec.cls)
    return {
        "images": len(np.unique(plan.windows[:, 0])),
        "windows": len(plan.windows),
        "blocks": plan.n_blocks,
        "bytes": plan.bytes,
        "windows_per_s": round(rate, 3),
        "eta_s": round(len(plan.windows) / rate, 1),
    }


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
