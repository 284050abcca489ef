"""Hand embeddings to other programs: NumPy files or a Parquet table of patches."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from dlprobe.cache.places import open_place
from dlprobe.cache.reader import FeatureCache
from dlprobe.errors import CacheError, OutputError
from dlprobe.publish import is_full, publish, sigterm_raises

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa
    from numpy.typing import ArrayLike, NDArray

    from dlprobe.cache.reader import Block

Format = Literal["npy", "parquet"]
FORMATS = ("npy", "parquet")
_COVERAGE = ("pristine", "autoencoded", "inpainted", "void")


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: Format = "npy",  # noqa: A002 (the word of pandas and numpy for it)
    split: str | None = None,
    windows: ArrayLike | None = None,
    where: Mapping[str, Collection[str]] | None = None,
) -> int:
    """Write a window table and embeddings, in bounded memory; the folder is there whole or not at all.

    Parameters
    ----------
    source : path
        Folder of a cache.
    out : path
        Folder to make. It gets ``windows.parquet``, the rows of `FeatureCache.windows` that were chosen with their
        index as ``window``, and either ``embeddings.npy`` (n, rows, cols, width) and ``coverage.npy``
        (n, rows, cols, 4) in the same order, or ``patches.parquet``, one row a patch. Where the cache has CLS tokens,
        ``cls.npy`` (n, width) is beside the former, and a column ``cls`` in the window table of the latter.
    format : {"npy", "parquet"}
        Which of them.
    split, windows, where
        Which windows, as for `FeatureCache.select`.

    Returns
    -------
    int
        Number of windows.

    Raises
    ------
    OutputError
        If `out` exists or is no folder, or the disk is full.
    CacheError
        If nothing is chosen, a block is missing or damaged, or there is no such format.
    """
    if format not in FORMATS:
        msg = f"no export format {format!r}; write one of {', '.join(FORMATS)}"
        raise CacheError(msg)
    if (target := (place := open_place(out)).folder) is None:
        msg = f"{place} is no folder of this machine, and exports go to a folder; choose another path"
        raise OutputError(msg)
    cache = FeatureCache(source)
    if target.exists():
        msg = f"{target} exists; choose another path to export to"
        raise OutputError(msg)
    chosen = cache.select(split, windows, where)
    target.parent.mkdir(parents=True, exist_ok=True)
    with sigterm_raises(), _full_disk_told(target), publish(target) as scratch:
        scratch.mkdir()
        table = cache.windows.iloc[chosen].drop(columns=["stored", "rejected"])
        table.insert(0, "window", chosen)
        if format == "parquet" and cache.cache_spec.cls:
            table["cls"] = list(cache.stored("cls", chosen).astype(np.float32))
        table.to_parquet(scratch / "windows.parquet", index=False)
        if format == "npy":
            _write_numpy(cache, chosen, scratch)
        else:
            _write_patches(cache, chosen, scratch / "patches.parquet")
    return len(chosen)


def _write_numpy(cache: FeatureCache, chosen: NDArray[np.int64], folder: Path) -> None:
    """Write array files front to back: memory that is mapped to a file kills the process where the disk is full."""
    shape = (len(chosen), *cache.shape[1:])
    dtype = np.dtype("float32" if cache.cache_spec.dtype == "int8" else cache.cache_spec.dtype)
    with (
        _npy(folder / "embeddings.npy", shape, dtype) as embeddings,
        _npy(folder / "coverage.npy", (*shape[:3], len(_COVERAGE)), np.dtype(np.uint8)) as coverage,
    ):
        for block in cache.blocks(windows=chosen):
            embeddings.write(block.embeddings.data.cast("B"))
            coverage.write(block.coverage.data.cast("B"))
    if cache.cache_spec.cls:
        cls = cache.stored("cls", chosen)
        with _npy(folder / "cls.npy", cls.shape, cls.dtype) as file:
            file.write(cls.data.cast("B"))


@contextmanager
def _npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[BinaryIO]:
    """Begin a file of NumPy, whose content is to be written after this."""
    from numpy.lib.format import dtype_to_descr, write_array_header_1_0

    with path.open("wb") as file:
        write_array_header_1_0(file, {"descr": dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
        yield file


@contextmanager
def _full_disk_told(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        msg = f"no space is left for {target}; make room, or choose a smaller subset or another path"
        raise OutputError(msg) from error


def _write_patches(cache: FeatureCache, chosen: NDArray[np.int64], path: Path) -> None:
    import pyarrow.parquet as pq

    writer = None
    try:
        for block in cache.blocks(windows=chosen):
            table = _patches(block)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer:
            writer.close()


def _patches(block: Block) -> pa.Table:
    import pyarrow as pa

    n, rows, cols, width = block.embeddings.shape
    grid = np.indices((n, rows, cols)).reshape(3, -1)
    values = pa.array(block.embeddings.astype(np.float32).ravel())
    columns: dict[str, pa.Array | NDArray[np.generic] | pd.Series] = {
        "window": block.windows[grid[0]],
        "row": grid[1].astype(np.int16),
        "col": grid[2].astype(np.int16),
        **dict(zip(_COVERAGE, block.coverage.reshape(-1, len(_COVERAGE)).T, strict=True)),
        "embedding": pa.FixedSizeListArray.from_arrays(values, width),
    }
    return pa.table(columns)
