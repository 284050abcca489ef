"""The Zarr v3 back end: zarr writes the metadata once, every chunk is written by us and read without zarr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dlprobe.cache.layout import FIXED_ARRAYS, ZSTD_LEVEL, Layout, require_schema
from dlprobe.cache.records import Digest
from dlprobe.cache.stores.base import Extent
from dlprobe.errors import CacheError, IdentityError
from dlprobe.spec import CacheSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dlprobe.cache.layout import ArrayLayout
    from dlprobe.cache.places import Place

FOLDER = "features.zarr"
_METADATA = "zarr.json"


class ZarrGroup:
    """A cache whose arrays are a Zarr v3 group in ``features.zarr``.

    Parameters
    ----------
    place : Place
        Of the cache.

    Raises
    ------
    CacheError
        If there is no such group, or it is not what this release writes.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.attrs: Mapping[str, Any] = self._json(_METADATA).get("attributes", {})
        require_schema(self.attrs, f"{place}/{FOLDER}")
        try:
            spec = CacheSpec.from_dict(self.attrs["cache_spec"])
            counts = [self._json(f"{name}/{_METADATA}")["shape"][0] for name in ("windows", "manifest")]
        except (KeyError, TypeError, IndexError, IdentityError) as error:
            raise self._damaged(_METADATA, str(error)) from error
        self.layout = Layout(spec, *counts)
        self._arrays = self.layout.arrays()
        codecs = place.each(self._codec, self._arrays.values())
        self.packed = frozenset(name for name, codec in zip(self._arrays, codecs, strict=True) if codec == "zstd")

    @classmethod
    def create(
        cls, place: Place, layout: Layout, attrs: Mapping[str, Any], fixed: Mapping[str, bytes], *, compress: bool
    ) -> ZarrGroup:
        """Make the group with its fixed arrays, durable; in a folder, whole or not at all."""
        objects = _metadata(layout, attrs, set(layout.block_arrays) if compress else {"regions"})
        for name, data in fixed.items():
            objects[f"{name}/{_key(layout.arrays()[name], 0)}"] = data
        place.write_group(FOLDER, objects)
        return cls(place)

    def fixed(self, name: str) -> bytes:
        """Return the bytes of an array that belongs to no block."""
        array = self._arrays[name]
        key = f"{name}/{_key(array, 0)}"
        try:
            data = self.place.read(f"{FOLDER}/{key}")
        except FileNotFoundError:
            data = b""
        if len(data) != array.chunk_bytes:
            raise self._damaged(key, f"{len(data)} bytes, expected {array.chunk_bytes}")
        return data

    def fixed_names(self) -> list[str]:
        """Return the names of all metadata and of the fixed arrays, relative to the cache."""
        names = [_METADATA]
        for array in self._arrays.values():
            names.append(f"{array.name}/{_METADATA}")
            if array.name in FIXED_ARRAYS:
                names.append(f"{array.name}/{_key(array, 0)}")
        return [f"{FOLDER}/{name}" for name in names]

    def extent(self, name: str, block: int) -> Extent:
        """Return the object of a chunk."""
        return Extent(f"{FOLDER}/{name}/{_key(self._arrays[name], block)}", 0, alone=True)

    def put(self, name: str, block: int, data: memoryview) -> Digest:
        """Write the object of a chunk durably."""
        stored = memoryview(_zstd().encode(data)) if name in self.packed else data
        self.place.write(self.extent(name, block).name, stored)
        return Digest.of(stored)

    def decode(self, name: str, data: bytes | memoryview) -> bytes:
        """Decompress a chunk; raise `CacheError` if it is damaged."""
        try:
            found = bytes(_zstd().decode(data))
        except RuntimeError as error:
            raise self._damaged(name, str(error)) from error
        if len(found) != (expected := self._arrays[name].chunk_bytes):
            raise self._damaged(name, f"{len(found)} bytes, expected {expected}")
        return found

    def drop(self, blocks: Collection[int]) -> None:
        """Remove the chunks of blocks, as far as they are there."""
        for name in self.layout.block_arrays:
            found = self.place.children(f"{FOLDER}/{name}")
            for key in (_key(self._arrays[name], block) for block in blocks):
                if key in found:
                    self.place.remove(f"{FOLDER}/{name}/{key}")

    def _codec(self, array: ArrayLayout) -> str:
        """Return the last codec of an array; raise `CacheError` if its metadata contradict the identity."""
        key = f"{array.name}/{_METADATA}"
        found = self._json(key)
        expected = {
            "shape": list(array.shape),
            "data_type": array.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.chunk)}},
        }
        for field, value in expected.items():
            if found.get(field) != value:
                raise self._damaged(key, f"{field} is {found.get(field)}, expected {value}")
        names = [codec.get("name") if isinstance(codec, dict) else codec for codec in found.get("codecs", ())]
        if names not in (["bytes"], ["bytes", "zstd"]):
            raise self._damaged(key, f"codecs are {names}")
        return str(names[-1])

    def _json(self, key: str) -> dict[str, Any]:
        try:
            found = json.loads(self.place.read(f"{FOLDER}/{key}"))
        except (OSError, ValueError) as error:
            raise self._damaged(key, str(error)) from error
        if not isinstance(found, dict):
            raise self._damaged(key, "not a JSON object")
        return found

    def _damaged(self, key: str, reason: str) -> CacheError:
        where = f"{self.place}/{FOLDER}/{key}"
        return CacheError(f"{where} is damaged ({reason}); run `dlprobe cache verify`")


def _key(array: ArrayLayout, block: int) -> str:
    return ".".join(["c", str(block), *["0"] * (len(array.chunk) - 1)])


def _zstd() -> Any:
    from numcodecs.zstd import Zstd

    return Zstd(level=ZSTD_LEVEL)


def _metadata(layout: Layout, attrs: Mapping[str, Any], packed: set[str]) -> dict[str, bytes]:
    """Let zarr write the metadata of the group into memory: the same bytes go to every place."""
    import zarr
    from zarr.codecs import ZstdCodec
    from zarr.storage import MemoryStore

    found: dict[str, Any] = {}
    group = zarr.create_group(store=MemoryStore(found), zarr_format=3, attributes=dict(attrs))
    for array in layout.arrays().values():
        group.create_array(
            array.name,
            shape=array.shape,
            chunks=array.chunk,
            dtype=array.dtype,
            filters=None,
            compressors=ZstdCodec(level=ZSTD_LEVEL) if array.name in packed else None,
            fill_value=0,
            dimension_names=array.dims,
            chunk_key_encoding={"name": "default", "separator": "."},
        )
    return {key: value.to_bytes() for key, value in found.items()}
