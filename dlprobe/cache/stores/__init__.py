"""Back ends of the cache: one schema, several ways to lie on a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlprobe.cache.stores.base import Extent, Store
from dlprobe.cache.stores.zarr_folder import FOLDER, ZarrFolder
from dlprobe.errors import CacheError

if TYPE_CHECKING:
    from pathlib import Path

#: Names of what a back end keeps in the folder of a cache.
STORED_NAMES = (FOLDER,)


def open_store(root: Path) -> Store:
    """Return the back end of a cache; raise `CacheError` if there is none."""
    require_cache(root)
    return ZarrFolder(root)


def require_cache(root: Path) -> None:
    """Raise `CacheError` unless something that a back end keeps is there."""
    if not any((root / name).exists() for name in STORED_NAMES):
        msg = f"no cache at {root}; make one with `dlprobe extract`"
        raise CacheError(msg)


__all__ = ["STORED_NAMES", "Extent", "Store", "ZarrFolder", "open_store", "require_cache"]
