"""How fast a warm cache is read, beside plain `readinto` of as many bytes in the same run.

Run as ``python benchmarks/read.py --windows 1000``. Windows are those of a ViT-B at 504 px in float16, 1.99 MB each, of
random bytes. Arms take turns, and the medians of their rates are compared, so that a busy machine hurts all alike.
Every arm ends with all its bytes in buffers that the caller sees; the baseline reuses one buffer of a block.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import zarr

from dlprobe.cache import CachePlan, FeatureCache, convert, open_cache, open_writer
from dlprobe.cache.layout import manifest_bytes
from dlprobe.data import Manifest
from dlprobe.spec import CacheSpec, ModelSpec, Pins

if TYPE_CHECKING:
    from collections.abc import Callable

GRID, WIDTH, PX = 36, 768, 504


def build(path: Path, windows: int) -> FeatureCache:
    """Write a cache of random embeddings in blocks of 64 windows, as extraction would choose them."""
    rows = [{"path": f"{i:06d}.png", "variant": "real", "source_id": str(i)} for i in range(windows)]
    manifest = Manifest.from_records([{**row, "width": PX, "height": PX} for row in rows], path)
    model = ModelSpec(
        backbone="random:bytes",
        implementation="random",
        weights_sha256="0",
        layers=(),
        norm=True,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize_rule="none",
        window_px=PX,
        patch_px=14,
        width=WIDTH,
    )
    spec = CacheSpec(
        model=model,
        tiling="spread",
        stride_px=PX,
        views=1,
        degrade=None,
        seed=0,
        dtype="float16",
        block_windows=64,
        manifest_sha256=manifest.sha256,
    )
    table = np.zeros((windows, 6), np.int32)
    table[:, 0], table[:, 4:] = np.arange(windows), PX
    plan = CachePlan(
        spec=spec,
        pins=Pins(engine="none", precision="float16", device="cpu", batch_size=1),
        windows=table,
        manifest=manifest_bytes(manifest),
        reference=np.zeros((GRID, GRID, WIDTH), np.float32),
        software={},
        origin={},
    )
    rng = np.random.default_rng(0)
    with open_writer(path, plan) as writer:
        arrays = writer.layout.arrays()
        chunks = {name: np.zeros(arrays[name].chunk, arrays[name].dtype) for name in writer.layout.block_arrays}
        for block in writer.missing:
            chunks["embeddings"][:] = rng.integers(0, 30000, chunks["embeddings"].shape, np.uint16).view(np.float16)
            writer.write_block(block, chunks, {}, ())
    return open_cache(path)


def readinto(cache: FeatureCache) -> int:
    """Read every chunk file of the embeddings, and of the coverage, into one buffer."""
    total = 0
    buffers = {name: np.empty(cache.store.layout.arrays()[name].chunk_bytes, np.uint8) for name in NAMES}
    for block in range(cache.n_blocks):
        for name in NAMES:
            with (cache.path / cache.store.extent(name, block).name).open("rb", buffering=0) as file:
                total += file.readinto(buffers[name])
    return total


def epoch(cache: FeatureCache, seed: int | None) -> int:
    """Stream the cache once."""
    return sum(block.embeddings.nbytes + block.coverage.nbytes for block in cache.blocks(seed=seed))


def random_windows(cache: FeatureCache, order: np.ndarray) -> int:
    """Read all windows in random order, 32 at a time."""
    total = 0
    for start in range(0, len(order), 32):
        block = cache.read(order[start : start + 32])
        total += block.embeddings.nbytes + block.coverage.nbytes
    return total


def one_by_one(rows: zarr.Array, order: np.ndarray) -> int:
    """Read single windows through zarr-python."""
    return sum(rows[int(window)].nbytes for window in order)


def fancy(rows: h5py.Dataset, order: np.ndarray) -> int:
    """Read 32 windows at a time by h5py's own fancy indexing, which wants them ascending."""
    return sum(rows[np.sort(order[start : start + 32])].nbytes for start in range(0, len(order), 32))


def sharded_zarr(cache: FeatureCache, path: Path) -> zarr.Array:
    """Return the same embeddings in a sharded array, a window a chunk, a block a shard."""
    rows = min(len(cache), 2 * cache.cache_spec.block_windows)
    shape, chunk = (rows, GRID, GRID, WIDTH), (1, GRID, GRID, WIDTH)
    shard = (cache.cache_spec.block_windows, GRID, GRID, WIDTH)
    array = zarr.create_array(path, shape=shape, chunks=chunk, shards=shard, dtype="float16", compressors=None)
    array[:] = cache.read(np.arange(rows)).embeddings
    return array


NAMES = ("embeddings", "coverage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="Where to write some gigabytes; the system's own by default.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        cache = build(Path(folder) / "zarr", given.windows)
        hdf5 = convert(cache.path, Path(folder) / "hdf5", store="hdf5")
        sharded = sharded_zarr(cache, Path(folder) / "sharded.zarr")
        rng = np.random.default_rng(1)
        order = rng.permutation(len(cache))
        few = rng.permutation(sharded.shape[0])[:40]
        file = h5py.File(hdf5.path / "features.h5")
        arms: dict[str, Callable[[], int]] = {
            "readinto, one buffer (baseline)": lambda: readinto(cache),
            "epoch, stored order": lambda: epoch(cache, None),
            "epoch, shuffled": lambda: epoch(cache, 0),
            "random windows, 32 at a time": lambda: random_windows(cache, order),
            "HDF5: epoch, shuffled": lambda: epoch(hdf5, 0),
            "HDF5: random windows, 32 at a time": lambda: random_windows(hdf5, order),
            "zarr-python, sharded, one at a time": lambda: one_by_one(sharded, few),
            "h5py, fancy indexing, 32 at a time": lambda: fancy(file["embeddings"], few),
        }
        rates: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(given.repeats + 1):
            for name, arm in arms.items():
                start = time.perf_counter()
                moved = arm()
                rates[name].append(moved / (time.perf_counter() - start) / 1e9)
        file.close()
    base = statistics.median(rates["readinto, one buffer (baseline)"][1:])
    print(f"{given.windows} windows, {os.cpu_count()} cores, Python {sys.version.split()[0]}, zarr {zarr.__version__}")
    print(f"{'arm':38} {'GB/s':>6} {'ratio':>6}")
    for name, found in rates.items():
        median = statistics.median(found[1:])  # the first turn warms up
        print(f"{name:38} {median:6.2f} {median / base:6.2f}")


if __name__ == "__main__":
    main()
