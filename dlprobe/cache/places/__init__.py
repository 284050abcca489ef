"""Where a cache lies: in a folder, or under a prefix of an S3-compatible bucket. Both hold the same objects."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dlprobe.cache.places.base import Opened, Place
from dlprobe.cache.places.bucket import Bucket
from dlprobe.cache.places.folder import Folder
from dlprobe.errors import CacheError

#: pathlib makes one slash of two; "C:/" of other systems has one letter.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")


def open_place(path: str | os.PathLike[str]) -> Place:
    """Return the place that a path or a URL names; nothing is read or made.

    Parameters
    ----------
    path : path
        A folder, or ``s3://BUCKET/PREFIX``.

    Raises
    ------
    CacheError
        If it is a URL of something else.
    ExtraError
        If the extra ``s3`` is needed and not installed.
    """
    text = os.fspath(path)
    if not (match := _URL.fullmatch(text)):
        return Folder(Path(text))
    scheme, rest = match.groups()
    bucket, _, prefix = rest.partition("/")
    if scheme.lower() != "s3" or not bucket:
        msg = f"no cache can lie at {text}; name a folder, or s3://BUCKET/PREFIX"
        raise CacheError(msg)
    return Bucket(bucket, prefix.strip("/"))


__all__ = ["Bucket", "Folder", "Opened", "Place", "open_place"]
