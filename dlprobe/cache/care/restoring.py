"""Put back what belongs to no block: metadata, windows, manifest, reference and the root record."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from dlprobe.cache.layout import RECORDS, ROOT_RECORD, record_path
from dlprobe.cache.locks import hold_setup, hold_shard, other_writers
from dlprobe.cache.records import Digest, read_block_record, read_root_record, write_record
from dlprobe.cache.stores import store_kind
from dlprobe.cache.writer import create_store, root_record
from dlprobe.errors import CacheError
from dlprobe.publish import SCRATCH_PREFIX, fsync, publish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dlprobe.cache.records import RootRecord
    from dlprobe.cache.writer import CachePlan

_ALONE = (0, 1)


def restore_fixed(root: Path, plan: CachePlan) -> list[str]:
    """Restore every damaged part of a cache that belongs to no block, to the bytes that were recorded.

    Everything is made anew beside the cache and compared with the root record; with a damaged root record, what is made
    anew is the truth.

    Parameters
    ----------
    root : Path
        Folder of the cache.
    plan : CachePlan
        What the cache holds, worked out again.

    Returns
    -------
    list of str
        Names of what was restored; empty if nothing was damaged.

    Raises
    ------
    CacheError
        If the recorded bytes do not come out again: the plan, or the libraries, are not those that began the cache.
        Nothing is changed then. Also if another process writes the cache.
    """
    with hold_setup(root), hold_shard(root, _ALONE):
        if others := other_writers(root, _ALONE):
            msg = f"{root} is being written as {others[0][1]} shards; wait for them"
            raise CacheError(msg)
        record = _read_record(root)
        with _made_anew(root, plan, compress=_is_compressed(root, plan)) as (scratch, anew):
            wanted = record or anew
            damaged = [name for name, digest in wanted.files.items() if Digest.of_named(root, name) != digest]
            if any(anew.files.get(name) != wanted.files[name] for name in damaged):
                msg = (
                    f"what is damaged in {root} cannot be made again as it was: give the manifest, backbone, settings "
                    "and library versions that began it, or extract to another path"
                )
                raise CacheError(msg)
            for name in damaged:
                _copy(scratch, root, name)
            if record is None:
                write_record(root / RECORDS / ROOT_RECORD, anew)
                damaged.insert(0, f"{RECORDS}/{ROOT_RECORD}")
    return damaged


def _read_record(root: Path) -> RootRecord | None:
    try:
        return read_root_record(root / RECORDS / ROOT_RECORD)
    except CacheError:
        return None


def _is_compressed(root: Path, plan: CachePlan) -> bool:
    """Tell by the lengths in any record of a block: the metadata that say it may be the damaged ones."""
    if store_kind(root) != "zarr":
        return False
    for block in range(plan.layout.n_blocks):
        try:
            chunks = read_block_record(record_path(root, block)).chunks
        except CacheError:
            continue
        arrays = plan.layout.arrays()
        return any(chunks[name].length != arrays[name].chunk_bytes for name in chunks if name != "regions")
    return plan.compress


@contextmanager
def _made_anew(root: Path, plan: CachePlan, *, compress: bool) -> Iterator[tuple[Path, RootRecord]]:
    scratch = root / f"{SCRATCH_PREFIX}{uuid4().hex}"
    try:
        scratch.mkdir()
        store = create_store(scratch, plan, kind=store_kind(root), compress=compress)
        yield scratch, root_record(store)
    finally:
        shutil.rmtree(scratch)


def _copy(source: Path, target: Path, name: str) -> None:
    file, _, part = name.partition("#")
    if not part:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        with publish(target / file, durable=True) as scratch:
            shutil.copyfile(source / file, scratch)
        return
    start, stop = map(int, part.split("-"))
    with (source / file).open("rb") as good, (target / file).open("r+b") as bad:
        good.seek(start)
        bad.seek(start)
        bad.write(good.read(stop - start))
    fsync(target / file)
