"""Records: small immutable JSON files, written last, that say which bytes are whole and what was rejected.

Each ends in a checksum of itself, so that a damaged record is told from a sound one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dlprobe.cache.layout import ROOT_RECORD, Attributes, Layout, record_name
from dlprobe.errors import CacheError
from dlprobe.spec import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dlprobe.cache.places import Opened, Place

_PIECE_BYTES = 1 << 23
_CHECKSUM = "checksum"


@dataclass(frozen=True, slots=True)
class Digest:
    """Length and sha256 of stored bytes."""

    length: int
    sha256: str

    @classmethod
    def of(cls, data: bytes | memoryview) -> Digest:
        """Measure bytes in memory."""
        return cls(memoryview(data).nbytes, hashlib.sha256(data).hexdigest())

    @classmethod
    def of_named(cls, place: Place, name: str) -> Digest | None:
        """Measure an object, or ``NAME#START-STOP`` of one; None if it is not all there."""
        whole, _, part = name.partition("#")
        try:
            with place.open(whole) as opened:
                start, stop = map(int, part.split("-")) if part else (0, opened.size)
                return cls.of_open(opened, start, stop - start)
        except FileNotFoundError:
            return None

    @classmethod
    def of_open(cls, opened: Opened, start: int, length: int) -> Digest | None:
        """Measure part of what is open; None if it ends before."""
        hasher, left = hashlib.sha256(), length
        while left and (piece := opened.read(start + length - left, min(left, _PIECE_BYTES))):
            hasher.update(piece)
            left -= len(piece)
        return None if left else cls(length, hasher.hexdigest())


@dataclass(frozen=True, slots=True)
class Reject:
    """An image, or some of its windows, that could not be embedded.

    Parameters
    ----------
    path : str
        The image's path in the manifest.
    reason : str
        One line.
    windows : tuple of int
        Indices of its windows in the cache that are void for this reason.
    """

    path: str
    reason: str
    windows: tuple[int, ...]

    def __str__(self) -> str:
        """Say which image, how many windows and why, in a line."""
        return f"{self.path} ({len(self.windows)} windows): {self.reason}"


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """What is true of one whole block.

    Parameters
    ----------
    block : int
        Number of the block.
    cache : str
        The cache_fingerprint.
    chunks : mapping of str to Digest
        Stored bytes of the block in each array, padding included.
    images : mapping of str to str
        sha256 of each image file that the block was made from, by path.
    rejects : tuple of Reject
        Windows of the block that are void.
    """

    block: int
    cache: str
    chunks: Mapping[str, Digest]
    images: Mapping[str, str]
    rejects: tuple[Reject, ...]


@dataclass(frozen=True, slots=True)
class RootRecord:
    """Digests of everything in a cache that belongs to no block, and a spare copy of what tells where its blocks lie.

    The spare copy is empty in a record that was written before there was one.

    Parameters
    ----------
    cache : str
        The cache_fingerprint.
    files : mapping of str to Digest
        By name, or ``NAME#START-STOP``.
    attributes : mapping
        What the cache says of itself, as `dlprobe.cache.layout.Attributes.record` gives it.
    counts : mapping of str to int
        ``windows``, and ``manifest_bytes``.
    offsets : mapping of str to int
        First byte of each array, where all of them lie in one object.
    """

    cache: str
    files: Mapping[str, Digest]
    attributes: Mapping[str, Any]
    counts: Mapping[str, int]
    offsets: Mapping[str, int]


def write_block_record(place: Place, record: BlockRecord) -> None:
    """Record a block; raise `CacheError` if another writer has recorded it with other bytes."""
    name, text = record_name(record.block), _text(record)
    try:
        place.write_new(name, text)
    except FileExistsError as error:
        if place.read(name) != text:
            msg = f"block {record.block} of {place} was recorded by another writer meanwhile; let one writer work at it"
            raise CacheError(msg) from error


def write_root_record(place: Place, record: RootRecord) -> None:
    """Record what belongs to no block, in place of an earlier record."""
    place.write(ROOT_RECORD, _text(record))


def read_block_record(place: Place, block: int) -> BlockRecord:
    """Read the record of a block; raise `CacheError` if it is missing or damaged."""
    body = _read(place, record_name(block))
    return BlockRecord(
        block=body["block"],
        cache=body["cache"],
        chunks={name: Digest(**digest) for name, digest in body["chunks"].items()},
        images=body["images"],
        rejects=tuple(Reject(**{**item, "windows": tuple(item["windows"])}) for item in body["rejects"]),
    )


def read_root_record(place: Place) -> RootRecord:
    """Read the record of what belongs to no block; raise `CacheError` if it is missing or damaged."""
    body = _read(place, ROOT_RECORD)
    files = {name: Digest(**digest) for name, digest in body["files"].items()}
    spare = {name: body.get(name, {}) for name in ("attributes", "counts", "offsets")}
    return RootRecord(body["cache"], files, **spare)


def recalled(place: Place, record: RootRecord) -> tuple[Attributes, Layout]:
    """Return what a root record tells of a cache; raise `CacheError` if it is older than its spare copy."""
    if not record.attributes:
        msg = f"{place}/{ROOT_RECORD} has no copy of what the cache says of itself; extract to another path"
        raise CacheError(msg)
    attrs = Attributes.from_record(record.attributes, f"{place}/{ROOT_RECORD}")
    return attrs, Layout(attrs.spec, record.counts["windows"], record.counts["manifest_bytes"])


def _text(record: BlockRecord | RootRecord) -> bytes:
    body = asdict(record)
    return canonical_json({**body, _CHECKSUM: _checksum(body)}).encode("ascii")


def _read(place: Place, name: str) -> dict[str, Any]:
    try:
        text = place.read(name)
    except FileNotFoundError as error:
        msg = f"no record at {place}/{name}; the cache is unfinished: run the same `dlprobe extract` again"
        raise CacheError(msg) from error
    try:
        body = json.loads(text)
        checksum = body.pop(_CHECKSUM)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(place, name) from error
    # the bytes are compared too: JSON that means the same is still not what was written
    if checksum != _checksum(body) or canonical_json({**body, _CHECKSUM: checksum}).encode() != text:
        raise _damaged(place, name)
    return dict(body)


def _damaged(place: Place, name: str) -> CacheError:
    return CacheError(f"record {place}/{name} is damaged; run `dlprobe cache repair`")


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()
