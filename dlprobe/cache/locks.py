"""Locks that vanish with their process: one for each shard, and one for setting a cache up."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dlprobe.cache.layout import LOCKS
from dlprobe.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Shard = tuple[int, int]
_SETUP = "setup.lock"
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)\.lock")


@contextmanager
def hold_shard(root: Path, shard: Shard) -> Iterator[None]:
    """Hold the right to write one shard of a cache; raise `CacheError` at once if another process has it."""
    with _hold(root / LOCKS / f"shard-{shard[0]}-of-{shard[1]}.lock", root, wait=False):
        yield


@contextmanager
def hold_setup(root: Path) -> Iterator[None]:
    """Hold the right to create or sweep a cache and to take shards of it, waiting: it is never held for long."""
    with _hold(root / LOCKS / _SETUP, root, wait=True):
        yield


def other_writers(root: Path, shard: Shard) -> list[Shard]:
    """Return the shards, this one apart, that some process is writing."""
    found = []
    for path in sorted((root / LOCKS).iterdir()):
        match = _SHARD.fullmatch(path.name)
        if match and (other := (int(match[1]), int(match[2]))) != shard and _is_held(path):
            found.append(other)
    return found


@contextmanager
def _hold(path: Path, root: Path, *, wait: bool) -> Iterator[None]:
    handle = _acquire(path, root, wait=wait)
    try:
        os.truncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(handle)


def _acquire(path: Path, root: Path, *, wait: bool) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 200, 0).decode(errors="replace")
            os.close(handle)
            msg = f"{root} is being written by {holder or 'another process'} ({path.name}); wait for it or stop it"
            raise CacheError(msg) from error
        if _is_still_there(path, handle):
            return handle
        os.close(handle)  # the file was removed between opening and locking


def _is_still_there(path: Path, handle: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def _is_held(path: Path) -> bool:
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
