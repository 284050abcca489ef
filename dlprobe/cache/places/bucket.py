"""A prefix of an S3-compatible bucket: a put is atomic, records and locks are put on condition that there are none.

Access is told by the usual environment: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``,
``AWS_REGION``, and ``AWS_ENDPOINT_URL`` for servers other than Amazon's, which may speak plain HTTP.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from dlprobe.cache.places.folder import Folder
from dlprobe.errors import CacheError
from dlprobe.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: Requests at a time where several objects are read.
_PARALLEL = 16
#: Bytes asked for in one request: enough to outweigh its latency, little enough to be sent within the time limit.
_PIECE_BYTES = 16 << 20
_CONNECT_S, _REQUEST_S, _RETRY_S, _RETRIES = 5, 120, 10, 3
#: How long the lock for setting a cache up is waited for, and how often it is asked for.
_WAIT_S, _POLL_S = 30.0, 0.2
#: The network client's threads end with a fork, and no other can be made: the process in which they were started.
_PROCESS: list[int] = []


class Bucket:
    """A place on S3.

    Parameters
    ----------
    bucket : str
        Name of the bucket.
    prefix : str
        Before the name of every object; may be empty.

    Raises
    ------
    ExtraError
        If the extra ``s3`` is not installed.
    """

    folder: Path | None = None

    def __init__(self, bucket: str, prefix: str) -> None:
        require("s3", "a cache on S3", "obstore")
        self.path = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        with self._told():
            self._client = _client(bucket, prefix)

    def __str__(self) -> str:
        """Return the URL."""
        return self.path

    def make(self, name: str) -> bool:
        """Make sure that the bucket can be reached; a prefix needs no making."""
        del name
        return not self.children()

    def unmake(self) -> None:
        """Do nothing: a prefix without objects is not there."""

    def exists(self, name: str) -> bool:
        """Tell whether there is an object of this name."""
        import obstore

        try:
            with self._told():
                obstore.head(self._client, name)
        except FileNotFoundError:
            return False
        return True

    def children(self, name: str = "") -> set[str]:
        """Return what is listed directly below a name."""
        import obstore

        with self._told():
            found = obstore.list_with_delimiter(self._client, name or None)
        names = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return {text.rstrip("/").rsplit("/", 1)[-1] for text in names}

    def sizes(self) -> dict[str, int]:
        """Return the size of every object."""
        return {item["path"]: item["size"] for item in self._listed(None)}

    def read(self, name: str) -> bytes:
        """Return a whole object."""
        import obstore

        with self._told():
            return bytes(obstore.get(self._client, name).bytes())

    @contextmanager
    def open(self, name: str) -> Iterator[OpenObject]:
        """Ask for the size of an object; nothing stays open."""
        import obstore

        with self._told():
            size = int(obstore.head(self._client, name)["size"])
        yield OpenObject(self, name, size)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Put an object; large ones go in parts that become one object at the end."""
        import obstore

        with self._told():
            obstore.put(self._client, name, data)

    def write_new(self, name: str, data: bytes) -> None:
        """Put an object with ``If-None-Match: *``."""
        import obstore

        with self._told():
            obstore.put(self._client, name, data, mode="create")

    def write_group(self, name: str, objects: Mapping[str, bytes]) -> None:
        """Put objects; that all of them are there is for a record to say that is written later."""
        for part, data in objects.items():
            self.write(f"{name}/{part}", data)

    def move(self, name: str, target: str) -> None:
        """Let the server copy an object, then delete it; a process that is killed between leaves both."""
        import obstore

        with self._told():
            obstore.copy(self._client, name, target)
            obstore.delete(self._client, name)

    def remove(self, name: str) -> None:
        """Delete an object, and all below its name."""
        import obstore

        names = [name, *(item["path"] for item in self._listed(name))]
        with self._told():
            obstore.delete(self._client, names)

    @contextmanager
    def hold(self, name: str, *, wait: bool) -> Iterator[None]:
        """Hold an object that names its owner; a killed process leaves it, and `unlock` removes it."""
        mine = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        token = f"{mine} ({uuid4().hex[:8]})".encode()
        until = time.monotonic() + (_WAIT_S if wait else 0.0)
        while not self._taken(name, token):
            if time.monotonic() >= until:
                raise self._locked(name)
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            if self._holder(name) == token:  # nobody has broken the lock and taken it meanwhile
                self.remove(name)

    def held(self, name: str) -> bool:
        """Tell whether there is a lock object."""
        return self.exists(name)

    def sweep(self) -> None:
        """Do nothing: what was not put whole is not there."""

    @contextmanager
    def scratch(self) -> Iterator[Folder]:
        """Give a temporary folder of this machine."""
        with tempfile.TemporaryDirectory(prefix="dlprobe-") as folder:
            yield Folder(Path(folder))

    def each(self, function: Callable[[_Item], _Result], items: Collection[_Item], size: int = 0) -> Iterator[_Result]:
        """Map in threads, in order: every read is a wait."""
        del size
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="dlprobe-s3") as pool:
            yield from pool.map(function, items)

    def part(self, name: str, start: int, stop: int) -> memoryview:
        """Return part of an object, or as much of it as there is."""
        import obstore

        with self._told():
            return memoryview(obstore.get_range(self._client, name, start=start, end=stop))

    def _taken(self, name: str, token: bytes) -> bool:
        try:
            self.write_new(name, token)
        except FileExistsError:
            return self._holder(name) == token  # a put that was answered too late and sent again
        return True

    def _holder(self, name: str) -> bytes:
        try:
            return self.read(name)
        except FileNotFoundError:
            return b""

    def _locked(self, name: str) -> CacheError:
        holder = self._holder(name).decode(errors="replace") or "another process"
        msg = (
            f"{self} is being written by {holder} ({name}); wait for it or stop it; "
            f"if it was killed, run `dlprobe cache unlock {self}`"
        )
        return CacheError(msg)

    def _listed(self, name: str | None) -> list[dict[str, Any]]:
        import obstore

        with self._told():
            return [item for page in obstore.list(self._client, name) for item in page]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the server or the network says into one line; a missing object stays `FileNotFoundError`."""
        from obstore.exceptions import AlreadyExistsError, BaseError

        if _PROCESS and os.getpid() not in _PROCESS:
            msg = f"{self} cannot be used after a fork; start processes by 'spawn' or 'forkserver'"
            raise CacheError(msg)
        _PROCESS[:] = [os.getpid()]
        try:
            yield
        except AlreadyExistsError as error:
            raise FileExistsError(str(self)) from error
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise self._failure(str(error)) from error
            raise
        except BaseError as error:
            raise self._failure(str(error)) from error

    def _failure(self, text: str) -> CacheError:
        code, reason = (_tag(text, tag) for tag in ("Code", "Message"))
        said = f"{code}: {reason}" if code and reason else " ".join(text.splitlines()[0].split())
        if code == "NoSuchBucket":
            return CacheError(f"{self}: there is no bucket {self._bucket}; make it, or check AWS_ENDPOINT_URL")
        if "403 Forbidden" in text or "401 Unauthorized" in text:
            keys = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
            return CacheError(f"{self}: access was refused ({said}); check {keys}")
        if not code:
            where = os.environ.get("AWS_ENDPOINT_URL", "Amazon S3")
            return CacheError(f"{self}: {where} cannot be reached ({said}); check AWS_ENDPOINT_URL and the network")
        return CacheError(f"{self}: the server refused ({said}); try again")


class OpenObject:
    """An object of which parts are read, each by a request of its own.

    Parameters
    ----------
    bucket : Bucket
        Where it lies.
    name : str
        Its name.
    size : int
        Its bytes.
    """

    def __init__(self, bucket: Bucket, name: str, size: int) -> None:
        self._bucket, self._name, self.size = bucket, name, size

    def read(self, start: int, length: int) -> memoryview:
        """Return part of the object."""
        stop = min(start + length, self.size)
        return self._bucket.part(self._name, start, stop) if start < stop else memoryview(b"")

    def read_into(self, start: int, views: list[memoryview]) -> None:
        """Read consecutive bytes into all views, some of them in each request."""
        pieces, offset = list(_pieces(views)), start
        starts = []
        for piece in pieces:
            starts.append(offset)
            offset += sum(view.nbytes for view in piece)
        if offset > self.size:
            raise EOFError
        if len(pieces) == 1:
            self._fill(starts[0], pieces[0])
            return
        with ThreadPoolExecutor(_PARALLEL // 4, thread_name_prefix="dlprobe-s3") as pool:
            list(pool.map(self._fill, starts, pieces))

    def _fill(self, start: int, views: list[memoryview]) -> None:
        length = sum(view.nbytes for view in views)
        data = self._bucket.part(self._name, start, start + length).cast("B")
        if data.nbytes < length:
            raise EOFError
        at = 0
        for view in views:
            view[:] = data[at : at + view.nbytes]
            at += view.nbytes


def _pieces(views: list[memoryview]) -> Iterator[list[memoryview]]:
    """Group views until they make up a request."""
    piece: list[memoryview] = []
    for view in views:
        piece.append(view)
        if sum(part.nbytes for part in piece) >= _PIECE_BYTES:
            yield piece
            piece = []
    if piece:
        yield piece


def _client(bucket: str, prefix: str) -> Any:
    from obstore.store import S3Store

    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "allow_http": plain,
            "connect_timeout": timedelta(seconds=_CONNECT_S),
            "timeout": timedelta(seconds=_REQUEST_S),
        },
        retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)},
    )


def _tag(text: str, name: str) -> str:
    match = re.search(rf"<{name}>(.*?)</{name}>", text, flags=re.DOTALL)
    return " ".join(match[1].split()) if match else ""
