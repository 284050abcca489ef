"""Hand embeddings to other programs: NumPy files or a Parquet table of patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from dlprobe.cache.places import open_place
from dlprobe.cache.reader import FeatureCache
from dlprobe.errors import CacheError, OutputError
from dlprobe.publish import publish

if TYPE_CHECKING:
    import os
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
    split, windows
        Which windows, as for `FeatureCache.blocks`.

    Returns
    -------
    int
        Number of windows.

    Raises
    ------
    OutputError
        If `out` exists, or is no folder.
    CacheError
        If nothing is chosen, a block is missing or damaged, or there is no such format.
    """
    if format not in FORMATS:
        msg = f"no export format {format!r}; write one of {', '.join(FORMATS)}"
        raise CacheError(msg)
    if (target := open_place(out).folder) is None:
        msg = f"{out} is no folder of this machine, and exports go to a folder; choose another path"
        raise OutputError(msg)
    cache = FeatureCache(source)
    if target.exists():
        msg = f"{target} exists; choose another path to export to"
        raise OutputError(msg)
    chosen = cache.select(split, windows)
    target.parent.mkdir(parents=True, exist_ok=True)
    with publish(target) as scratch:
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
    from numpy.lib.format import open_memmap

    _, rows, cols, width = cache.shape
    dtype = np.float32 if cache.cache_spec.dtype == "int8" else np.dtype(cache.cache_spec.dtype)
    shape = (len(chosen), rows, cols, width)
    embeddings = open_memmap(folder / "embeddings.npy", mode="w+", dtype=dtype, shape=shape)
    coverage = open_memmap(folder / "coverage.npy", mode="w+", dtype=np.uint8, shape=(*shape[:3], len(_COVERAGE)))
    done = 0
    for block in cache.blocks(windows=chosen):
        part = slice(done, done + len(block))
        embeddings[part], coverage[part] = block.embeddings, block.coverage
        done += len(block)
    embeddings.flush()
    coverage.flush()
    if cache.cache_spec.cls:
        np.save(folder / "cls.npy", cache.stored("cls", chosen))


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
