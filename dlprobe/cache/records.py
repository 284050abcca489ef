"""Records: small immutable JSON files, written last, that say which bytes are whole and what was rejected.

Each ends in a checksum of itself, so that a damaged record is told from a sound one.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dlprobe.errors import CacheError
from dlprobe.publish import publish
from dlprobe.spec import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import BinaryIO

_PIECE_BYTES = 1 << 22
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
    def of_named(cls, root: Path, name: str) -> Digest | None:
        """Measure a file, or ``FILE#START-STOP`` of one, below `root`; None if it is not all there."""
        file, _, part = name.partition("#")
        try:
            with (root / file).open("rb") as handle:
                start, stop = map(int, part.split("-")) if part else (0, os.fstat(handle.fileno()).st_size)
                return cls.of_open(handle, start, stop - start)
        except FileNotFoundError:
            return None

    @classmethod
    def of_open(cls, handle: BinaryIO, start: int, length: int) -> Digest | None:
        """Measure part of an open file; None if the file ends before."""
        hasher, left = hashlib.sha256(), length
        handle.seek(start)
        while left and (piece := handle.read(min(left, _PIECE_BYTES))):
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
    """Digests of everything in a cache that belongs to no block."""

    cache: str
    files: Mapping[str, Digest]


def write_record(path: Path, record: BlockRecord | RootRecord) -> None:
    """Write a record durably; it is there and whole, or not there."""
    body = asdict(record)
    text = canonical_json({**body, _CHECKSUM: _checksum(body)})
    with publish(path, durable=True) as scratch:
        scratch.write_text(text, encoding="ascii")


def read_block_record(path: Path) -> BlockRecord:
    """Read the record of a block; raise `CacheError` if it is missing or damaged."""
    body = _read(path)
    return BlockRecord(
        block=body["block"],
        cache=body["cache"],
        chunks={name: Digest(**digest) for name, digest in body["chunks"].items()},
        images=body["images"],
        rejects=tuple(Reject(**{**item, "windows": tuple(item["windows"])}) for item in body["rejects"]),
    )


def read_root_record(path: Path) -> RootRecord:
    """Read the record of what belongs to no block; raise `CacheError` if it is missing or damaged."""
    body = _read(path)
    return RootRecord(body["cache"], {name: Digest(**digest) for name, digest in body["files"].items()})


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        msg = f"no record at {path}; the cache is unfinished: run the same `dlprobe extract` again"
        raise CacheError(msg) from error
    try:
        body = json.loads(text)
        checksum = body.pop(_CHECKSUM)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path) from error
    # the bytes are compared too: JSON that means the same is still not what was written
    if checksum != _checksum(body) or canonical_json({**body, _CHECKSUM: checksum}).encode() != text:
        raise _damaged(path)
    return dict(body)


def _damaged(path: Path) -> CacheError:
    return CacheError(f"record {path} is damaged; run `dlprobe cache repair`")


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()
