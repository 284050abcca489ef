"""Back ends of the cache: one schema, several ways to lie on a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlprobe.cache.stores.base import Extent, Store
from dlprobe.cache.stores.hdf5_file import FILE, Hdf5File
from dlprobe.cache.stores.zarr_group import FOLDER, ZarrGroup
from dlprobe.errors import CacheError

if TYPE_CHECKING:
    from dlprobe.cache.places import Place
    from dlprobe.cache.records import RootRecord

#: Back ends by name, the default first, and what each keeps in the folder of a cache.
STORES: dict[str, type[ZarrGroup] | type[Hdf5File]] = {"zarr": ZarrGroup, "hdf5": Hdf5File}
STORED_NAMES = {"zarr": FOLDER, "hdf5": FILE}


def open_store(place: Place) -> Store:
    """Return the back end of a cache; raise `CacheError` if there is none."""
    return STORES[store_kind(place)].open(place)


def recall_store(place: Place, record: RootRecord) -> Store:
    """Return the back end of a cache whose metadata are damaged, as far as its root record tells of it."""
    return STORES[store_kind(place)].recall(place, record)


def store_kind(place: Place) -> str:
    """Return the name of a cache's back end; raise `CacheError` if there is no cache, or two in one."""
    require_cache(place)
    names = place.children()
    found = [kind for kind, name in STORED_NAMES.items() if name in names]
    if len(found) > 1:
        msg = f"{place} holds {' and '.join(STORED_NAMES.values())}; remove the one that does not belong there"
        raise CacheError(msg)
    return found[0]


def require_cache(place: Place) -> None:
    """Raise `CacheError` unless something that a back end keeps is there."""
    if place.folder is not None and place.folder.is_file():
        msg = f"{place} is a file; give a cache, which is a folder that `dlprobe extract` wrote"
        raise CacheError(msg)
    if place.children().isdisjoint(STORED_NAMES.values()):
        msg = f"no cache at {place}; make one with `dlprobe extract`"
        raise CacheError(msg)


__all__ = ["STORED_NAMES", "STORES", "Extent", "Store", "open_store", "recall_store", "require_cache", "store_kind"]
