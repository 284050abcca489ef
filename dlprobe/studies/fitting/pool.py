"""Several caches of one model, read as one."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dlprobe.cache import open_cache
from dlprobe.cache.stream import groups as mixed_groups
from dlprobe.data import label_patches
from dlprobe.errors import CacheError, DataError
from dlprobe.probes import GroupMoments, HeadBatch
from dlprobe.spec import require_same
from dlprobe.studies.pixels import IMAGE_KEY, PixelGrid

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from dlprobe.cache import FeatureCache
    from dlprobe.spec import ModelSpec

    _Reader = Callable[[int, NDArray[np.bool_], int | None], Iterator["PooledBlock"]]

#: Windows that are mixed at a time when several caches are pooled.
_ROUND_WINDOWS = 64
#: Blocks of one cache that are mixed at a time.
_BUFFER_BLOCKS = 2
#: What makes two windows of different caches the same piece of the same image.
WINDOW_KEY = ["dataset", "path", "view", "y", "x", "h", "w"]


class PooledBlock(NamedTuple):
    """Windows of one block of one cache: embeddings and coverage (n, rows, cols, ...), indices into the pool."""

    embeddings: NDArray[np.floating]
    coverage: NDArray[np.uint8]
    windows: NDArray[np.int64]


class _Labelled(NamedTuple):
    """A `HeadBatch` whose embeddings are at hand."""

    embeddings: NDArray[Any]
    targets: dict[str, NDArray[np.int8]]
    groups: NDArray[np.int64]
    windows: NDArray[np.int64]


class CachePool:
    """Caches of one model_fingerprint as one set of windows.

    Parameters
    ----------
    caches : sequence of FeatureCache
        All of one model identity.
    allow_partial : bool
        Take what is there of incomplete caches, which are refused otherwise.

    Attributes
    ----------
    windows : DataFrame
        One row a window: the columns of `FeatureCache.windows`, and ``cache``, the number of its cache.
    kept : ndarray of bool, shape (window,)
        False where an image was rejected or a block is missing, or after `keep_only`.
    """

    def __init__(self, caches: Sequence[FeatureCache], *, allow_partial: bool = False) -> None:
        for other in caches[1:]:
            advice = "pool caches of one model, or compare them as several"
            require_same(caches[0].model_spec, other.model_spec, f"{caches[0].path} and {other.path}", advice)
        for cache in () if allow_partial else caches:
            cache.require_complete()
        self.caches = list(caches)
        frames = [cache.windows.assign(cache=i) for i, cache in enumerate(caches)]
        self.windows = pd.concat(frames, ignore_index=True)
        stored = self.windows["stored"].to_numpy(dtype=bool)
        self.kept: NDArray[np.bool_] = stored & ~self.windows["rejected"].to_numpy(dtype=bool)
        self._starts = np.cumsum([0, *(len(frame) for frame in frames)])
        if (twice := self.windows.loc[self.kept, WINDOW_KEY].duplicated()).any():
            row = self.windows.loc[twice.idxmax()]
            msg = f"the window of {row['path']} at y={row['y']}, x={row['x']} is in two of the pooled caches; give one"
            raise CacheError(msg)

    @property
    def model_spec(self) -> ModelSpec:
        """The one model identity."""
        return self.caches[0].model_spec

    def gaps(self) -> list[str]:
        """Return a line for each cache of which blocks are missing."""
        missing = self.windows.loc[~self.windows["stored"], "cache"].value_counts()
        return [
            f"partial: {missing.get(i, 0)} of {len(cache)} windows of {cache.path} are missing"
            for i, cache in enumerate(self.caches)
            if i in missing.index
        ]

    def not_finite(self, window: int) -> CacheError:
        """Return the error of a window whose embeddings are not finite."""
        row = self.windows.loc[window]
        where = f"{row['path']} at y={row['y']}, x={row['x']}"
        cache = self.caches[row["cache"]].path
        return CacheError(
            f"{cache} holds embeddings that are not finite (first: {where}); run `dlprobe cache verify {cache}`"
        )

    def keep_only(self, keys: pd.MultiIndex) -> int:
        """Keep only the windows with one of these keys (`WINDOW_KEY`); return how many remain."""
        self.kept &= pd.MultiIndex.from_frame(self.windows[WINDOW_KEY]).isin(keys)
        return int(self.kept.sum())

    def keep_images(self, keys: Collection[tuple[str, ...]]) -> int:
        """Keep only the windows of the images with one of these keys (`IMAGE_KEY`); return how many remain."""
        self.kept &= pd.MultiIndex.from_frame(self.windows[IMAGE_KEY]).isin(list(keys))
        return int(self.kept.sum())

    def regions(self, windows: Sequence[int]) -> NDArray[np.uint8]:
        """Return the region maps of windows of one cache, shape (window, y, x)."""
        number = int(self.windows["cache"].iloc[windows[0]])
        return self.caches[number].regions(np.asarray(windows) - self._starts[number])

    def keys(self) -> pd.MultiIndex:
        """Return the keys of the kept windows."""
        return pd.MultiIndex.from_frame(self.windows.loc[self.kept, WINDOW_KEY])

    def blocks(self, selected: NDArray[np.bool_], seed: int | None = None) -> Iterator[PooledBlock]:
        """Iterate over the kept windows among `selected`: in stored order, or shuffled by `seed`."""
        yield from self._streamed(selected, seed, self._cache_blocks)

    def order(self, selected: NDArray[np.bool_], seed: int) -> Iterator[NDArray[np.int64]]:
        """Iterate over the numbers of the windows that `blocks` reads, in its order; nothing is read."""
        for block in self._streamed(selected, seed, self._cache_order):
            yield block.windows

    def _streamed(self, selected: NDArray[np.bool_], seed: int | None, read: _Reader) -> Iterator[PooledBlock]:
        wanted = selected & self.kept
        parts = [wanted[start:stop] for start, stop in pairwise(self._starts)]
        streams = [(read(number, part, seed), int(part.sum())) for number, part in enumerate(parts) if part.any()]
        yield from (block for stream, _ in streams for block in stream) if seed is None else _mixed(streams, seed)

    def _cache_blocks(self, number: int, wanted: NDArray[np.bool_], seed: int | None) -> Iterator[PooledBlock]:
        for block in self.caches[number].blocks(seed=seed, windows=wanted, buffer_blocks=_BUFFER_BLOCKS):
            yield PooledBlock(block.embeddings, block.coverage, block.windows + self._starts[number])

    def _cache_order(self, number: int, wanted: NDArray[np.bool_], seed: int | None) -> Iterator[PooledBlock]:
        cache = self.caches[number]
        size = cache.cache_spec.block_windows
        for group in mixed_groups(cache.select(windows=wanted), size, seed=seed, buffer_blocks=_BUFFER_BLOCKS):
            for start in range(0, len(group), size):
                windows = group[start : start + size] + self._starts[number]
                nothing = np.empty((len(windows), 0))
                yield PooledBlock(nothing, nothing.astype(np.uint8), windows)

    @property
    def reads_single_windows(self) -> bool:
        """Whether a window costs no more than its own bytes: not where chunks are compressed, or on S3."""
        return all("embeddings" not in cache.store.packed and cache.place.folder is not None for cache in self.caches)

    def embeddings(self, windows: NDArray[np.int64]) -> NDArray[np.floating]:
        """Return the embeddings of some windows, in any order, shape (n, rows, cols, width)."""
        return self._gathered(windows, lambda cache, own: cache.read(own).embeddings)

    def coverage(self, windows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the coverage of some windows, in any order, shape (n, rows, cols, 4)."""
        return self._gathered(windows, lambda cache, own: cache.coverage(own))

    def _gathered(
        self, windows: NDArray[np.int64], read: Callable[[FeatureCache, NDArray[np.int64]], NDArray[Any]]
    ) -> NDArray[Any]:
        numbers = np.searchsorted(self._starts, windows, side="right") - 1
        parts = [(number, np.flatnonzero(numbers == number)) for number in np.unique(numbers)]
        found = [read(self.caches[number], windows[places] - self._starts[number]) for number, places in parts]
        if len(found) == 1:
            return found[0]
        result = np.empty((len(windows), *found[0].shape[1:]), np.result_type(*found))
        for (_, places), each in zip(parts, found, strict=True):
            result[places] = each
        return result

    def group_moments(self, groups: NDArray[np.int64]) -> GroupMoments:
        """Return count, sum and sum of squares of each group's kept patches, from the stored moments of windows.

        Parameters
        ----------
        groups : ndarray of int64, shape (window,)
            Group of each window; -1 belongs to none.
        """
        n_groups, width = int(groups.max(initial=-1)) + 1, self.model_spec.width
        sums = np.zeros((n_groups, 2, width))
        counted = self.kept & (groups >= 0)
        for number, cache in enumerate(self.caches):
            start, stop = self._starts[number : number + 2]
            for low in range(start, stop, 4096):
                part = np.arange(low, min(low + 4096, stop))
                part = part[counted[part]]
                np.add.at(sums, groups[part], cache.moments(part - start).astype(np.float64))
        patches = self.model_spec.grid**2
        count = np.bincount(groups[counted], minlength=n_groups).astype(np.float64) * patches
        return GroupMoments(count, sums[:, 0], sums[:, 1])


