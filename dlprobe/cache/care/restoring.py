"""Put back what belongs to no block: metadata, windows, manifest, reference and the root record; put strays aside."""

from __future__ import annotations

import itertools
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dlprobe.cache.care.verify import strays
from dlprobe.cache.layout import ROOT_RECORD
from dlprobe.cache.locks import hold_setup, hold_shard, other_writers
from dlprobe.cache.places import open_place
from dlprobe.cache.records import Digest, read_block_record, read_root_record, recalled, write_root_record
from dlprobe.cache.stores import STORED_NAMES, open_store, require_cache, store_kind
from dlprobe.cache.writer import create_store, full_disk_told, root_record
from dlprobe.errors import CacheError
from dlprobe.publish import fsync, publish, sigterm_raises

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dlprobe.cache.layout import Attributes
    from dlprobe.cache.places import Folder, Place
    from dlprobe.cache.records import RootRecord
    from dlprobe.cache.writer import CachePlan

#: Where files go that were found among those of a cache and are no part of it.
ASIDE = "strays"
_ALONE = (0, 1)
#: Bytes that are copied at a time.
_PIECE_BYTES = 1 << 20


def told_of(path: str | os.PathLike[str]) -> Attributes:
    """Return what a cache says of itself, from its root record if that is sound, else from its metadata.

    Parameters
    ----------
    path : path
        The cache.

    Raises
    ------
    CacheError
        If there is no cache, or neither can be read.
    """
    place = open_place(path)
    require_cache(place)
    record = _read_record(place)
    try:
        return recalled(place, record)[0] if record and record.attributes else open_store(place).attrs
    except CacheError as error:
        msg = (
            f"what {place} holds can be read neither from {STORED_NAMES[store_kind(place)]} nor from {ROOT_RECORD}; "
            "put one of them back from a copy, or extract to another path"
        )
        raise CacheError(msg) from error


def restore_fixed(path: str | os.PathLike[str], plan: CachePlan) -> tuple[list[str], list[str]]:
    """Restore every damaged part of a cache that belongs to no block, to the bytes that were recorded.

    Everything is made anew beside the cache and compared with the root record; with a damaged root record, what is made
    anew is the truth. Then files that are no part of the cache, and what follows the end of an HDF5 file, are moved to
    its folder ``strays``.

    Parameters
    ----------
    path : path
        The cache.
    plan : CachePlan
        What the cache holds, worked out again.

    Returns
    -------
    restored : list of str
        Names of what was put back; empty if nothing was damaged.
    apart : list of str
        Names that what was moved to ``strays`` had before.

    Raises
    ------
    CacheError
        If the recorded bytes do not come out again: the plan, or the libraries, are not those that began the cache.
        Nothing is changed then. Also if another process writes the cache.
    """
    place = open_place(path)
    with sigterm_raises(), full_disk_told(place), hold_setup(place), hold_shard(place, _ALONE):
        if others := other_writers(place, _ALONE):
            msg = f"{place} is being written as {others[0][1]} shards; wait for them"
            raise CacheError(msg)
        record = _read_record(place)
        with _made_anew(place, plan, compress=_is_compressed(place, plan)) as (scratch, anew):
            wanted = record or anew
            damaged = [name for name, digest in wanted.files.items() if Digest.of_named(place, name) != digest]
            if any(anew.files.get(name) != wanted.files[name] for name in damaged):
                msg = (
                    f"what is damaged in {place} cannot be made again as it was: give the manifest, backbone, settings "
                    "and library versions that began it, or extract to another path"
                )
                raise CacheError(msg)
            for name in damaged:
                _copy(scratch, place, name)
            if record is None:
                write_root_record(place, anew)
                damaged.insert(0, ROOT_RECORD)
        apart = strays(open_store(place), wanted)
        for name in apart:
            _set_apart(place, name)
    return damaged, apart


def _read_record(place: Place) -> RootRecord | None:
    try:
        return read_root_record(place)
    except CacheError:
        return None


def _is_compressed(place: Place, plan: CachePlan) -> bool:
    """Tell by the lengths in any record of a block: the metadata that say it may be the damaged ones."""
    if store_kind(place) != "zarr":
        return False
    for block in range(plan.layout.n_blocks):
        try:
            chunks = read_block_record(place, block).chunks
        except CacheError:
            continue
        arrays = plan.layout.arrays()
        return any(chunks[name].length != arrays[name].chunk_bytes for name in chunks if name != "regions")
    return plan.compress


@contextmanager
def _made_anew(place: Place, plan: CachePlan, *, compress: bool) -> Iterator[tuple[Folder, RootRecord]]:
    with place.scratch() as scratch:
        store = create_store(scratch, plan, kind=store_kind(place), compress=compress)
        yield scratch, root_record(store)


def _set_apart(place: Place, name: str) -> None:
    """Move a file, or what follows the end of one, which may be somebody's, where it is in nobody's way."""
    if place.exists(name):  # whatever it is called, also with "#"
        place.move(name, _free(place, f"{ASIDE}/{name}"))
        return
    whole, _, part = name.partition("#")
    if place.folder is not None:  # parts are of HDF5, which lies in folders alone
        target = _free(place, f"{ASIDE}/{whole}.{part}")
        _cut(place.folder / whole, int(part.split("-")[0]), place.folder / target)


def _free(place: Place, name: str) -> str:
    """Return a name that no file has, the one given or one with a number, in a folder that is there."""
    place.make(name.rpartition("/")[0])
    if not place.exists(name):
        return name
    return next(other for i in itertools.count(1) if not place.exists(other := f"{name}.{i}"))


def _cut(file: Path, start: int, target: Path) -> None:
    """Move what a file holds from `start` on to another, which is on the disk before anything is cut off."""
    with publish(target, durable=True) as scratch, file.open("rb") as whole, scratch.open("wb") as tail:
        whole.seek(start)
        shutil.copyfileobj(whole, tail, _PIECE_BYTES)
    fsync(target.parent.parent)  # where the folder may be new
    os.truncate(file, start)
    fsync(file)


def _copy(source: Folder, target: Place, name: str) -> None:
    whole, _, part = name.partition("#")
    if not part:
        target.make(whole.rpartition("/")[0])
        target.write(whole, source.read(whole))
    elif target.folder is not None:  # parts are of HDF5, which lies in folders alone
        start, stop = map(int, part.split("-"))
        with (source.path / whole).open("rb") as good, (target.folder / whole).open("r+b") as bad:
            good.seek(start)
            bad.seek(start)
            bad.write(good.read(stop - start))
        fsync(target.folder / whole)
