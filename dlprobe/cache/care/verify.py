"""Compare every stored byte of a cache with the checksums in its records."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from dlprobe.cache.layout import ROOT_RECORD, record_name
from dlprobe.cache.places import open_place
from dlprobe.cache.reader import FeatureCache
from dlprobe.cache.records import Digest, read_root_record
from dlprobe.cache.stores import STORED_NAMES, recall_store, require_cache, store_kind
from dlprobe.errors import CacheError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from dlprobe.cache.places import Place
    from dlprobe.cache.records import BlockRecord, RootRecord
    from dlprobe.cache.stores import Extent

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
    """Read a whole cache and return everything that is missing or differs from its record.

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
    return found


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