def _mixed(streams: list[tuple[Iterator[PooledBlock], int]], seed: int) -> Iterator[PooledBlock]:
    """Interleave the caches by blocks of windows in proportion to what each still has, and mix within each round.

    A round takes one block of every cache, cut so that all last equally long; its windows are shuffled together.
    """
    rng = np.random.default_rng(seed)
    sources = [_Source(stream, count) for stream, count in streams]
    while left := [source for source in sources if source.left]:
        total = sum(source.left for source in left)
        share = min(1.0, _ROUND_WINDOWS / total)
        round_ = [source.take(max(1, round(source.left * share))) for source in left]
        block = _glued(round_)
        yield _picked(block, rng.permutation(len(block.windows)) if len(streams) > 1 else slice(None))


class _Source:
    """A cache's stream, from which a wanted number of windows can be taken."""

    def __init__(self, stream: Iterator[PooledBlock], left: int) -> None:
        self._stream, self.left = stream, left
        self._rest: PooledBlock | None = None

    def take(self, n: int) -> PooledBlock:
        parts: list[PooledBlock] = []
        while n and self.left:
            block = self._rest if self._rest is not None else next(self._stream)
            here = min(n, len(block.windows))
            parts.append(_picked(block, slice(here)))
            self._rest = _picked(block, slice(here, None)) if here < len(block.windows) else None
            n, self.left = n - here, self.left - here
        return _glued(parts)


