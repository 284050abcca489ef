"""What a place has to do: keep named objects whole, and let one writer at a time hold a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from dlprobe.cache.places.folder import Folder

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Opened(Protocol):
    """An object that is being read."""

    size: int

    def read(self, start: int, length: int) -> bytes | memoryview:
        """Return bytes from `start` on: `length` of them, or as many as there are."""
        ...

    def read_into(self, start: int, views: list[memoryview]) -> None:
        """Fill the views one after the other; raise `EOFError` if the object ends before."""
        ...


class Place(Protocol):
    """Objects by name; names are relative, with "/" between their parts.

    An object is there and whole, or not there. Where one is missing, `FileNotFoundError` is raised.
    """

    @property
    def path(self) -> Path | str:
        """The folder, or the URL."""
        ...

    @property
    def folder(self) -> Path | None:
        """The folder, where there is one in a file system of this machine."""
        ...

    def make(self, name: str) -> bool:
        """Make sure that objects below `name` can be written; return whether the place itself is new."""
        ...

    def unmake(self) -> None:
        """Take the place away, which is empty."""
        ...

    def exists(self, name: str) -> bool:
        """Tell whether there is an object of this name."""
        ...

    def children(self, name: str = "") -> set[str]:
        """Return the names, without `name`, of what lies directly below it; none if nothing does."""
        ...

    def sizes(self) -> dict[str, int]:
        """Return the name and size in bytes of every object."""
        ...

    def read(self, name: str) -> bytes:
        """Return a whole object."""
        ...

    def open(self, name: str) -> AbstractContextManager[Opened]:
        """Open an object to read parts of it."""
        ...

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write an object durably, in place of what has its name."""
        ...

    def write_new(self, name: str, data: bytes) -> None:
        """Write an object durably; raise `FileExistsError` if there is one of this name."""
        ...

    def write_group(self, name: str, objects: Mapping[str, bytes]) -> None:
        """Write objects below `name` durably: all or none of them in a folder, one after the other in a bucket."""
        ...

    def move(self, name: str, target: str) -> None:
        """Give an object another name, durably and without reading it; what has that name is replaced."""
        ...

    def remove(self, name: str) -> None:
        """Remove an object, or all below a name, durably; nothing happens if there is none."""
        ...

    def hold(self, name: str, *, wait: bool) -> AbstractContextManager[None]:
        """Hold a name against every other process; raise `CacheError` at once if one has it and `wait` is false."""
        ...

    def held(self, name: str) -> bool:
        """Tell whether some process holds a name."""
        ...

    def sweep(self) -> None:
        """Remove what killed writers left half-written."""
        ...

    def scratch(self) -> AbstractContextManager[Folder]:
        """Give a folder that vanishes."""
        ...

    def each(self, function: Callable[[_Item], _Result], items: Collection[_Item], size: int = 0) -> Iterator[_Result]:
        """Map a function that reads, in order; side by side where that is faster for so many bytes in all."""
        ...
