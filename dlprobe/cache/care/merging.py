"""Put several caches of one model together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dlprobe.cache.care.converting import plan_of
from dlprobe.cache.care.verify import verify
from dlprobe.cache.layout import WINDOW_FIELDS, manifest_bytes, usual_block_windows, view_order
from dlprobe.cache.reader import FeatureCache
from dlprobe.cache.records import Reject
from dlprobe.cache.writer import open_writer
from dlprobe.data.manifest import Manifest
from dlprobe.errors import CacheError
from dlprobe.spec import require_same

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from dlprobe.cache.writer import CachePlan, CacheWriter


def merge(
    sources: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    prefixes: Sequence[str] | None = None,
    store: str | None = None,
    compress: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureCache:
    """Write a cache of the images of several, in the order in which extraction would have laid them out.

    Every source is verified first. Run it again to go on after an interruption.

    Parameters
    ----------
    sources : sequence of paths
        Complete caches of one model, one tiling, one storage type and the same pins; their blocks may differ in size.
    target : path
        Folder of the cache to be.
    prefixes : sequence of str, optional
        One a source, put before its paths, so that the new manifest has one root.
    store, compress
        Back end of the new cache, as for `dlprobe.extraction.extract`.
    progress : callable, optional
        Called with the number of blocks done and in all.

    Returns
    -------
    FeatureCache
        The new one.

    Raises
    ------
    CacheError
        If a source is incomplete or damaged, or an image stands in two of them.
    IdentityError
        If the caches differ in more than their images and the size of their blocks; names the fields.
    OutputError
        If the target is something else.
    """
    caches = [_sound(source) for source in sources]
    if not caches or len(prefixes or sources) != len(caches):
        msg = (
            f"{len(caches)} caches and {len(prefixes or ())} prefixes; give at least one cache, and one prefix for each"
        )
        raise CacheError(msg)
    _require_alike(caches)
    merged = _Merged(caches, list(prefixes or [""] * len(caches)))
    with open_writer(target, replace(merged.plan, store=store, compress=compress)) as writer:
        blocks = writer.missing
        for done, block in enumerate(blocks):
            if progress:
                progress(done, len(blocks))
            merged.write(writer, block)
        if progress:
            progress(len(blocks), len(blocks))
    return FeatureCache(target)


class _Merged:
    """Where each window of the new cache comes from."""

    def __init__(self, caches: list[FeatureCache], prefixes: list[str]) -> None:
        self._caches, self._prefixes = caches, prefixes
        self.manifest = _merged_manifest(caches, prefixes)
        images = pd.Series(range(len(self.manifest)), index=self.manifest.frame["path"])
        tables = []
        for number, (cache, prefix) in enumerate(zip(caches, prefixes, strict=True)):
            table = cache.windows[["path", *WINDOW_FIELDS]].assign(source=number, window=np.arange(len(cache)))
            tables.append(table.assign(image=images[prefix + table["path"]].to_numpy()))
        table = pd.concat(tables, ignore_index=True)
        views = table[["image", "view"]].drop_duplicates(ignore_index=True)
        paths = self.manifest.frame["path"].iloc[views["image"]]
        order = view_order(zip(paths, views["view"], strict=True), caches[0].cache_spec.seed)
        views["rank"] = np.argsort(order)
        rank = table.merge(views, on=["image", "view"], how="left")["rank"].to_numpy()
        self._table = table.iloc[np.argsort(rank, kind="stable")].reset_index(drop=True)
        self._hashes = [
            {path: sha for block in range(cache.n_blocks) for path, sha in cache.record(block).images.items()}
            for cache in caches
        ]
        self._rejects = [{window: reject for reject in cache.rejects for window in reject.windows} for cache in caches]

    @property
    def plan(self) -> CachePlan:
        first = self._caches[0]
        return replace(
            plan_of(first, store=None, compress=False),
            spec=replace(
                first.cache_spec,
                manifest_sha256=self.manifest.sha256,
                block_windows=_block_windows(self._caches, len(self._table)),
            ),
            windows=self._table[list(WINDOW_FIELDS)].to_numpy(np.int32),
            manifest=manifest_bytes(self.manifest),
        )

    def write(self, writer: CacheWriter, block: int) -> None:
        """Gather one block from all sources and store it."""
        start, stop = writer.layout.block_range(block)
        part = self._table.iloc[start:stop]
        chunks = {
            name: np.zeros(a.chunk, a.dtype)
            for name, a in writer.layout.arrays().items()
            if name in writer.layout.block_arrays
        }
        for number, cache in enumerate(self._caches):
            slots = np.flatnonzero(part["source"] == number)
            for name, chunk in chunks.items():
                chunk[slots] = cache.stored(name, part["window"].to_numpy()[slots])
        writer.write_block(block, chunks, self._images(part), self._rejected(part, start))

    def _images(self, part: pd.DataFrame) -> dict[str, str]:
        named = part[["source", "path"]].drop_duplicates().itertuples(index=False)
        return {
            self._prefixes[source] + path: self._hashes[source][path]
            for source, path in named
            if path in self._hashes[source]
        }

    def _rejected(self, part: pd.DataFrame, start: int) -> tuple[Reject, ...]:
        found: dict[tuple[str, str], list[int]] = {}
        for slot, (source, window) in enumerate(part[["source", "window"]].itertuples(index=False)):
            if reject := self._rejects[source].get(window):
                found.setdefault((self._prefixes[source] + reject.path, reject.reason), []).append(start + slot)
        return tuple(Reject(path, reason, tuple(windows)) for (path, reason), windows in found.items())


def _sound(path: str | os.PathLike[str]) -> FeatureCache:
    cache = FeatureCache(path)
    cache.require_complete()
    if damages := verify(path):
        msg = f"{damages[0].file} in {path} is damaged ({damages[0].reason}); run `dlprobe cache repair` first"
        raise CacheError(msg)
    return cache


def _require_alike(caches: list[FeatureCache]) -> None:
    first = caches[0]
    images = {name: getattr(first.cache_spec, name) for name in ("manifest_sha256", "block_windows")}
    for cache in caches[1:]:
        same = replace(cache.cache_spec, **images)
        advice = "extract them alike; only images may differ"
        require_same(first.cache_spec, same, f"{first.path} and {cache.path}", advice)
        advice += " (a batch that is found is no larger than a block: give --batch-size)"
        require_same(first.pins, cache.pins, f"the pins of {first.path} and {cache.path}", advice)


def _block_windows(caches: list[FeatureCache], n_windows: int) -> int:
    """Return the windows in a block: as usual where all caches are laid out so, else as many as the largest has."""
    specs = [cache.cache_spec for cache in caches]
    usual = [usual_block_windows(spec.model, spec.dtype, len(cache)) for spec, cache in zip(specs, caches, strict=True)]
    found = [spec.block_windows for spec in specs]
    return usual_block_windows(specs[0].model, specs[0].dtype, n_windows) if found == usual else max(found)


def _merged_manifest(caches: list[FeatureCache], prefixes: list[str]) -> Manifest:
    frames = []
    for cache, prefix in zip(caches, prefixes, strict=True):
        frame = cache.manifest.frame.copy()
        for name in ("path", "mask"):
            frame[name] = frame[name].where(frame[name] == "", prefix + frame[name])
        frames.append(frame)
    frame = pd.concat(frames, ignore_index=True)
    if (twice := frame["path"].duplicated()).any():
        path = frame["path"][twice].iloc[0]
        msg = f"{path} stands in two of the caches; leave one out, or tell their images apart by prefixes"
        raise CacheError(msg)
    return Manifest(frame, ".")
