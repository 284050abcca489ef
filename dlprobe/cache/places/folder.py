"""A folder: objects are files, written under a scratch name, synced and renamed; locks vanish with their process."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from dlprobe.errors import CacheError
from dlprobe.publish import SCRATCH_PREFIX, fsync, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

#: Threads that read at the same time.
READERS = max(1, min(4, os.cpu_count() or 1))
#: Bytes from which threads pay: starting them must be little beside the copying.
_MUCH_BYTES = 1 << 23

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Folder:
    """A place in a file system.

    Parameters
    ----------
    path : Path
        The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def make(self, name: str) -> bool:
        """Make the folder, and the one of this name in it."""
        fresh = not self.path.exists()
        try:
            (self.path / name).mkdir(parents=True, exist_ok=True)
        except OSError:  # such as of a disk with room for one folder and not for two
            if fresh and self.path.is_dir():
                self.unmake()
            raise
        return fresh

    def unmake(self) -> None:
        """Remove the empty folder."""
        self.path.rmdir()

    def exists(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return (self.path / name).is_file()

    def children(self, name: str = "") -> set[str]:
        """Return the names in a folder, scratch files apart."""
        try:
            return {path.name for path in (self.path / name).iterdir() if not path.name.startswith(SCRATCH_PREFIX)}
        except FileNotFoundError:
            return set()

    def sizes(self) -> dict[str, int]:
        """Return the size of every file; one that is swept or renamed meanwhile is not there."""
        found = {}
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):
                    found[path.relative_to(self.path).as_posix()] = path.stat().st_size
        return found

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self.path / name).read_bytes()

    def open(self, name: str) -> OpenFile:
        """Open a file."""
        return OpenFile(self.path / name)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file under a scratch name, sync it, rename it, and sync the folder."""
        with publish(self.path / name, durable=True) as scratch:
            scratch.write_bytes(data)

    def write_new(self, name: str, data: bytes) -> None:
        """Write a file that is not there; that nobody else does so meanwhile is for a lock to see to."""
        if self.exists(name):
            raise FileExistsError(name)
        self.write(name, data)

    def write_group(self, name: str, objects: Mapping[str, bytes]) -> None:
        """Write a folder whole or not at all."""
        with publish(self.path / name, durable=True) as scratch:
            for part, data in objects.items():
                (scratch / part).parent.mkdir(parents=True, exist_ok=True)
                (scratch / part).write_bytes(data)
            for path in scratch.rglob("*"):
                fsync(path)

    def move(self, name: str, target: str) -> None:
        """Rename a file; one on another disk, by a link, is copied first."""
        source, goal = self.path / name, self.path / target
        try:
            source.replace(goal)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with publish(goal, durable=True) as scratch:
                shutil.copyfile(source, scratch)
            source.unlink()
        fsync(goal.parent)
        fsync(source.parent)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that it holds."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            try:
                path.unlink()
            except FileNotFoundError:
                return
        fsync(path.parent)

    @contextmanager
    def hold(self, name: str, *, wait: bool) -> Iterator[None]:
        """Hold an exclusive ``flock`` on a file."""
        handle = self._lock(name, wait=wait)
        try:
            with suppress(OSError):  # who holds it is for people; a full disk has no room for it
                os.truncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
        finally:
            os.close(handle)

    def held(self, name: str) -> bool:
        """Tell whether a process holds a lock on a file."""
        handle = os.open(self.path / name, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def sweep(self) -> None:
        """Remove scratch files."""
        for path in list(self.path.rglob(f"{SCRATCH_PREFIX}*")):
            self.remove(path.relative_to(self.path).as_posix())

    @contextmanager
    def scratch(self) -> Iterator[Folder]:
        """Give a folder inside this one, where there is room for a cache."""
        path = self.path / f"{SCRATCH_PREFIX}{uuid4().hex}"
        path.mkdir()
        try:
            yield Folder(path)
        finally:
            shutil.rmtree(path)

    def each(self, function: Callable[[_Item], _Result], items: Collection[_Item], size: int = 0) -> Iterator[_Result]:
        """Map in threads if there is much to read: one core copies less than the memory gives."""
        if len(items) < 2 or size < _MUCH_BYTES:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(min(READERS, len(items)), thread_name_prefix="dlprobe-read") as pool:
            yield from pool.map(function, items)

    def _lock(self, name: str, *, wait: bool) -> int:
        path = self.path / name
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
                os.close(handle)
                msg = f"{self} is being written by {holder} ({path.name}); wait for it or stop it"
                raise CacheError(msg) from error
            if _is_still_there(path, handle):
                return handle
            os.close(handle)  # the file was removed between opening and locking


class OpenFile:
    """A file that is being read.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    size : int
        Its bytes.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._handle).st_size

    def __enter__(self) -> OpenFile:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        os.close(self._handle)

    def read(self, start: int, length: int) -> bytes:
        """Return part of the file."""
        return os.pread(self._handle, length, start)

    def read_into(self, start: int, views: list[memoryview]) -> None:
        """Read consecutive bytes into all views by as few system calls as there can be."""
        while views:
            count = os.preadv(self._handle, views, start)
            if count == 0:
                raise EOFError
            start += count
            while views and count >= views[0].nbytes:
                count -= views.pop(0).nbytes
            if count:
                views[0] = views[0][count:]


def _is_still_there(path: Path, handle: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False
