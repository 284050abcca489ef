"""Named things, looked up in one way: refuses doubles, suggests neighbours, loads entry points on a first miss."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Generic, TypeVar

from dlprobe.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class Registry(Generic[T]):
    """A dictionary of plug-ins.

    Parameters
    ----------
    kind : str
        What is registered, in the singular, for messages.
    group : str, optional
        Entry-point group in which other packages announce theirs.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self._group = group
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers an object; raise `RegistryError` if the name is taken."""

        def add(item: T) -> T:
            if name in self._items:
                msg = f"{self.kind} {name!r} is registered twice; rename one of them"
                raise RegistryError(msg)
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        """Return the object of that name; raise `RegistryError` with the nearest names if there is none."""
        if name not in self._items:
            self._load_entry_points(name)
        if name not in self._items:
            near = difflib.get_close_matches(name, self._items, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(self)}"
            msg = f"no {self.kind} {name!r}; {hint}"
            raise RegistryError(msg)
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the registered names, sorted."""
        return iter(sorted(self._items))

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def _load_entry_points(self, name: str) -> None:
        for entry in entry_points(group=self._group) if self._group else ():
            if entry.name == name and name not in self._items:
                self._items[name] = entry.load()
