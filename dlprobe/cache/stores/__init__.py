"""Back ends of the cache: one schema, several ways to lie on a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlprobe.cache.stores.base import Extent, Store
from dlprobe.cache.stores.hdf5_file import FILE, Hdf5File
from dlprobe.cache.stores.zarr_folder import FOLDER, ZarrFolder
from dlprobe.errors import CacheError

if TYPE_CHECKING:
    from pathlib import Path

#: Back ends by name, the default first, and what each keeps in the folder of a cache.
STORES: dict[str, type[ZarrFolder] | type[Hdf5File]] = {"zarr": ZarrFolder, "hdf5": Hdf5File}
STORED_NAMES = {"zarr": FOLDER, "hdf5": FILE}


def open_store(root: Path) -> Store:
    """Return the back end of a cache; raise `CacheError` if there is none."""
    return STORES[store_kind(root)](root)


def store_kind(root: Path) -> str:
    """Return the name of a cache's back end; raise `CacheError` if there is no cache, or two in one."""
    require_cache(root)
    found = [kind for kind, name in STORED_NAMES.items() if (root / name).exists()]
    if len(found) > 1:
        msg = f"{root} holds {' and '.join(STORED_NAMES.values())}; remove the one that does not belong there"
        raise CacheError(msg)
    return found[0]


def require_cache(root: Path) -> None:
    """Raise `CacheError` unless something that a back end keeps is there."""
    if not any((root / name).exists() for name in STORED_NAMES.values()):
        msg = f"no cache at {root}; make one with `dlprobe extract`"
        raise CacheError(msg)


__all__ = ["STORED_NAMES", "STORES", "Extent", "Store", "open_store", "require_cache", "store_kind"]