def _picked(block: PooledBlock, rows: slice | NDArray[np.int64]) -> PooledBlock:
    return PooledBlock(block.embeddings[rows], block.coverage[rows], block.windows[rows])


def _glued(blocks: Sequence[PooledBlock]) -> PooledBlock:
    if len(blocks) == 1:
        return blocks[0]
    return PooledBlock(
        np.concatenate([block.embeddings for block in blocks]),
        np.concatenate([block.coverage for block in blocks]),
        np.concatenate([block.windows for block in blocks]),
    )


def open_pools(
    paths: Sequence[str | os.PathLike[str]],
    test: Sequence[str | os.PathLike[str]] = (),
    *,
    allow_partial: bool = False,
) -> list[tuple[CachePool, NDArray[np.bool_]]]:
    """Open caches and pool those of one model.

    Parameters
    ----------
    paths : sequence of path
        Caches to fit on.
    test : sequence of path
        Caches to be tested only; each must be of the model of one of `paths`.
    allow_partial : bool
        Take what is there of incomplete caches.

    Returns
    -------
    list of (CachePool, ndarray of bool)
        For each model in the order of `paths`: its pool, and which windows are of a test cache.

    Raises
    ------
    CacheError
        If a cache is incomplete.
    DataError
        If no cache is given.
    """
    if not paths:
        msg = "no cache given; fill one with `dlprobe extract`"
        raise DataError(msg)
    by_model: dict[str, list[tuple[FeatureCache, bool]]] = {}
    for path, is_test in [*((p, False) for p in paths), *((p, True) for p in test)]:
        cache = open_cache(Path(path))
        fingerprint = cache.model_spec.fingerprint
        if is_test and fingerprint not in by_model:
            advice = "extract the test set with the model of the training caches"
            require_same(open_cache(Path(paths[0])).model_spec, cache.model_spec, f"{paths[0]} and {path}", advice)
        by_model.setdefault(fingerprint, []).append((cache, is_test))
    pools = []
    for members in by_model.values():
        pool = CachePool([cache for cache, _ in members], allow_partial=allow_partial)
        is_test_cache = np.array([is_test for _, is_test in members])
        pools.append((pool, is_test_cache[pool.windows["cache"].to_numpy()]))
    return pools


def share_grid(pools: Sequence[CachePool]) -> PixelGrid | None:
    """Restrict the pools of several models to what all of them show.

    Parameters
    ----------
    pools : sequence of CachePool
        One a model.

    Returns
    -------
    PixelGrid or None
        None where windows and patches are the same: then the pools keep their common windows, and are compared patch by
        patch. Else they keep their common images, and are compared on these pixels.

    Raises
    ------
    CacheError
        If nothing is common to all.
    """
    if len({(pool.model_spec.window_px, pool.model_spec.patch_px) for pool in pools}) > 1:
        grid = PixelGrid(pools)
        for pool in pools:
            if pool.keep_images(grid.images) == 0:
                names = " and ".join(str(pool.caches[0].path) for pool in pools)
                msg = f"{names} have no image in common at one working size; extract them from one manifest"
                raise CacheError(msg)
        return grid
    if len(pools) > 1:
        _keep_common_windows(pools)
    return None


def _keep_common_windows(pools: Sequence[CachePool]) -> None:
    common = pools[0].keys()
    for pool in pools[1:]:
        common = common.intersection(pool.keys())
    for pool in pools:
        if pool.keep_only(common) == 0:
            names = " and ".join(str(pool.caches[0].path) for pool in pools)
            msg = f"{names} have no window in common; extract them from one manifest with one window and stride"
            raise CacheError(msg)


