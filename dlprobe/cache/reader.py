"""Read a cache: its tables at once, its embeddings window by window or as a stream of blocks."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dlprobe.cache.buffers import Buffers
from dlprobe.cache.layout import WINDOW_FIELDS, record_name, recorded_blocks
from dlprobe.cache.places import open_place
from dlprobe.cache.records import BlockRecord, Reject, read_block_record
from dlprobe.cache.stores import open_store
from dlprobe.cache.stores.codecs import dequantise
from dlprobe.cache.stores.gather import runs, scatter
from dlprobe.cache.stream import stream
from dlprobe.data.manifest import Manifest
from dlprobe.errors import CacheError, DataError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from dlprobe.cache.care.verify import Damage
    from dlprobe.cache.layout import ArrayLayout
    from dlprobe.cache.places import Opened
    from dlprobe.cache.stores import Store
    from dlprobe.spec import CacheSpec, ModelSpec, Pins

    _Runs = list[tuple[int, NDArray[np.int64]]]
    Take = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]

_JOINED = ("path", "variant", "source_id", "donor_id", "generator", "mask_kind", "split", "dataset")
#: Values of a column that a message lists at most.
_LISTED = 12
#: Embeddings and coverage of the block being read, the one read ahead, and one still in the caller's hands.
_MOST_BUFFERS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some windows of a cache.

    Attributes
    ----------
    embeddings : ndarray, shape (n, rows, cols, width)
        In the stored type; float32 from a cache in int8.
    coverage : ndarray of uint8, shape (n, rows, cols, 4)
        PRISTINE, AUTOENCODED, INPAINTED, VOID in 255ths.
    windows : ndarray of int64, shape (n,)
        Rows of `FeatureCache.windows`.
    cls : ndarray, shape (n, width), or None
        CLS token of each window, of the same layers and norm, where the cache has them (``cache_spec.cls``): in the
        stored type, float32 from a cache in int8.
    """

    embeddings: NDArray[Any]
    coverage: NDArray[np.uint8]
    windows: NDArray[np.int64]
    cls: NDArray[Any] | None = None

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.windows)


