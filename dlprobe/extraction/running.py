"""Fill a cache, block by block; run again to go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd

from dlprobe import plotting
from dlprobe.cache import CachePlan, FeatureCache, open_writer
from dlprobe.cache.layout import manifest_bytes
from dlprobe.data.images import MAX_PIXELS
from dlprobe.errors import BackboneError, CacheError, DataError
from dlprobe.extraction.embedding import DRIFT_LIMITS, reference_embedding
from dlprobe.extraction.estimating import with_fitting_batches
from dlprobe.extraction.planning import Plan, PlanSettings, plan
from dlprobe.extraction.runners import Job, RayRunner, find_runner

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dlprobe.backbones.base import Backbone
    from dlprobe.cache import CacheWriter, Reject, Shard
    from dlprobe.data.manifest import Manifest
    from dlprobe.extraction.runners import Runner
    from dlprobe.spec import ModelSpec

Progress = Callable[[int, int], None]

_RECORDED = ("dlprobe", "numpy", "pillow", "timm", "torch", "zarr", "numcodecs", "pyarrow")


@dataclass(frozen=True, slots=True)
class ExtractionReport:
    """What an extraction did.

    Parameters
    ----------
    path : Path or str
        Folder of the cache, or its URL.
    windows : int
        Windows in the cache, or in the shard of it that this run was to fill.
    done : int
        Windows computed by this run, void ones included.
    skipped : int
        Windows that an earlier run had recorded.
    rejected : tuple of Reject
        Everything among them that could not be embedded, with reasons.
    drift : float
        Relative difference of the reference embedding from the one that the cache was begun with; 0 for a new cache.
    drift_limit : float
        What rounding may explain of it, by the precision.
    """

    path: Path | str
    windows: int
    done: int
    skipped: int
    rejected: tuple[Reject, ...]
    drift: float
    drift_limit: float

    @property
    def drifted(self) -> bool:
        """Whether this machine computes something else than the one that began the cache."""
        return self.drift > self.drift_limit

    def frame(self) -> pd.DataFrame:
        """Return what was rejected, one a row: ``path``, ``windows``, ``reason``."""
        rows = [(reject.path, len(reject.windows), reject.reason) for reject in self.rejected]
        return pd.DataFrame(rows, columns=["path", "windows", "reason"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how many windows this run computed, found done and rejected."""
        counts = {name: self.row()[name] for name in ("done", "skipped", "rejected")}
        return plotting.bars(list(counts), list(counts.values()), ax=ax, words=f"windows, of {self.windows}")

    def row(self) -> dict[str, Any]:
        """Return the counts as one flat row of JSON values."""
        return {
            "path": str(self.path),
            "windows": self.windows,
            "done": self.done,
            "skipped": self.skipped,
            "rejected": sum(len(reject.windows) for reject in self.rejected),
            "drift": self.drift,
        }


def extract(
    manifest: Manifest,
    backbone: Backbone,
    path: str | os.PathLike[str],
    *,
    window_px: int | None = None,
    retry_rejects: bool = False,
    allow_mixed: bool = False,
    shard: Shard = (0, 1),
    store: str | None = None,
    compress: bool = False,
    max_pixels: int = MAX_PIXELS,
    runner: str | Runner = "local",
    progress: Progress | None = None,
    **settings: Unpack[PlanSettings],
) -> ExtractionReport:
    """Embed every window of a manifest and keep the result; blocks that are there already are left alone.

    An exception, SIGINT and SIGTERM end it in order: a block that is being written is finished, the others are left to
    the next run. SIGKILL and a power cut lose the blocks in work and nothing else.

    Parameters
    ----------
    manifest : Manifest
        Images with their sizes.
    backbone : Backbone
        What embeds.
    path : path
        Folder of the cache: absent, empty, or a cache of the same identity to be completed.
    window_px : int, optional
        Side of the window; must be the one that the backbone was loaded for.
    retry_rejects, allow_mixed : bool
        Compute blocks with rejected windows anew; go on with a cache that was begun under other pins.
    shard : tuple of int
        Which of how many: ``(i, n)`` computes every n-th block from block i on. Shards may run at the same time, on
        one machine or on several that share a file system with locks.
    store : {"zarr", "hdf5"}, optional
        Back end of a new cache; Zarr unless said otherwise. No part of the identity.
    compress : bool
        Compress all of a new Zarr cache; of embeddings it saves about 6 %, and costs most of the reading speed.
    max_pixels : int
        Images and masks with more pixels are rejects; raise it for files that you trust. No part of the identity.
    runner : {"local", "ray"} or Runner
        What computes the blocks: this process, or a Ray cluster (see `dlprobe.extraction.RayRunner`).
    progress : callable, optional
        Called with the number of windows done and in all.
    **settings
        ``stride_px``, ``tiling``, ``views``, ``degrade``, ``dtype``, ``block_windows``, ``seed``: see
        `dlprobe.extraction.plan`.

    Returns
    -------
    ExtractionReport

    Raises
    ------
    DataError
        If the manifest has no sizes, a setting is out of range, or not one window could be embedded.
    BackboneError
        If the window is not the backbone's, its patch does not divide it, or it has no CLS token and one is asked for.
    IdentityError
        If the cache is of another identity or of other pins; the message names the fields.
    OutputError
        If `path` exists and is something else.
    CacheError
        If another process writes the cache, the disk is full, or a value overflows the storage type.
    """
    _require_window(backbone.spec, window_px)
    planned = plan(manifest, backbone.spec, **settings)
    runner = find_runner(runner)
    if isinstance(runner, RayRunner):
        backbone = runner.placed(backbone)

    def run(settled: Backbone) -> ExtractionReport:
        made_from = replace(cache_plan(planned, manifest, settled), store=store, compress=compress)
        with open_writer(path, made_from, shard=shard, allow_mixed=allow_mixed) as writer:
            drift = 0.0 if writer.fresh else _relative(writer.reference, made_from.reference)
            if retry_rejects:
                _forget_rejects(writer)
            done = fill(writer, planned, manifest, settled, progress, max_pixels=max_pixels, runner=runner)
            rejected = _rejected(writer)
        limit = max(DRIFT_LIMITS[pins.precision] for pins in (writer.pins, settled.pins))
        return ExtractionReport(writer.path, writer.n_windows, done, writer.n_windows - done, rejected, drift, limit)

    return with_fitting_batches(run, backbone, planned.cache_spec, lambda: _pinned_batch_size(path))


