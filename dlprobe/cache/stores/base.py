"""What a back end has to do: hold a few fixed arrays, and give each block of each array a place in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dlprobe.cache.layout import Attributes, Layout
    from dlprobe.cache.places import Place
    from dlprobe.cache.records import Digest, RootRecord


class Extent(NamedTuple):
    """Where the bytes of a chunk start in an object, and whether it holds nothing else."""

    name: str
    offset: int
    alone: bool


class Store(Protocol):
    """A back end, bound to the place of one cache."""

    place: Place
    layout: Layout
    attrs: Attributes
    #: Names of the arrays whose chunks are compressed.
    packed: frozenset[str]
    #: First byte of each array, where all of them lie in one object.
    offsets: Mapping[str, int]

    @classmethod
    def open(cls, place: Place) -> Store:
        """Read the metadata; raise `CacheError` if they are not what this release writes."""
        ...

    @classmethod
    def recall(cls, place: Place, record: RootRecord) -> Store:
        """Return the back end as a root record tells of it, to find its blocks though the metadata cannot be read.

        Raise `CacheError` if the record tells too little.
        """
        ...

    @classmethod
    def create(
        cls, place: Place, layout: Layout, attrs: Attributes, fixed: Mapping[str, bytes], *, compress: bool
    ) -> Store:
        """Make everything that belongs to no block, durable; whole or not at all where the place allows it.

        Parameters
        ----------
        place : Place
            Of the cache.
        layout : Layout
            Arrays to be.
        attrs : Attributes
            What the cache says of itself.
        fixed : mapping of str to bytes
            Content of the arrays that belong to no block.
        compress : bool
            Compress every block array and not only region maps; raise `CacheError` where that cannot be done.
        """
        ...

    def fixed(self, name: str) -> bytes:
        """Return the bytes of an array that belongs to no block; raise `CacheError` if they are not all there."""
        ...

    def fixed_names(self) -> list[str]:
        """Return the names of all objects, or ``NAME#START-STOP`` of all parts of objects, that belong to no block."""
        ...

    def extent(self, name: str, block: int) -> Extent:
        """Return where a chunk lies."""
        ...

    def put(self, name: str, block: int, data: memoryview) -> Digest:
        """Store a chunk durably and return the digest of its stored bytes."""
        ...

    def decode(self, name: str, data: bytes | memoryview) -> bytes:
        """Return the bytes of a compressed chunk as they were before."""
        ...

    def drop(self, blocks: Collection[int]) -> None:
        """Forget what is stored of blocks that have no record."""
        ...
