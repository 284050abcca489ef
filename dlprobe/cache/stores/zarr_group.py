"""The Zarr v3 back end: zarr writes the metadata once, every chunk is written by us and read without zarr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dlprobe.cache.layout import FIXED_ARRAYS, ZSTD_LEVEL, Attributes, Layout
from dlprobe.cache.records import Digest, recalled
from dlprobe.cache.stores.base import Extent
from dlprobe.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dlprobe.cache.layout import ArrayLayout
    from dlprobe.cache.places import Place
    from dlprobe.cache.records import RootRecord

FOLDER = "features.zarr"
_METADATA = "zarr.json"


class ZarrGroup:
    """A cache whose arrays are a Zarr v3 group in ``features.zarr``.

    Parameters
    ----------
    place : Place
        Of the cache.
    attrs : Attributes
        What the cache says of itself.
    layout : Layout
        Its arrays.
    """

    def __init__(self, place: Place, attrs: Attributes, layout: Layout) -> None:
        self.place, self.attrs, self.layout = place, attrs, layout
        self._arrays = layout.arrays()
        self.packed: frozenset[str] = frozenset()
        self.offsets: Mapping[str, int] = {}

    @classmethod
    def open(cls, place: Place) -> ZarrGroup:
        """Read the metadata; raise `CacheError` if there is no such group, or it is not what this release writes."""
        attrs = Attributes.from_record(_json(place, _METADATA).get("attributes", {}), f"{place}/{FOLDER}")
        try:
            counts = [_json(place, f"{name}/{_METADATA}")["shape"][0] for name in ("windows", "manifest")]
        except (KeyError, TypeError, IndexError) as error:
            raise _damaged(place, _METADATA, str(error)) from error
        found = cls(place, attrs, Layout(attrs.spec, *counts))
        codecs = place.each(found._codec, found._arrays.values())
        found.packed = frozenset(name for name, codec in zip(found._arrays, codecs, strict=True) if codec == "zstd")
        return found

    @classmethod
    def recall(cls, place: Place, record: RootRecord) -> ZarrGroup:
        """Return the group as a root record tells of it; which of its arrays are compressed is not told."""
        return cls(place, *recalled(place, record))

    @classmethod
    def create(
        cls, place: Place, layout: Layout, attrs: Attributes, fixed: Mapping[str, bytes], *, compress: bool
    ) -> ZarrGroup:
        """Make the group with its fixed arrays, durable; in a folder, whole or not at all."""
        objects = _metadata(layout, attrs, set(layout.block_arrays) if compress else {"regions"})
        for name, data in fixed.items():
            objects[f"{name}/{_key(layout.arrays()[name], 0)}"] = data
        place.write_group(FOLDER, objects)
        return cls.open(place)

    def fixed(self, name: str) -> bytes:
        """Return the bytes of an array that belongs to no block."""
        array = self._arrays[name]
        key = f"{name}/{_key(array, 0)}"
        try:
            data = self.place.read(f"{FOLDER}/{key}")
        except FileNotFoundError:
            data = b""
        if len(data) != array.chunk_bytes:
            raise _damaged(self.place, key, f"{len(data)} bytes, expected {array.chunk_bytes}")
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
            raise _damaged(self.place, name, str(error)) from error
        if len(found) != (expected := self._arrays[name].chunk_bytes):
            raise _damaged(self.place, name, f"{len(found)} bytes, expected {expected}")
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
        found = _json(self.place, key)
        expected = {
            "shape": list(array.shape),
            "data_type": array.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.chunk)}},
        }
        for field, value in expected.items():
            if found.get(field) != value:
                raise _damaged(self.place, key, f"{field} is {found.get(field)}, expected {value}")
        names = [codec.get("name") if isinstance(codec, dict) else codec for codec in found.get("codecs", ())]
        if names not in (["bytes"], ["bytes", "zstd"]):
            raise _damaged(self.place, key, f"codecs are {names}")
        return str(names[-1])


def _json(place: Place, key: str) -> dict[str, Any]:
    try:
        found = json.loads(place.read(f"{FOLDER}/{key}"))
    except (OSError, ValueError) as error:
        raise _damaged(place, key, str(error)) from error
    if not isinstance(found, dict):
        raise _damaged(place, key, "not a JSON object")
    return found


def _damaged(place: Place, key: str, reason: str) -> CacheError:
    return CacheError(f"{place}/{FOLDER}/{key} is damaged ({reason}); run `dlprobe cache verify`")


def _key(array: ArrayLayout, block: int) -> str:
    return ".".join(["c", str(block), *["0"] * (len(array.chunk) - 1)])


def _zstd() -> Any:
    from numcodecs.zstd import Zstd

    return Zstd(level=ZSTD_LEVEL)


def _metadata(layout: Layout, attrs: Attributes, packed: set[str]) -> dict[str, bytes]:
    """Let zarr write the metadata of the group into memory: the same bytes go to every place."""
    import zarr
    from zarr.codecs import ZstdCodec
    from zarr.storage import MemoryStore

    found: dict[str, Any] = {}
    group = zarr.create_group(store=MemoryStore(found), zarr_format=3, attributes=attrs.record())
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
