"""Files and folders that are there and whole, or not there, whatever ends the work on them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

#: Every scratch name begins with it, so that leftovers of a killed process can be told and swept.
SCRATCH_PREFIX = ".dlprobe-scratch-"
#: What shells report of a process that ended by SIGTERM.
EXIT_SIGTERM = 128 + signal.SIGTERM


@contextmanager
def publish(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a scratch path beside `target`; on success put it in place of `target`, on failure remove it.

    Parameters
    ----------
    target : Path
        The file or folder to be; its parent exists. What is there is replaced once the new one is whole: a file in
        one step, a folder in two, between which it is only out of sight.
    durable : bool
        Also force a file to the disk, before and after it gets its name, so that a power cut cannot undo it.
    """
    scratch = target.with_name(f"{SCRATCH_PREFIX}{uuid4().hex}")
    old = scratch.with_name(f"{scratch.name}-old")
    try:
        yield scratch
        if durable:
            fsync(scratch)
        if target.is_dir() and scratch.is_dir():  # a file never takes a folder's place
            target.replace(old)
        scratch.replace(target)
        if durable:
            fsync(target.parent)
    finally:
        if old.is_dir():
            if target.exists():
                shutil.rmtree(old)
            else:
                old.replace(target)
        if scratch.is_dir():
            shutil.rmtree(scratch)
        else:
            scratch.unlink(missing_ok=True)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise `SystemExit` in the main thread, so that locks and scratch files are cleared away.

    Does nothing in other threads, and where the program has a handler of its own.
    """
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not mine:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(EXIT_SIGTERM)


def is_full(error: OSError) -> bool:
    """Tell whether an error says that a disk, or what a user may have of it, is full."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def fsync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