class FeatureCache:
    """A cache opened for reading; made by `open_cache`.

    It holds no open file and no thread of its own, so that it may be used from several threads and after a fork, and
    pickled to other processes. It keeps the memory of a few arrays that it handed out, to use it again when the caller
    has dropped them.

    Attributes
    ----------
    path : Path or str
        Folder of the cache, or its URL.
    cache_spec, model_spec : CacheSpec, ModelSpec
        Its two identities.
    pins : Pins
        How it is computed.
    origin : dict of str to str
        Where the backbone's weights came from (``weights``), their ``licence``, and what they were ``trained_on``.
    software : dict of str to str
        Versions of the libraries that began it.
    shape : tuple of int
        Windows, rows, columns, width.
    n_blocks : int
        Number of blocks.
    store : Store
        The back end.
    """

    def __init__(self, path: str | os.PathLike[str], *, store: Store | None = None) -> None:
        self.place = open_place(path)
        self.path: Path | str = self.place.path
        self.store = store or open_store(self.place)
        self._layout = self.store.layout
        self._arrays = self._layout.arrays()
        self.cache_spec: CacheSpec = self._layout.spec
        self.model_spec: ModelSpec = self.cache_spec.model
        self.pins: Pins = self.store.attrs.pins
        self.software: dict[str, str] = dict(self.store.attrs.software)
        self.origin: dict[str, str] = dict(self.store.attrs.origin)
        self.n_blocks = self._layout.n_blocks
        rows, cols, width = self._arrays["embeddings"].shape[1:]
        self.shape: tuple[int, int, int, int] = (self._layout.n_windows, rows, cols, width)
        self._records: dict[int, BlockRecord] = {}
        self._buffers = Buffers(_MOST_BUFFERS)

    def __reduce__(self) -> tuple[type[FeatureCache], tuple[Path | str]]:
        """Send the path: the other side opens the cache itself."""
        return FeatureCache, (self.path,)

    def __len__(self) -> int:
        """Return the number of windows."""
        return self.shape[0]

    @cached_property
    def manifest(self) -> Manifest:
        """The table of images, with the root "."."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(pa.BufferReader(self.store.fixed("manifest")))
            return Manifest(table.to_pandas(), ".")
        except (pa.ArrowException, OSError, ValueError, DataError) as error:
            msg = f"the manifest in {self.path} is damaged; run `dlprobe cache verify {self.path}`"
            raise CacheError(msg) from error

    @property
    def missing_blocks(self) -> list[int]:
        """Blocks that were not recorded yet."""
        recorded = recorded_blocks(self.place)
        return [block for block in range(self.n_blocks) if block not in recorded]

    @property
    def absent(self) -> list[str]:
        """Names of metadata, fixed arrays and chunks of all blocks, recorded or not, that are not there."""
        chunks = ((name, block) for name in self._layout.block_arrays for block in range(self.n_blocks))
        named = {self.store.extent(*chunk).name for chunk in chunks}
        named.update(name.partition("#")[0] for name in self.store.fixed_names())
        folders = {PurePosixPath(name).parent for name in named}
        there = {str(folder / name) for folder in folders for name in self.place.children(str(folder))}
        return sorted(named - there)

    @property
    def complete(self) -> bool:
        """Whether every block was recorded."""
        return not self.missing_blocks

    @property
    def rejects(self) -> tuple[Reject, ...]:
        """Images and windows that could not be embedded, as far as blocks were recorded."""
        missing = set(self.missing_blocks)
        recorded = [block for block in range(self.n_blocks) if block not in missing]
        return tuple(reject for record in self.place.each(self.record, recorded) for reject in record.rejects)

    @property
    def image_hashes(self) -> dict[str, str]:
        """The sha256 of each image file that was embedded, by path, as far as blocks were recorded."""
        records = self.place.each(self.record, sorted(recorded_blocks(self.place) & set(range(self.n_blocks))))
        return {path: found for record in records for path, found in record.images.items()}

    @property
    def windows(self) -> pd.DataFrame:
        """The table of windows, by index.

        Columns ``image`` (row of the manifest), ``view``, ``y``, ``x``, ``h``, ``w``, ``block``, ``stored`` (its block
        was recorded), ``rejected``, and of the manifest ``path``, ``variant``, ``source_id``, ``donor_id``,
        ``generator``, ``mask_kind``, ``split`` and ``dataset``.
        """
        frame = self._windows.copy()
        frame["stored"] = ~frame["block"].isin(self.missing_blocks)
        frame["rejected"] = False
        void = [window for reject in self.rejects for window in reject.windows]
        frame.loc[void, "rejected"] = True
        return frame

    @cached_property
    def _windows(self) -> pd.DataFrame:
        array = self._arrays["windows"]
        fields = np.frombuffer(self.store.fixed("windows"), array.dtype).reshape(array.shape)
        images = fields[:, WINDOW_FIELDS.index("image")]
        if images.size and not 0 <= images.min() <= images.max() < len(self.manifest):
            msg = f"the windows table in {self.path} is damaged; run `dlprobe cache verify {self.path}`"
            raise CacheError(msg)
        return window_table(fields, self.manifest, self.cache_spec.block_windows)

    @property
    def reference(self) -> NDArray[np.float32]:
        """Embedding of the reference window, shape (rows, cols, width)."""
        array = self._arrays["reference"]
        return np.frombuffer(self.store.fixed("reference"), array.dtype).reshape(array.shape)

    def require_complete(self) -> None:
        """Raise `CacheError` unless every block was recorded and every object that should be there is.

        What is read is looked at when it is read; this finds what a reader of some arrays alone would not miss.
        """
        if missing := self.missing_blocks:
            msg = (
                f"{self.path} is incomplete: {len(missing)} of {self.n_blocks} blocks are missing "
                f"(first: {missing[0]}); run the same `dlprobe extract` again to finish it, "
                "or fit on what is there (`dlprobe fit --allow-partial`)"
            )
            raise CacheError(msg)
        if absent := self.absent:
            more = f" and {len(absent) - 1} more are" if len(absent) > 1 else " is"
            msg = f"{self.place}/{absent[0]}{more} missing; run `dlprobe cache repair` with the manifest of this cache"
            raise CacheError(msg)

    def read(self, window_indices: ArrayLike) -> Block:
        """Read windows in the order given, each straight into its place.

        Parameters
        ----------
        window_indices : array_like of int, shape (n,)
            Rows of `windows`, in any order, repeats allowed.

        Raises
        ------
        CacheError
            If a window was rejected, or its block is missing or damaged.
        """
        indices = self._indices(window_indices)
        self._refuse_rejected(indices)
        take = self._buffers.take
        embeddings = self._gather("embeddings", indices, take)
        if self.cache_spec.dtype == "int8":
            out = take(embeddings.shape, np.dtype(np.float32))
            embeddings = dequantise(embeddings, self._gather("scale", indices), out)
        cls = self._gather("cls", indices) if self.cache_spec.cls else None
        return Block(embeddings, self._gather("coverage", indices, take), indices, cls)

    def blocks(
        self,
        seed: int | None = None,
        split: str | None = None,
        *,
        windows: ArrayLike | None = None,
        buffer_blocks: int = 2,
    ) -> Iterator[Block]:
        """Iterate once over the windows that were not rejected.

        A thread reads ahead; memory is bounded by two blocks, or by twice the shuffle buffer where chunks are
        compressed or lie on S3.

        Parameters
        ----------
        seed : int, optional
            Shuffle: blocks are taken in an order drawn from the seed, and windows mixed within a buffer. Without it,
            windows come in stored order, one block at a time.
        split : str, optional
            Only windows of images in this split of the manifest.
        windows : array_like of bool, shape (n_windows,), or of int, optional
            Only these windows.
        buffer_blocks : int
            Blocks in the shuffle buffer.

        Raises
        ------
        CacheError
            If nothing is selected, or a selected window lies in a missing or damaged block. A missing one is reported
            before the first block is handed out.
        """
        selected = self.select(split, windows)
        for block in np.unique(selected // self.cache_spec.block_windows):
            self.record(int(block))
        return stream(
            self.read,
            selected,
            self.cache_spec.block_windows,
            seed=seed,
            buffer_blocks=buffer_blocks,
            block=Block,
            by_group="embeddings" in self.store.packed or self.place.folder is None,
        )

    def moments(self, window_indices: ArrayLike | None = None) -> NDArray[np.float32]:
        """Return sums and sums of squares over each window's patches, shape (n, 2, width).

        They are zero for rejected windows.
        """
        return self._gather("moments", self._indices(window_indices))

    def coverage(self, window_indices: ArrayLike | None = None) -> NDArray[np.uint8]:
        """Return the coverage of windows, shape (n, rows, cols, 4); all VOID for rejected windows."""
        return self._gather("coverage", self._indices(window_indices))

    def regions(self, window_indices: ArrayLike | None = None) -> NDArray[np.uint8]:
        """Return the region maps of windows, shape (n, window_px, window_px); all VOID for rejected windows."""
        return self._gather("regions", self._indices(window_indices))

    def stored(self, name: str, window_indices: ArrayLike) -> NDArray[Any]:
        """Return rows of a block array as they are stored, such as codes and ``scale`` of int8 embeddings."""
        return self._gather(name, self._indices(window_indices))

    def verify(self) -> list[Damage]:
        """Compare every stored byte with its checksum; return what is damaged or missing."""
        from dlprobe.cache.care.verify import verify

        return verify(self.path)

    def images_of_block(self, block: int) -> tuple[str, ...]:
        """Return the paths of the images that a block was made from, in its order."""
        return tuple(self._windows.loc[self._windows["block"] == block, "path"].unique())

    def record(self, block: int) -> BlockRecord:
        """Return the record of a block; raise `CacheError` if it is missing, damaged or of another cache."""
        if block not in self._records:
            record = read_block_record(self.place, block)
            if (record.block, record.cache) != (block, self.cache_spec.fingerprint):
                msg = (
                    f"record {self.place}/{record_name(block)} is of another block or cache; "
                    f"run `dlprobe cache verify {self.path}`"
                )
                raise CacheError(msg)
            self._records[block] = record
        return self._records[block]

    def _indices(self, window_indices: ArrayLike | None) -> NDArray[np.int64]:
        if window_indices is None:
            return np.arange(len(self))
        indices = np.asarray(window_indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        indices = indices.astype(np.int64, casting="safe") if indices.size else np.empty(0, np.int64)
        if (outside := indices[(indices < 0) | (indices >= len(self))]).size:
            msg = f"window {outside[0]} asked of {self.path}, which has {len(self)}; give indices into .windows"
            raise CacheError(msg)
        return indices

    def select(
        self,
        split: str | None = None,
        windows: ArrayLike | None = None,
        where: Mapping[str, Collection[str]] | None = None,
    ) -> NDArray[np.int64]:
        """Return the windows that were not rejected and meet every condition, ascending.

        Parameters
        ----------
        split, windows
            As for `blocks`.
        where : mapping of str to collection of str, optional
            For columns of `windows`, such as ``variant``, the values that are wanted.

        Raises
        ------
        CacheError
            If there are none, a value is none of its column's, or there is no such column.
        """
        table, wanted = self.windows, dict(where or {})
        if split is not None:
            wanted["split"] = [split]
        chosen = np.zeros(len(self), bool)
        chosen[self._indices(windows)] = True
        chosen &= ~table["rejected"].to_numpy()
        for name, values in wanted.items():
            self._require_values(table, name, values)
            chosen &= table[name].isin(values).to_numpy()
        if not chosen.any():
            asked = " and ".join(f"{name} {', '.join(values)}" for name, values in wanted.items())
            msg = f"{self.path} has no windows{f' of {asked}' if asked else ''} to read; ask for others"
            raise CacheError(msg)
        return np.flatnonzero(chosen)

    def _require_values(self, table: pd.DataFrame, name: str, values: Collection[str]) -> None:
        if name not in _JOINED:
            msg = f"windows are not chosen by {name!r}; write one of {', '.join(_JOINED)}"
            raise CacheError(msg)
        there = sorted(table[name].unique())
        if unknown := sorted(set(values) - set(there)):
            listed = ", ".join(map(repr, there[:_LISTED])) + (", ..." if len(there) > _LISTED else "")
            msg = f"{self.path} has no windows of {name} {unknown[0]!r}; there are {listed}"
            raise CacheError(msg)

    def _refuse_rejected(self, indices: NDArray[np.int64]) -> None:
        wanted = set(indices.tolist())
        for block in np.unique(indices // self.cache_spec.block_windows):
            for reject in self.record(int(block)).rejects:
                if found := wanted.intersection(reject.windows):
                    why = f"{reject.path}: {reject.reason}"
                    msg = f"window {min(found)} of {self.path} was rejected ({why}); leave it out"
                    raise CacheError(msg)

    def _gather(self, name: str, indices: NDArray[np.int64], take: Take = np.empty) -> NDArray[Any]:
        array = self._arrays[name]
        out = take((len(indices), *array.chunk[1:]), array.dtype)
        read = self._unpack if name in self.store.packed else self._scatter
        parts = _by_block(indices, self.cache_spec.block_windows)
        for _ in self.place.each(lambda block: read(array, block, parts[block], out), parts, out.nbytes):
            pass
        return out

    def _scatter(self, array: ArrayLayout, block: int, parts: _Runs, out: NDArray[Any]) -> None:
        rows = out.data.cast("B")
        with self._open_chunk(array.name, block) as (opened, offset):
            for first, slots in parts:
                scatter(opened, offset + first * array.row_bytes, rows, array.row_bytes, slots)

    def _unpack(self, array: ArrayLayout, block: int, parts: _Runs, out: NDArray[Any]) -> None:
        with self._open_chunk(array.name, block) as (opened, offset):
            stored = opened.read(offset, self.record(block).chunks[array.name].length)
        chunk = np.frombuffer(self.store.decode(array.name, stored), array.dtype).reshape(array.chunk)
        for first, slots in parts:
            out[slots] = chunk[first : first + len(slots)]

    @contextmanager
    def _open_chunk(self, name: str, block: int) -> Iterator[tuple[Opened, int]]:
        """Open the object that a chunk lies in, at the chunk's offset, and see that all of it is there."""
        expected = self.record(block).chunks[name].length
        where, offset, alone = self.store.extent(name, block)
        msg = f"{self.place}/{where} (block {block}) is missing or has another length; run `dlprobe cache repair`"
        try:
            with self.place.open(where) as opened:
                if (opened.size == expected) if alone else (opened.size >= offset + expected):
                    yield opened, offset
                    return
        except (FileNotFoundError, EOFError) as error:
            raise CacheError(msg) from error
        raise CacheError(msg)


