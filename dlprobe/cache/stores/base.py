"""What a back end has to do: hold a few fixed arrays, and give each block of each array a place in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dlprobe.cache.layout import Layout
    from dlprobe.cache.records import Digest


class Extent(NamedTuple):
    """Where the bytes of a chunk start, and whether the file holds nothing else."""

    path: Path
    offset: int
    alone: bool


class Store(Protocol):
    """A back end, bound to the folder of one cache."""

    root: Path
    layout: Layout

    @property
    def attrs(self) -> Mapping[str, Any]:
        """What the cache says of itself."""
        ...

    def fixed(self, name: str) -> bytes:
        """Return the bytes of an array that belongs to no block; raise `CacheError` if they are not all there."""
        ...

    def fixed_names(self) -> list[str]:
        """Return the names, relative to the cache, of all files whose every byte belongs to no block."""
        ...

    def extent(self, name: str, block: int) -> Extent:
        """Return where a chunk lies."""
        ...

    def put(self, name: str, block: int, data: memoryview) -> Digest:
        """Store a chunk durably and return the digest of its stored bytes."""
        ...

    def decode(self, name: str, data: bytes) -> bytes:
        """Return the bytes of a compressed chunk as they were before."""
        ...

    def drop(self, block: int) -> None:
        """Forget what is stored of a block that has no record."""
        ...