def _pinned_batch_size(path: str | os.PathLike[str]) -> int | None:
    try:
        return FeatureCache(path).pins.batch_size
    except CacheError:
        return None


def cache_plan(planned: Plan, manifest: Manifest, backbone: Backbone) -> CachePlan:
    """Return what a cache of a plan is to hold; embeds the reference window."""
    return CachePlan(
        spec=planned.cache_spec,
        pins=backbone.pins,
        windows=planned.windows,
        manifest=manifest_bytes(manifest),
        reference=reference_embedding(backbone, cls=planned.cache_spec.cls),
        software=_software(),
        origin={
            "weights": backbone.weights,
            "licence": backbone.card.licence,
            "trained_on": backbone.card.trained_on,
        },
    )


def fill(
    writer: CacheWriter,
    planned: Plan,
    manifest: Manifest,
    backbone: Backbone,
    progress: Progress | None,
    *,
    max_pixels: int = MAX_PIXELS,
    runner: str | Runner = "local",
) -> int:
    """Compute the missing blocks of a writer's shard, and return the number of their windows."""
    missing, layout = writer.missing, writer.layout
    sizes = {block: stop - start for block in missing for start, stop in [layout.block_range(block)]}
    total, left = writer.n_windows, sum(sizes.values())
    tell, done = progress or _silent, total - left
    tell(done, total)

    def written(block: int) -> None:
        nonlocal done
        done += sizes[block]
        tell(done, total)

    job = Job(manifest=manifest, backbone=backbone, windows=planned.windows, max_pixels=max_pixels)
    find_runner(runner).run(job, writer, missing, written)
    return left


def _silent(_done: int, _total: int) -> None:
    pass


def _forget_rejects(writer: CacheWriter) -> None:
    missing = set(writer.missing)
    for block in writer.blocks:
        if block not in missing and writer.rejects(block):
            writer.forget(block)


def _require_window(spec: ModelSpec, window_px: int | None) -> None:
    if window_px not in {None, spec.window_px}:
        msg = (
            f"window_px is {window_px}, {spec.backbone} was loaded for {spec.window_px}; "
            f"load it with window_px={window_px}"
        )
        raise BackboneError(msg)


def _rejected(writer: CacheWriter) -> tuple[Reject, ...]:
    """Return the rejects of a shard; if nothing but rejects came of a whole cache, take it away and raise."""
    rejected = tuple(reject for block in writer.blocks for reject in writer.rejects(block))
    void = {window for reject in rejected for window in reject.windows}
    if len(void) < writer.layout.n_windows or not void:
        return rejected
    if writer.fresh:
        writer.discard()
    first = min(rejected, key=lambda reject: reject.windows)
    msg = f"not one of {len(void)} windows could be embedded; the first: {first.path}: {first.reason}"
    raise DataError(msg)


def _relative(stored: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - stored) / max(float(np.linalg.norm(stored)), 1e-30))


def _software() -> dict[str, str]:
    found = {}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
