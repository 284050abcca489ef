"""What a layout yields, the registry of layouts, and the small habits that all of them share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from dlprobe.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

Severity = Literal["info", "warning", "error"]

#: The names that data sets give their official splits, and ours.
SPLIT_NAMES = {
    "": "",
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


class Record(NamedTuple):
    """An image that a layout found: the text columns of a manifest."""

    path: str
    variant: str
    source_id: str
    mask: str = ""
    donor_id: str = ""
    generator: str = ""
    mask_kind: str = ""
    split: str = ""
    dataset: str = ""


class Reject(NamedTuple):
    """A file that could not be used, and why."""

    path: str
    reason: str


class Ignored(NamedTuple):
    """A file that is no image of the data set: a mask, a table, something else; the reason is a category."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a data set that a user should know before trusting a number.

    Parameters
    ----------
    name : str
        Which check found it, such as ``source-crosses-splits``.
    detail : str
        What was found, in one line.
    count : int
        How many images, files or sources it touches.
    severity : {"info", "warning", "error"}
        ``info``: a fact about the set; ``warning``: may bend a number; ``error``: will.
    examples : tuple of str
        Some of the paths (or source_ids) that it touches.
    """

    name: str
    detail: str
    count: int
    severity: Severity = "warning"
    examples: tuple[str, ...] = ()


Item: TypeAlias = Record | Reject | Ignored | Finding
Layout: TypeAlias = Callable[..., Iterator[Item]]

LAYOUTS: Registry[Layout] = Registry("layout", "dlprobe.layouts")


def relative(path: Path, root: Path) -> str:
    """Return a path below `root` with forward slashes, as manifests store it."""
    return path.relative_to(root).as_posix()


def walk(root: Path) -> Iterator[str]:
    """Yield every file below a folder, relative to it and with forward slashes, sorted within each folder.

    Links are followed, each folder once. A hidden folder is yielded itself, with a slash at its end, and not entered.
    """
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        status = os.stat(place)  # noqa: PTH116 (os.walk gives strings)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below = os.path.relpath(place, root).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        yield from (f"{prefix}{name}/" for name in sorted(folders) if name.startswith("."))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (prefix + name for name in sorted(files))
