"""Compare every stored byte of a cache with the checksums in its records."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from dlprobe.cache.layout import RECORDS, ROOT_RECORD, record_name
from dlprobe.cache.places import open_place
from dlprobe.cache.reader import FeatureCache
from dlprobe.cache.records import Digest, read_root_record
from dlprobe.cache.stores import STORED_NAMES, recall_store, require_cache, store_kind
from dlprobe.errors import CacheError
from dlprobe.publish import SCRATCH_PREFIX

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from dlprobe.cache.places import Place
    from dlprobe.cache.records import BlockRecord, RootRecord
    from dlprobe.cache.stores import Extent, Store

#: Files that come and go in any folder: writers' own, which they sweep, those of NFS and of macOS.
_PASSING = (SCRATCH_PREFIX, ".nfs", ".DS_Store", "._")
_DIFFERS = "differs from its checksum"


class Damage(NamedTuple):
    """Something in a cache that is not as it was written.

    ``file`` is relative to the cache, ``block`` the number of the block that it belongs to or None, ``images`` the
    paths in the manifest of the images that the block was made from.
    """

    file: str
    block: int | None
    images: tuple[str, ...]
    reason: str


def verify(path: str | os.PathLike[str]) -> list[Damage]:
    """Read a whole cache and return everything that is missing, differs from its record, or is no part of it.

    A block that was never written counts as missing. Where metadata are damaged, blocks are found by what the root
    record tells of them; damage to both is reported alone.

    Raises
    ------
    CacheError
        If there is no cache.
    """
    place = open_place(path)
    require_cache(place)
    record, found = _verify_fixed(place)
    known = recall_store(place, record) if found and record and record.attributes else None
    try:
        cache = FeatureCache(path, store=known)
    except CacheError as error:
        return [*found, Damage(STORED_NAMES[store_kind(place)], None, (), str(error))]
    with ThreadPoolExecutor() as pool:
        for damages in pool.map(lambda block: list(_verify_block(cache, block)), range(cache.n_blocks)):
            found.extend(damages)
    return [*found, *(Damage(name, None, (), "is no part of the cache") for name in strays(cache.store, record))]


def strays(store: Store, record: RootRecord | None) -> list[str]:
    """Return what lies among the files of a cache and is no part of it.

    Parameters
    ----------
    store : Store
        Of the cache.
    record : RootRecord or None
        Of the cache, if it can be read; without it, nothing tells where an HDF5 file should end.

    Returns
    -------
    list of str
        Names of files, and ``NAME#START-STOP`` of what follows the end of one.
    """
    fixed, blocks = list(record.files) if record else store.fixed_names(), range(store.layout.n_blocks)
    stored = STORED_NAMES[store_kind(store.place)]
    known = {ROOT_RECORD, *map(record_name, blocks), *(name.partition("#")[0] for name in fixed)}
    known |= {store.extent(array, block).name for array in store.layout.block_arrays for block in blocks}
    known |= {name.rpartition("/")[0] for name in known}  # consoles of S3 put empty objects where folders would be
    # an array of a later release has its metadata in the root record; which chunks it has is for that release to say
    own = {stored, *(f"{stored}/{array}" for array in store.layout.arrays())}
    later = tuple(f"{name.rpartition('/')[0]}/" for name in fixed if name.rpartition("/")[0] not in own)
    sizes = store.place.sizes()
    found = [
        name
        for name in sorted(sizes)
        if name.partition("/")[0] in {stored, RECORDS}
        and name not in known
        and not name.startswith(later)
        and not name.rpartition("/")[2].startswith(_PASSING)
    ]
    if record and (end := _end(store, record)):
        name, stop = end
        found += [f"{name}#{stop}-{sizes[name]}"] if sizes.get(name, 0) > stop else []
    return found


def _end(store: Store, record: RootRecord) -> tuple[str, int] | None:
    """Return the file that all arrays share and where it ends; None if they share none, or a later release has more."""
    layout = store.layout
    if not store.offsets or not record.offsets.keys() <= layout.arrays().keys():
        return None
    start, stop = layout.block_range(layout.n_blocks - 1)
    ends = [int(part.rpartition("-")[2]) for part in record.files if "#" in part]
    for name, array in layout.arrays().items():
        if name in layout.block_arrays:
            last = store.extent(name, layout.n_blocks - 1)
            ends.append(last.offset + (stop - start) * array.row_bytes)
    return last.name, max(ends)


def require_sound(cache: FeatureCache, block: int) -> None:
    """Raise `CacheError` if a block is missing or differs from its record."""
    for damage in _verify_block(cache, block):
        msg = f"{damage.file} in {cache.path} is damaged ({damage.reason}); run `dlprobe cache repair` first"
        raise CacheError(msg)


def _verify_fixed(place: Place) -> tuple[RootRecord | None, list[Damage]]:
    try:
        record = read_root_record(place)
    except CacheError as error:
        return None, [Damage(ROOT_RECORD, None, (), str(error))]
    present = {name: Digest.of_named(place, name) for name in record.files}
    return record, [
        Damage(name, None, (), _DIFFERS if present[name] else "missing")
        for name, digest in record.files.items()
        if present[name] != digest
    ]


def _verify_block(cache: FeatureCache, block: int) -> Iterator[Damage]:
    name = record_name(block)
    try:
        record = cache.record(block)
    except CacheError as error:
        reason = str(error) if cache.place.exists(name) else "missing: never written, or lost"
        yield Damage(name, block, _images(cache, block), reason)
        return
    for array, digest in record.chunks.items():
        extent = cache.store.extent(array, block)
        if found := _compare(cache.place, extent, digest):
            yield Damage(extent.name, block, _images(cache, block) or _recorded_images(record), found)


def _compare(place: Place, extent: Extent, expected: Digest) -> str | None:
    try:
        with place.open(extent.name) as opened:
            if extent.alone and opened.size != expected.length:
                return f"{opened.size} bytes, recorded were {expected.length}"
            if opened.size < extent.offset + expected.length:
                return f"the file ends at byte {opened.size}, it should at {extent.offset + expected.length} or later"
            return None if Digest.of_open(opened, extent.offset, expected.length) == expected else _DIFFERS
    except FileNotFoundError:
        return "missing"


def _images(cache: FeatureCache, block: int) -> tuple[str, ...]:
    try:
        return cache.images_of_block(block)
    except CacheError:  # the manifest is damaged too
        return ()


def _recorded_images(record: BlockRecord) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*record.images, *(reject.path for reject in record.rejects)]))
