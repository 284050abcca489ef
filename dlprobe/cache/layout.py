"""What a cache is made of: its arrays, their shapes, and the bytes of one block."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.data.manifest import Manifest
from dlprobe.data.provenance import COVERAGE_CLASSES
from dlprobe.errors import CacheError, IdentityError
from dlprobe.spec import CacheSpec, Pins, canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dlprobe.cache.places import Place
    from dlprobe.spec import ModelSpec

#: What stored data says that it is.
SCHEMA = {"kind": "dlprobe-features", "version": 1}
WINDOW_FIELDS = ("image", "view", "y", "x", "h", "w")
FIXED_ARRAYS = ("windows", "manifest", "reference")
RECORDS, LOCKS = "records", "locks"
ROOT_RECORD = f"{RECORDS}/root.json"
ZSTD_LEVEL = 3
#: Large, so that a thousand images make tens of files; small, so that three blocks in work fit into memory.
BLOCK_BYTES = 128 << 20
MOST_BLOCK_WINDOWS = 64
#: Type of stored CLS tokens by that of the embeddings: the scale of a single int8 vector would be the vector itself.
CLS_DTYPES = {"float16": "float16", "float32": "float32", "int8": "float32"}


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """One stored array: names of its axes, shape, shape of a chunk, and type."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk before compression."""
        return math.prod(self.chunk) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one step on the first axis."""
        return math.prod(self.chunk[1:]) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """All arrays of a cache, which follow from its identity and two counts.

    Parameters
    ----------
    spec : CacheSpec
        Identity of the cache.
    n_windows : int
        Number of windows.
    manifest_bytes : int
        Length of the manifest as Parquet.
    """

    spec: CacheSpec
    n_windows: int
    manifest_bytes: int

    @property
    def n_blocks(self) -> int:
        """Number of blocks; the last one may be partly padding."""
        return -(-self.n_windows // self.spec.block_windows)

    def block_range(self, block: int) -> tuple[int, int]:
        """Return the half-open range of windows in a block."""
        start = block * self.spec.block_windows
        return start, min(start + self.spec.block_windows, self.n_windows)

    @property
    def block_arrays(self) -> tuple[str, ...]:
        """Names of the arrays that are stored block by block."""
        return tuple(name for name in self.arrays() if name not in FIXED_ARRAYS)

    def arrays(self) -> dict[str, ArrayLayout]:
        """Return the arrays by name."""
        return {array.name: array for array in self._arrays()}

    def _arrays(self) -> Iterator[ArrayLayout]:
        model, grid = self.spec.model, self.spec.model.grid
        per_window: dict[str, tuple[tuple[str, ...], tuple[int, ...], str]] = {
            "embeddings": (("row", "col", "feature"), (grid, grid, model.width), self.spec.dtype),
            "coverage": (("row", "col", "class"), (grid, grid, len(COVERAGE_CLASSES)), "uint8"),
            "regions": (("y", "x"), (model.window_px, model.window_px), "uint8"),
            "moments": (("moment", "feature"), (2, model.width), "float32"),
        }
        if self.spec.dtype == "int8":
            per_window["scale"] = (("feature",), (model.width,), "float32")
        if self.spec.cls:
            per_window["cls"] = (("feature",), (model.width,), CLS_DTYPES[self.spec.dtype])
        for name, (dims, shape, dtype) in per_window.items():
            rows, chunk = (self.n_windows, *shape), (self.spec.block_windows, *shape)
            yield ArrayLayout(name, ("window", *dims), rows, chunk, np.dtype(dtype))
        fixed: dict[str, tuple[tuple[str, ...], tuple[int, ...], str]] = {
            "windows": (("window", "field"), (self.n_windows, len(WINDOW_FIELDS)), "int32"),
            "manifest": (("byte",), (self.manifest_bytes,), "uint8"),
            "reference": (("row", "col", "feature"), (grid, grid, model.width), "float32"),
        }
        for name, (dims, shape, dtype) in fixed.items():
            yield ArrayLayout(name, dims, shape, shape, np.dtype(dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What a cache says of itself.

    Parameters
    ----------
    spec : CacheSpec
        Identity of the cache.
    pins : Pins
        How it is computed.
    software : mapping of str to str
        Versions of the libraries that began it.
    origin : mapping of str to str
        Where the backbone's weights came from: ``weights``, ``licence``, ``trained_on``.
    """

    spec: CacheSpec
    pins: Pins
    software: Mapping[str, str]
    origin: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        """Return what is stored, as plain JSON values in a fixed order."""
        record = {
            "schema": SCHEMA,
            "model_fingerprint": self.spec.model.fingerprint,
            "cache_fingerprint": self.spec.fingerprint,
            "cache_spec": self.spec.record(),
            "pins": asdict(self.pins),
            "software": dict(self.software),
            "origin": dict(self.origin),
            "window_fields": list(WINDOW_FIELDS),
        }
        plain: dict[str, Any] = json.loads(canonical_json(record))
        return plain

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str) -> Attributes:
        """Rebuild from JSON; raise `CacheError` if `where` holds what another release wrote, or is damaged."""
        if record.get("schema") != SCHEMA:
            msg = (
                f"{where} holds {record.get('schema')}, this release reads {SCHEMA}; "
                "extract it again or use the release that wrote it"
            )
            raise CacheError(msg)
        try:
            found = cls(
                spec=CacheSpec.from_dict(record["cache_spec"]),
                pins=Pins(**record["pins"]),
                software=dict(record["software"]),
                origin=dict(record["origin"]),
            )
            sound = found.spec.fingerprint == record["cache_fingerprint"]
            reason = "" if sound else "its cache_spec is not that of its cache_fingerprint"
        except (KeyError, TypeError, ValueError, IdentityError) as error:
            reason = str(error)
        if reason:
            msg = f"{where} is damaged ({reason}); run `dlprobe cache verify`"
            raise CacheError(msg)
        return found


def usual_block_windows(model: ModelSpec, dtype: str, n_windows: int) -> int:
    """Return how many windows a block has unless said otherwise: of 128 MiB, at most 64, no more than there are."""
    per_window = model.grid**2 * model.width * np.dtype(dtype).itemsize
    return max(1, min(MOST_BLOCK_WINDOWS, n_windows, BLOCK_BYTES // per_window))


def record_name(block: int) -> str:
    """Return the name of the record of a block."""
    return f"{RECORDS}/{block:06d}.json"


def recorded_blocks(place: Place) -> set[int]:
    """Return the blocks that have a record."""
    names = (name.removesuffix(".json") for name in place.children(RECORDS))
    return {int(name) for name in names if name.isdecimal()}


def view_order(views: Iterable[tuple[str, int]], seed: int) -> list[int]:
    """Return the order in which views of images are laid out: a permutation, the same on every machine and release.

    A view's rank follows from the seed, the image's path and the view alone, whatever else is there.

    Parameters
    ----------
    views : iterable of (str, int)
        Path of the image, and number of the view.
    seed : int
        Of the permutation.
    """
    keys = [hashlib.sha256(f"{seed}:{path}{f':{view}' if view else ''}".encode()).digest() for path, view in views]
    return sorted(range(len(keys)), key=keys.__getitem__)


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return a manifest as Parquet, its root left out."""
    with tempfile.TemporaryDirectory(prefix="dlprobe-") as folder:
        path = Path(folder) / "manifest.parquet"
        Manifest(manifest.frame, folder).write(path)  # the root becomes "."
        return path.read_bytes()
