"""Who may write: one lock for each shard, and one for setting a cache up."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dlprobe.cache.layout import LOCKS
from dlprobe.cache.places import open_place
from dlprobe.errors import CacheError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from dlprobe.cache.places import Place

Shard = tuple[int, int]
_SETUP = f"{LOCKS}/setup.lock"
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)\.lock")


def require_shard(shard: Shard) -> None:
    """Raise `CacheError` unless the shard is one of as many as it says."""
    if not 0 <= shard[0] < shard[1]:
        msg = f"no shard {shard[0]} of {shard[1]}; shards are numbered from 0"
        raise CacheError(msg)


@contextmanager
def hold_shard(place: Place, shard: Shard) -> Iterator[None]:
    """Hold the right to write one shard of a cache; raise `CacheError` at once if another process has it."""
    with place.hold(f"{LOCKS}/shard-{shard[0]}-of-{shard[1]}.lock", wait=False):
        yield


@contextmanager
def hold_setup(place: Place) -> Iterator[None]:
    """Hold the right to create or sweep a cache and to take shards of it, waiting: it is never held for long."""
    with place.hold(_SETUP, wait=True):
        yield


def other_writers(place: Place, shard: Shard) -> list[Shard]:
    """Return the shards, this one apart, that some process is writing."""
    found = []
    for name in sorted(place.children(LOCKS)):
        match = _SHARD.fullmatch(name)
        if match and (other := (int(match[1]), int(match[2]))) != shard and place.held(f"{LOCKS}/{name}"):
            found.append(other)
    return found


def unlock(path: str | os.PathLike[str]) -> list[str]:
    """Remove the locks that killed writers left on a cache in a bucket.

    Parameters
    ----------
    path : path
        The cache.

    Returns
    -------
    list of str
        Who held them, and since when.

    Raises
    ------
    CacheError
        If the cache lies in a folder, where locks vanish with their process.
    """
    place = open_place(path)
    if place.folder is not None:
        msg = f"{place} is a folder, whose locks vanish with their process; end the process that writes it"
        raise CacheError(msg)
    found = []
    for name in sorted(place.children(LOCKS)):
        try:
            found.append(f"{name}: {place.read(f'{LOCKS}/{name}').decode(errors='replace')}")
        except FileNotFoundError:  # its writer has ended
            continue
        place.remove(f"{LOCKS}/{name}")
    return found