def open_cache(path: str | os.PathLike[str], mode: str = "r") -> FeatureCache:
    """Open a cache.

    An incomplete cache opens too (see `FeatureCache.complete`); reading a missing block of it raises.

    Parameters
    ----------
    path : path
        Folder of the cache, or ``s3://BUCKET/PREFIX``.
    mode : {"r"}
        Caches are written by `dlprobe.extraction.extract` alone.

    Raises
    ------
    CacheError
        If there is no cache, it is of another release, or its metadata are damaged.
    """
    if mode != "r":
        msg = f"mode is {mode!r}; a cache is opened with 'r', and written by `dlprobe extract` alone"
        raise CacheError(msg)
    return FeatureCache(path)


def window_table(fields: NDArray[np.int32], manifest: Manifest, block_windows: int) -> pd.DataFrame:
    """Return the windows table as a frame: its fields, the block of each window, and what the manifest says of it.

    Parameters
    ----------
    fields : ndarray of int32, shape (n, 6)
        Columns as in `dlprobe.cache.layout.WINDOW_FIELDS`.
    manifest : Manifest
        Whose rows the first field counts.
    block_windows : int
        Windows in a block.
    """
    frame = pd.DataFrame(fields, columns=list(WINDOW_FIELDS))
    frame["block"] = np.arange(len(frame)) // block_windows
    images = manifest.frame[list(_JOINED)].iloc[frame["image"].to_numpy()].reset_index(drop=True)
    return pd.concat([frame, images], axis="columns")


def _by_block(indices: NDArray[np.int64], block_windows: int) -> dict[int, _Runs]:
    parts: dict[int, _Runs] = {}
    for block, first, positions in runs(indices, block_windows):
        parts.setdefault(block, []).append((first, positions))
    return parts
