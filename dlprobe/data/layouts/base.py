"""What a layout yields, and the registry of layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from dlprobe.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path


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


Layout: TypeAlias = Callable[..., Iterator[Record | Reject]]

LAYOUTS: Registry[Layout] = Registry("layout", "dlprobe.layouts")


def relative(path: Path, root: Path) -> str:
    """Return a path below `root` with forward slashes, as manifests store it."""
    return path.relative_to(root).as_posix()
