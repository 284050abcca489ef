"""The Zarr v3 back end: zarr writes the metadata once, every chunk file is written by us and read without zarr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dlprobe.cache.layout import FIXED_ARRAYS, ZSTD_LEVEL, Layout, require_schema
from dlprobe.cache.records import Digest
from dlprobe.cache.stores.base import Extent
from dlprobe.errors import CacheError, IdentityError
from dlprobe.publish import fsync, publish
from dlprobe.spec import CacheSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dlprobe.cache.layout import ArrayLayout

FOLDER = "features.zarr"
_METADATA = "zarr.json"


class ZarrFolder:
    """A cache whose arrays are a Zarr v3 group in ``features.zarr``.

    Parameters
    ----------
    root : Path
        Folder of the cache.

    Raises
    ------
    CacheError
        If there is no such group, or it is not what this release writes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / FOLDER
        self.attrs: Mapping[str, Any] = _read_json(self.folder / _METADATA).get("attributes", {})
        require_schema(self.attrs, self.folder)
        try:
            spec = CacheSpec.from_dict(self.attrs["cache_spec"])
            counts = [_read_json(self.folder / name / _METADATA)["shape"][0] for name in ("windows", "manifest")]
        except (KeyError, TypeError, IndexError, IdentityError) as error:
            raise _damaged(self.folder, str(error)) from error
        self.layout = Layout(spec, *counts)
        self._arrays = self.layout.arrays()
        self.packed = frozenset(
            array.name
            for array in self._arrays.values()
            if _require_metadata(self.folder / array.name / _METADATA, array)["codecs"][-1]["name"] == "zstd"
        )

    @classmethod
    def create(
        cls, root: Path, layout: Layout, attrs: Mapping[str, Any], fixed: Mapping[str, bytes], *, compress: bool
    ) -> ZarrFolder:
        """Make the group with its fixed arrays, whole or not at all, and durable."""
        packed = set(layout.block_arrays) if compress else {"regions"}
        with publish(root / FOLDER, durable=True) as scratch:
            _write_metadata(scratch, layout, attrs, packed)
            for name, data in fixed.items():
                (scratch / name / _key(layout.arrays()[name], 0)).write_bytes(data)
            for path in scratch.rglob("*"):
                fsync(path)
        return cls(root)

    def fixed(self, name: str) -> bytes:
        """Return the bytes of an array that belongs to no block."""
        array = self._arrays[name]
        path = self.folder / name / _key(array, 0)
        data = path.read_bytes() if path.is_file() else b""
        if len(data) != array.chunk_bytes:
            raise _damaged(path, f"{len(data)} bytes, expected {array.chunk_bytes}")
        return data

    def fixed_names(self) -> list[str]:
        """Return the names of all metadata files and of the fixed arrays, relative to the cache."""
        names = [_METADATA]
        for array in self._arrays.values():
            names.append(f"{array.name}/{_METADATA}")
            if array.name in FIXED_ARRAYS:
                names.append(f"{array.name}/{_key(array, 0)}")
        return [f"{FOLDER}/{name}" for name in names]

    def extent(self, name: str, block: int) -> Extent:
        """Return the file of a chunk."""
        return Extent(self.folder / name / _key(self._arrays[name], block), 0, alone=True)

    def put(self, name: str, block: int, data: memoryview) -> Digest:
        """Write the file of a chunk durably."""
        stored = memoryview(_zstd().encode(data)) if name in self.packed else data
        with publish(self.extent(name, block).path, durable=True) as scratch:
            scratch.write_bytes(stored)
        return Digest.of(stored)

    def decode(self, name: str, data: bytes) -> bytes:
        """Decompress a chunk; raise `CacheError` if it is damaged."""
        try:
            found = bytes(_zstd().decode(data))
        except RuntimeError as error:
            raise _damaged(self.folder / name, str(error)) from error
        if len(found) != (expected := self._arrays[name].chunk_bytes):
            raise _damaged(self.folder / name, f"{len(found)} bytes, expected {expected}")
        return found

    def drop(self, block: int) -> None:
        """Remove the chunk files of a block."""
        for name in self.layout.block_arrays:
            self.extent(name, block).path.unlink(missing_ok=True)


def _key(array: ArrayLayout, block: int) -> str:
    return ".".join(["c", str(block), *["0"] * (len(array.chunk) - 1)])


def _zstd() -> Any:
    from numcodecs.zstd import Zstd

    return Zstd(level=ZSTD_LEVEL)


def _write_metadata(folder: Path, layout: Layout, attrs: Mapping[str, Any], packed: set[str]) -> None:
    import zarr
    from zarr.codecs import ZstdCodec

    group = zarr.create_group(store=str(folder), zarr_format=3, attributes=dict(attrs))
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


def _require_metadata(path: Path, array: ArrayLayout) -> dict[str, Any]:
    found = _read_json(path)
    expected = {
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.chunk)}},
    }
    for key, value in expected.items():
        if found.get(key) != value:
            raise _damaged(path, f"{key} is {found.get(key)}, expected {value}")
    names = [codec.get("name") if isinstance(codec, dict) else codec for codec in found.get("codecs", ())]
    if names not in (["bytes"], ["bytes", "zstd"]):
        raise _damaged(path, f"codecs are {names}")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(found, dict):
        raise _damaged(path, "not a JSON object")
    return found


def _damaged(path: Path, reason: str) -> CacheError:
    return CacheError(f"{path} is damaged ({reason}); run `dlprobe cache verify`")
