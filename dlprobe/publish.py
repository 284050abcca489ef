"""Files and folders that are there and whole, or not there."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Every scratch name begins with it, so that leftovers of a killed process can be told and swept.
SCRATCH_PREFIX = ".dlprobe-scratch-"


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


def fsync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
