"""The HDF5 back end: contiguous datasets in one file, whose blocks are written at their offsets.

h5py makes the file once and reads its metadata; blocks are written and read without it, so that no order of writing and
no moment of a kill changes a byte.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from dlprobe.cache.layout import FIXED_ARRAYS, Attributes, Layout
from dlprobe.cache.records import Digest, recalled
from dlprobe.cache.stores.base import Extent
from dlprobe.errors import CacheError
from dlprobe.publish import publish

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import h5py

    from dlprobe.cache.layout import ArrayLayout
    from dlprobe.cache.places import Place
    from dlprobe.cache.records import RootRecord

FILE = "features.h5"
#: Datasets of at least this many bytes begin at a multiple of the page size.
_ALIGNED_BYTES, _PAGE_BYTES = 1 << 16, 4096


class Hdf5File:
    """A cache whose arrays are datasets of ``features.h5``.

    Parameters
    ----------
    place : Place
        Of the cache; a folder.
    attrs : Attributes
        What the cache says of itself.
    layout : Layout
        Its arrays.
    offsets : mapping of str to int
        Where each of them begins in the file.
    """

    def __init__(self, place: Place, attrs: Attributes, layout: Layout, offsets: Mapping[str, int]) -> None:
        self.place, self.attrs, self.layout = place, attrs, layout
        self.path = _path(place)
        self.packed: frozenset[str] = frozenset()
        self._arrays, self.offsets = layout.arrays(), offsets

    @classmethod
    def open(cls, place: Place) -> Hdf5File:
        """Read the metadata; raise `CacheError` if there is no such file, or it is not what this release writes."""
        path = _path(place)
        record, counts, found = _read_metadata(path)
        attrs = Attributes.from_record(record, str(path))
        layout = Layout(attrs.spec, *counts)
        for name, array in layout.arrays().items():
            expected = (array.shape, array.dtype.str)
            if name not in found or found[name][1:] != expected:
                raise _damaged(path, f"{name} is {found.get(name, ('missing',))[1:]}, expected {expected}")
        return cls(place, attrs, layout, {name: found[name][0] for name in layout.arrays()})

    @classmethod
    def recall(cls, place: Place, record: RootRecord) -> Hdf5File:
        """Return the file as a root record tells of it."""
        attrs, layout = recalled(place, record)
        return cls(place, attrs, layout, record.offsets)

    @classmethod
    def create(
        cls, place: Place, layout: Layout, attrs: Attributes, fixed: Mapping[str, bytes], *, compress: bool
    ) -> Hdf5File:
        """Make the file with room for every block and with its fixed arrays, whole or not at all, and durable."""
        path = _path(place)
        if compress:
            msg = f"{path} cannot be compressed: its blocks lie at fixed places; use the Zarr back end"
            raise CacheError(msg)
        with publish(path, durable=True) as scratch:
            offsets = _write_metadata(scratch, layout, attrs)
            with scratch.open("r+b") as file:
                for name, data in fixed.items():
                    file.seek(offsets[name])
                    file.write(data)
        return cls.open(place)

    def fixed(self, name: str) -> bytes:
        """Return the bytes of an array that belongs to no block."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[name])
            data = file.read(self._arrays[name].chunk_bytes)
        if len(data) != self._arrays[name].chunk_bytes:
            raise _damaged(self.path, f"{name} has {len(data)} bytes")
        return data

    def fixed_names(self) -> list[str]:
        """Return the parts of the file between, before and after the arrays that are stored block by block."""
        blocks = sorted(
            (self.offsets[name], self.offsets[name] + self.layout.n_windows * array.row_bytes)
            for name, array in self._arrays.items()
            if name not in FIXED_ARRAYS
        )
        starts = [0, *(stop for _, stop in blocks)]
        stops = [*(start for start, _ in blocks), self.path.stat().st_size]
        return [f"{FILE}#{start}-{stop}" for start, stop in zip(starts, stops, strict=True) if start < stop]

    def extent(self, name: str, block: int) -> Extent:
        """Return the place of a chunk in the file."""
        start, _ = self.layout.block_range(block)
        return Extent(FILE, self.offsets[name] + start * self._arrays[name].row_bytes, alone=False)

    def put(self, name: str, block: int, data: memoryview) -> Digest:
        """Write the windows of a chunk, without padding, to their place, and force them to the disk."""
        start, stop = self.layout.block_range(block)
        stored = data[: (stop - start) * self._arrays[name].row_bytes]
        offset = self.extent(name, block).offset
        handle = os.open(self.path, os.O_WRONLY)
        try:
            written = 0
            while written < stored.nbytes:
                written += os.pwrite(handle, stored[written:], offset + written)
            os.fsync(handle)
        finally:
            os.close(handle)
        return Digest.of(stored)

    def decode(self, name: str, data: bytes | memoryview) -> bytes:
        """Return `data`: nothing is compressed here."""
        del name
        return bytes(data)

    def drop(self, blocks: Collection[int]) -> None:
        """Leave what is there: it has no record, and its place will be written again."""


def _path(place: Place) -> Path:
    if place.folder is None:
        msg = f"{place} cannot hold HDF5, whose blocks are written into one file; use the Zarr back end"
        raise CacheError(msg)
    return place.folder / FILE


def _write_metadata(path: Path, layout: Layout, attrs: Attributes) -> dict[str, int]:
    import h5py
    import numpy as np

    with h5py.File(
        path, "w", libver="v110", alignment_threshold=_ALIGNED_BYTES, alignment_interval=_PAGE_BYTES
    ) as file:
        for key, value in sorted(attrs.record().items()):
            file.attrs[key] = np.bytes_(json.dumps(value, sort_keys=True).encode("ascii"))
        return {name: _create_dataset(file, array) for name, array in layout.arrays().items()}


def _create_dataset(file: h5py.File, array: ArrayLayout) -> int:
    import h5py

    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.CONTIGUOUS)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)
    kind, space = h5py.h5t.py_create(array.dtype), h5py.h5s.create_simple(array.shape)
    created = h5py.h5d.create(file.id, array.name.encode(), kind, space, settings)
    for axis, label in zip(h5py.Dataset(created).dims, array.dims, strict=True):
        axis.label = label
    return int(created.get_offset())


def _read_metadata(path: Path) -> tuple[dict[str, Any], tuple[int, int], dict[str, tuple[int, tuple[int, ...], str]]]:
    """Return attributes, numbers of windows and of manifest bytes, and offset, shape and type of each dataset."""
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            attrs = {key: json.loads(bytes(value)) for key, value in file.attrs.items()}
            found = {
                name: (int(item.id.get_offset() or 0), tuple(item.shape), item.dtype.str)
                for name, item in file.items()
                if isinstance(item, h5py.Dataset)
            }
            return attrs, (found["windows"][1][0], found["manifest"][1][0]), found
    except (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error


def _damaged(path: Path, reason: str) -> CacheError:
    return CacheError(f"{path} is damaged ({reason}); run `dlprobe cache verify`")