def minibatches(
    pool: CachePool,
    groups: NDArray[np.int64],
    schemes: Sequence[str],
    selected: NDArray[np.bool_],
    *,
    batch_windows: int,
    seed: int,
    on_demand: bool = False,
) -> Iterator[HeadBatch]:
    """Yield one epoch of mini-batches of exactly `batch_windows` windows (the last may be shorter), all labelled.

    Blocks and the windows in them come in an order shuffled by `seed`; see `steps_per_epoch`. With `on_demand` the same
    batches are read and labelled by whoever gets them, as far as they are wanted, unless a window of these caches
    cannot be read alone.
    """
    if on_demand and pool.reads_single_windows:
        numbers = np.concatenate([np.empty(0, np.int64), *pool.order(selected, seed)])
        for low in range(0, len(numbers), batch_windows):
            yield _on_demand(pool, groups, schemes, numbers[low : low + batch_windows])
        return
    rest: _Labelled | None = None
    for block in pool.blocks(selected, seed=seed):
        batch = _labelled(block, groups, schemes)
        batch = batch if rest is None else _joined(rest, batch)
        whole = len(batch.windows) // batch_windows * batch_windows
        for low in range(0, whole, batch_windows):
            yield HeadBatch(*_part(batch, low, low + batch_windows))
        rest = _part(batch, whole, len(batch.windows)) if whole < len(batch.windows) else None
    if rest is not None:
        yield HeadBatch(*rest)


def steps_per_epoch(pool: CachePool, selected: NDArray[np.bool_], batch_windows: int) -> int:
    """Return how many mini-batches `minibatches` yields."""
    return math.ceil(int((selected & pool.kept).sum()) / batch_windows)


def sample_patches(
    pool: CachePool, selected: NDArray[np.bool_], *, n_patches: int, max_windows: int, seed: int
) -> PooledBlock:
    """Return about `n_patches` patches drawn evenly from at most `max_windows` of the selected windows.

    Returns
    -------
    PooledBlock
        ``embeddings`` (n, width), ``coverage`` (n, 4), ``windows`` (n,): the window of each patch.
    """
    rng = np.random.default_rng(seed)
    candidates = np.flatnonzero(selected & pool.kept)
    if len(candidates) > max_windows:
        candidates = np.sort(rng.choice(candidates, max_windows, replace=False))
    chosen = np.zeros(len(selected), bool)
    chosen[candidates] = True
    each = max(1, math.ceil(n_patches / max(1, len(candidates))))
    parts: list[PooledBlock] = []
    for block in pool.blocks(chosen):
        n, patches = len(block.windows), block.coverage.shape[1] * block.coverage.shape[2]
        picks = np.stack([rng.permutation(patches)[:each] for _ in range(n)])
        rows = np.arange(n)[:, None]
        parts.append(
            PooledBlock(
                block.embeddings.reshape(n, patches, -1)[rows, picks].reshape(picks.size, -1),
                block.coverage.reshape(n, patches, -1)[rows, picks].reshape(picks.size, -1),
                np.repeat(block.windows, picks.shape[1]),
            )
        )
    return _glued(parts)


def _on_demand(
    pool: CachePool, groups: NDArray[np.int64], schemes: Sequence[str], windows: NDArray[np.int64]
) -> HeadBatch:
    def embeddings(places: NDArray[np.int64]) -> NDArray[Any]:
        found = pool.embeddings(windows[places])
        return found.reshape(len(places), -1, found.shape[-1])

    def targets(places: NDArray[np.int64]) -> dict[str, NDArray[np.int8]]:
        coverage = pool.coverage(windows[places])
        return {scheme: label_patches(coverage, scheme).reshape(len(places), -1) for scheme in schemes}

    return HeadBatch(embeddings, targets, groups[windows], windows)


def _labelled(block: PooledBlock, groups: NDArray[np.int64], schemes: Sequence[str]) -> _Labelled:
    n, patches = len(block.windows), block.coverage.shape[1] * block.coverage.shape[2]
    targets = {scheme: label_patches(block.coverage, scheme).reshape(n, patches) for scheme in schemes}
    return _Labelled(block.embeddings.reshape(n, patches, -1), targets, groups[block.windows], block.windows)


def _joined(first: _Labelled, second: _Labelled) -> _Labelled:
    return _Labelled(
        np.concatenate([first.embeddings, second.embeddings]),
        {name: np.concatenate([values, second.targets[name]]) for name, values in first.targets.items()},
        np.concatenate([first.groups, second.groups]),
        np.concatenate([first.windows, second.windows]),
    )


def _part(batch: _Labelled, low: int, high: int) -> _Labelled:
    return _Labelled(
        batch.embeddings[low:high],
        {name: values[low:high] for name, values in batch.targets.items()},
        batch.groups[low:high],
        batch.windows[low:high],
    )
