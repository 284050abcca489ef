"""Write a cache block by block: chunk files first, the record last, under the lock of a shard."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.cache.layout import LOCKS, RECORDS, ROOT_RECORD, Attributes, Layout, record_name, recorded_blocks
from dlprobe.cache.locks import hold_setup, hold_shard, other_writers, require_shard
from dlprobe.cache.places import open_place
from dlprobe.cache.records import (
    BlockRecord,
    Digest,
    Reject,
    RootRecord,
    read_block_record,
    write_block_record,
    write_root_record,
)
from dlprobe.cache.stores import STORED_NAMES, STORES, open_store, store_kind
from dlprobe.errors import CacheError, OutputError
from dlprobe.publish import is_full, sigterm_raises
from dlprobe.spec import require_same

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dlprobe.cache.locks import Shard
    from dlprobe.cache.places import Place
    from dlprobe.cache.stores import Store
    from dlprobe.spec import CacheSpec, Pins


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """What a cache is to hold, known before work starts.

    Parameters
    ----------
    spec : CacheSpec
        Its identity.
    pins : Pins
        How it is computed.
    windows : ndarray of int32, shape (n, 6)
        Columns as in `dlprobe.cache.layout.WINDOW_FIELDS`.
    manifest : bytes
        The manifest as Parquet.
    reference : ndarray of float32, shape (rows, cols, width)
        Embedding of the reference window.
    origin : mapping of str to str
        Where the backbone's weights came from: ``weights``, ``licence``, ``trained_on``; no identity.
    software : mapping of str to str
        Versions of libraries.
    store : {"zarr", "hdf5"} or None
        Back end of a new cache; None stands for Zarr, or for what is there.
    compress : bool
        Compress every array of a new cache, and not only region maps. Neither is part of the identity.
    """

    spec: CacheSpec
    pins: Pins
    windows: NDArray[np.int32]
    manifest: bytes
    reference: NDArray[np.float32]
    software: Mapping[str, str]
    origin: Mapping[str, str]
    store: str | None = None
    compress: bool = False

    def __post_init__(self) -> None:
        """Raise `CacheError` if there is no such back end."""
        if self.store is not None and self.store not in STORES:
            msg = f"no back end {self.store!r}; write one of {', '.join(STORES)}"
            raise CacheError(msg)

    @property
    def layout(self) -> Layout:
        """Arrays and blocks that follow."""
        return Layout(self.spec, len(self.windows), len(self.manifest))

    @property
    def attributes(self) -> Attributes:
        """What the cache is to say of itself."""
        return Attributes(spec=self.spec, pins=self.pins, software=self.software, origin=self.origin)

    @property
    def fixed(self) -> dict[str, bytes]:
        """Bytes of the arrays that belong to no block."""
        return {
            "windows": self.windows.astype("<i4").tobytes(),
            "manifest": self.manifest,
            "reference": self.reference.astype("<f4").tobytes(),
        }


class CacheWriter:
    """Writes blocks of one shard; made by `open_writer`, which holds the lock."""

    def __init__(self, store: Store, shard: Shard, *, fresh: bool) -> None:
        self._store, self._shard = store, shard
        self.fresh = fresh
        self.place = store.place
        self.layout = store.layout
        self.blocks = range(shard[0], store.layout.n_blocks, shard[1])

    @property
    def path(self) -> Path | str:
        """Folder of the cache, or its URL."""
        return self.place.path

    @property
    def pins(self) -> Pins:
        """How the cache was begun."""
        return self._store.attrs.pins

    @property
    def n_windows(self) -> int:
        """Windows in the blocks of this shard."""
        return sum(stop - start for start, stop in map(self.layout.block_range, self.blocks))

    @property
    def missing(self) -> list[int]:
        """Blocks of this shard without a record."""
        return _unrecorded(self.place, self.blocks)

    @property
    def reference(self) -> NDArray[np.float32]:
        """Stored embedding of the reference window, shape (rows, cols, width)."""
        array = self.layout.arrays()["reference"]
        return np.frombuffer(self._store.fixed("reference"), array.dtype).reshape(array.shape)

    def rejects(self, block: int) -> tuple[Reject, ...]:
        """Return the rejects that the record of a block names."""
        return read_block_record(self.place, block).rejects

    def forget(self, block: int) -> None:
        """Withdraw a block, its record first, so that it can be written again."""
        self.place.remove(record_name(block))
        self._store.drop([block])

    def sweep(self) -> None:
        """Remove what workers that were killed left of the blocks of this shard."""
        with hold_setup(self.place):
            _sweep(self._store, self._shard)

    def discard(self) -> None:
        """Withdraw all blocks of this shard; a cache that this writer made is then taken away on exit."""
        for block in self.blocks:
            self.forget(block)

    def write_block(
        self,
        block: int,
        arrays: Mapping[str, NDArray[np.generic]],
        images: Mapping[str, str],
        rejects: tuple[Reject, ...],
    ) -> None:
        """Store one block durably.

        Parameters
        ----------
        block : int
            Its number.
        arrays : mapping of str to ndarray
            For each of `Layout.block_arrays` one chunk, padded with zeros to its full shape.
        images : mapping of str to str
            sha256 of each image file touched, by path.
        rejects : tuple of Reject
            Windows of the block that are void.

        Raises
        ------
        CacheError
            If the disk is full; what was recorded before stays whole.
        """
        layouts = self.layout.arrays()
        with full_disk_told(self.place):
            chunks = {}
            for name in self.layout.block_arrays:
                chunk = np.ascontiguousarray(arrays[name])
                if chunk.shape != layouts[name].chunk or chunk.dtype != layouts[name].dtype:
                    msg = f"{name}: {chunk.dtype}{chunk.shape} is no chunk of {layouts[name]}"
                    raise ValueError(msg)
                chunks[name] = self._store.put(name, block, chunk.data.cast("B"))
            record = BlockRecord(block, self.layout.spec.fingerprint, chunks, dict(images), rejects)
            write_block_record(self.place, record)


@contextmanager
def open_writer(
    path: str | os.PathLike[str], plan: CachePlan, *, shard: Shard = (0, 1), allow_mixed: bool = False
) -> Iterator[CacheWriter]:
    """Create a cache or take one up again, and hold the lock of a shard of it.

    A cache that this call made and in which nothing was recorded is taken away again on exit, also by SIGTERM.

    Parameters
    ----------
    path : path
        Folder of the cache, or ``s3://BUCKET/PREFIX``; absent, empty or a cache of the same identity.
    plan : CachePlan
        What it is to hold.
    shard : tuple of int
        Which of how many; blocks ``shard[0]::shard[1]`` are this writer's.
    allow_mixed : bool
        Take up a cache that was begun under other pins.

    Raises
    ------
    OutputError
        If the place exists and is something else, or cannot be made.
    IdentityError
        If it is a cache of another identity, or of other pins.
    CacheError
        If another process writes this shard or in another number of shards, the cache is damaged, or the disk is full.
    """
    require_shard(shard)
    place = open_place(path)
    _require_ours(place)
    try:
        made = place.make(LOCKS)
    except OSError as error:
        msg = f"{place} cannot be made ({error.strerror}); choose another path"
        raise OutputError(msg) from error
    with sigterm_raises(), ExitStack() as stack:
        if made:
            stack.callback(_take_away_empty, place)
        with full_disk_told(place), hold_setup(place):
            stack.enter_context(hold_shard(place, shard))
            if fresh := _is_new(place):
                stack.callback(_take_away_unused, place, shard, made=made)
            store = _set_up(place, plan) if fresh else _resume(place, plan, allow_mixed=allow_mixed)
            _sweep(store, shard)
        yield CacheWriter(store, shard, fresh=fresh)


def join_writer(path: str | os.PathLike[str]) -> CacheWriter:
    """Return a writer of a cache that another process has opened for all of its blocks, and whose lock it holds."""
    return CacheWriter(open_store(open_place(path)), (0, 1), fresh=False)


def _is_new(place: Place) -> bool:
    """Tell whether a cache is to be made; refuse to make one anew over blocks that were recorded."""
    if place.exists(ROOT_RECORD):
        return False
    if recorded_blocks(place):
        msg = f"{place} has blocks and no {ROOT_RECORD}; run `dlprobe cache repair`"
        raise CacheError(msg)
    return True


def _require_ours(place: Place) -> None:
    msg = f"{place} exists and is no cache of dlprobe; choose another path"
    try:
        names = place.children()
    except NotADirectoryError as error:
        if os.path.lexists(str(place)):
            raise OutputError(msg) from error
        return  # a file is in the way further up, which making it will say
    begun = LOCKS in names and names <= {LOCKS, RECORDS, *STORED_NAMES.values()}
    if names and not begun and not place.exists(ROOT_RECORD):
        raise OutputError(msg)


def _set_up(place: Place, plan: CachePlan) -> Store:
    for name in STORED_NAMES.values():
        place.remove(name)  # of a process killed before the root record
    place.make(RECORDS)
    store = create_store(place, plan, kind=plan.store or "zarr", compress=plan.compress)
    write_root_record(place, root_record(store))
    return store


def create_store(place: Place, plan: CachePlan, *, kind: str, compress: bool) -> Store:
    """Make everything of a cache that belongs to no block, without a root record."""
    back_end: type[Store] = STORES[kind]
    return back_end.create(place, plan.layout, plan.attributes, plan.fixed, compress=compress)


def root_record(store: Store) -> RootRecord:
    """Return the record of what a back end holds beside its blocks."""
    found = {name: Digest.of_named(store.place, name) for name in store.fixed_names()}
    files = {name: digest for name, digest in found.items() if digest}
    layout = store.layout
    counts = {"windows": layout.n_windows, "manifest_bytes": layout.manifest_bytes}
    return RootRecord(layout.spec.fingerprint, files, store.attrs.record(), counts, store.offsets)


def _resume(place: Place, plan: CachePlan, *, allow_mixed: bool) -> Store:
    if plan.store not in {None, kind := store_kind(place)}:
        msg = f"{place} is kept in {kind}, not in {plan.store}; leave the back end out, or use `dlprobe cache convert`"
        raise OutputError(msg)
    store = open_store(place)
    advice = "give the same manifest and settings, or another path"
    require_same(store.layout.spec, plan.spec, f"the cache {place} and this extraction", advice)
    if not allow_mixed:
        advice = "use the same pins, or allow a mixed cache (--allow-mixed)"
        require_same(store.attrs.pins, plan.pins, f"the pins of the cache {place} and of this run", advice)
    if store.fixed("windows") != plan.fixed["windows"]:
        msg = f"the windows table of {place} is not that of this manifest; run `dlprobe cache verify {place}`"
        raise CacheError(msg)
    return store


def _unrecorded(place: Place, blocks: range) -> list[int]:
    recorded = recorded_blocks(place)
    return [block for block in blocks if block not in recorded]


def _sweep(store: Store, shard: Shard) -> None:
    """Remove what a killed process left; scratch files only when nobody else can be writing them."""
    others = other_writers(store.place, shard)
    if foreign := [other for other in others if other[1] != shard[1]]:
        msg = f"{store.place} is being written as {foreign[0][1]} shards; wait for them, or use as many"
        raise CacheError(msg)
    store.drop(_unrecorded(store.place, range(shard[0], store.layout.n_blocks, shard[1])))
    if not others:
        store.place.sweep()


def _take_away_unused(place: Place, shard: Shard, *, made: bool) -> None:
    with hold_setup(place):
        if other_writers(place, shard) or recorded_blocks(place):
            return
        for name in (*STORED_NAMES.values(), RECORDS, LOCKS):
            place.remove(name)
        if made:
            place.unmake()


def _take_away_empty(place: Place) -> None:
    """Take a place away in which there was not even room for a lock."""
    if place.children() == {LOCKS} and not place.children(LOCKS):
        place.remove(LOCKS)
        with suppress(OSError):  # another process has come meanwhile
            place.unmake()


@contextmanager
def full_disk_told(place: Place) -> Iterator[None]:
    """Turn the error of a full disk into a `CacheError` that says that nothing recorded is lost."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        msg = f"no space is left for {place}; make room and run the same command again, it will go on"
        raise CacheError(msg) from error
