"""What a layout yields, the registry of layouts, and the small habits that all of them share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from dlprobe.data.images import IMAGE_SUFFIXES
from dlprobe.errors import DataError
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
    "calibration": "calibration",
}

#: COCO's own file names, of 2017 and of 2014.
COCO_STEM = re.compile(r"^(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})$")


class Record(NamedTuple):
    """An image that a layout found: the text columns of a manifest, and how its mask is read."""

    path: str
    variant: str
    source_id: str
    mask: str = ""
    donor_id: str = ""
    generator: str = ""
    mask_kind: str = ""
    split: str = ""
    dataset: str = ""
    mask_reading: str = ""


class Reject(NamedTuple):
    """A file that could not be used, why in words, and the fault's short name, by which rejects are counted."""

    path: str
    reason: str
    fault: str = "unplaced"


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


class Guess(NamedTuple):
    """A fact that no source states: `dlprobe.data.audit` checks it on the pixels, and the scan says what it found.

    ``fact`` says in words what the layout assumed. ``check`` is ``variant`` (what lies outside the mask) or
    ``polarity`` (white is manipulated). Images are those of one generator, or all if it is empty.
    """

    fact: str
    check: Literal["variant", "polarity"]
    generator: str = ""


Item: TypeAlias = Record | Reject | Ignored | Finding | Guess
Layout: TypeAlias = Callable[..., Iterator[Item]]

LAYOUTS: Registry[Layout] = Registry("layout", "dlprobe.layouts")


def coco(number: str | int) -> str:
    """Return the canonical source_id of a photograph of COCO, all of whose years share numbers."""
    return f"coco:{int(number):012d}"


def source_of(stem: str, dataset: str, pattern: str = "") -> str:
    """Return the source_id of an image whose data set has no rule of its own.

    Parameters
    ----------
    stem : str
        File name without its ending.
    dataset : str
        Where numbers count from, unless they are COCO's.
    pattern : str
        Regular expression whose first group is the part of the stem that the images of one photograph share.

    Raises
    ------
    DataError
        If the pattern is no regular expression, or has no group.
    """
    if pattern:
        try:
            shared = re.search(pattern, stem)
            stem = shared[1] if shared else stem
        except (re.error, IndexError) as error:
            msg = f"source_pattern {pattern!r} is no regular expression with one group ({error}); write '^(\\d+)_'"
            raise DataError(msg) from error
    if photograph := COCO_STEM.match(stem):
        return coco(photograph[1])
    return f"{dataset}:{stem}" if dataset else stem


def contents(root: Path) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """Return the image files below a folder, and its other files, relative to it."""
    images: list[PurePosixPath] = []
    others: list[PurePosixPath] = []
    for path in map(PurePosixPath, walk(root)):
        (images if path.suffix.lower() in IMAGE_SUFFIXES else others).append(path)
    return images, others


def require(found: object, root: Path, what: str, layout: str) -> None:
    """Raise `DataError` if a folder has nothing that belongs to a layout."""
    if not found:
        msg = f"{root} has no {what}, so it is no tree of layout {layout}; see docs/layouts.md or use --layout csv"
        raise DataError(msg)


def paired(record: Record, masks: list[str]) -> Record | Reject:
    """Return a record with its only mask, or the reject that it is without."""
    if len(masks) == 1:
        return record._replace(mask=masks[0])
    if masks:
        return Reject(record.path, f"several masks claim to be its own: {', '.join(sorted(masks))}", "two-masks")
    return Reject(record.path, "no mask of its name", "no-mask")


def orphan_masks(masks: dict[Any, list[str]], used: set[Any]) -> Iterator[Item]:
    """Yield every mask as ignored, and a finding that counts those whose key no image used."""
    yield from (Ignored(path, "mask") for key, paths in masks.items() if key in used for path in paths)
    orphans = sorted(path for key, paths in masks.items() if key not in used for path in paths)
    yield from (Ignored(path, "orphan mask") for path in orphans)
    if orphans:
        yield Finding("orphan-mask", "masks without an image", len(orphans), "warning", tuple(orphans[:5]))


def walk(root: Path) -> Iterator[str]:
    """Yield every file below a folder, relative to it and with forward slashes, sorted within each folder.

    Links are followed, each folder once. A hidden folder is yielded itself, with a slash at its end, and not entered.

    Raises
    ------
    DataError
        If a folder cannot be listed, so that its files would be missing without a word.
    """
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(root, onerror=_unlistable, followlinks=True):
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


def _unlistable(error: OSError) -> None:
    msg = f"folder {error.filename} cannot be listed ({error.strerror}); let it be read, or move it out of the data set"
    raise DataError(msg) from error
