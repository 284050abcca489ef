"""Compare every stored byte of a cache with the checksums in its records."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dlprobe.cache.layout import RECORDS, ROOT_RECORD, record_path
from dlprobe.cache.reader import FeatureCache
from dlprobe.cache.records import Digest, read_root_record
from dlprobe.cache.stores import require_cache
from dlprobe.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def verify(root: str | os.PathLike[str]) -> list[Damage]:
    """Read a whole cache and return everything that is missing or differs from its record.

    A block that was never written counts as missing. Metadata too damaged for the cache to be opened are reported
    alone.

    Raises
    ------
    CacheError
        If there is no cache.
    """
    root = Path(root)
    require_cache(root)
    found = _verify_fixed(root)
    try:
        cache = FeatureCache(root)
    except CacheError as error:
        return found or [Damage(str(root), None, (), str(error))]
    with ThreadPoolExecutor() as pool:
        for damages in pool.map(lambda block: list(_verify_block(cache, block)), range(cache.n_blocks)):
            found.extend(damages)
    return found


def require_sound(cache: FeatureCache, block: int) -> None:
    """Raise `CacheError` if a block is missing or differs from its record."""
    for damage in _verify_block(cache, block):
        msg = f"{damage.file} in {cache.path} is damaged ({damage.reason}); run `dlprobe cache repair` first"
        raise CacheError(msg)


def _verify_fixed(root: Path) -> list[Damage]:
    try:
        record = read_root_record(root / RECORDS / ROOT_RECORD)
    except CacheError as error:
        return [Damage(f"{RECORDS}/{ROOT_RECORD}", None, (), str(error))]
    present = {name: Digest.of_named(root, name) for name in record.files}
    return [
        Damage(name, None, (), _DIFFERS if present[name] else "missing")
        for name, digest in record.files.items()
        if present[name] != digest
    ]


def _verify_block(cache: FeatureCache, block: int) -> Iterator[Damage]:
    path = record_path(cache.path, block)
    try:
        record = cache.record(block)
    except CacheError as error:
        reason = str(error) if path.exists() else "missing: never written, or lost"
        yield Damage(str(path.relative_to(cache.path)), block, _images(cache, block), reason)
        return
    for name in record.chunks:
        if found := _compare(cache.store.extent(name, block), record.chunks[name]):
            file = cache.store.extent(name, block).path.relative_to(cache.path)
            yield Damage(str(file), block, _images(cache, block), found)


def _compare(extent: Extent, expected: Digest) -> str | None:
    try:
        with extent.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if extent.alone and size != expected.length:
                return f"{size} bytes, recorded were {expected.length}"
            return None if Digest.of_open(file, extent.offset, expected.length) == expected else _DIFFERS
    except FileNotFoundError:
        return "missing"


def _images(cache: FeatureCache, block: int) -> tuple[str, ...]:
    try:
        return cache.images_of_block(block)
    except CacheError:  # the manifest is damaged too
        return ()
