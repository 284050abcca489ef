"""What every back end and every codec must do alike."""

import io
import threading
import time

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from dlprobe.cache import open_cache, verify
from dlprobe.cache.places import folder
from dlprobe.cache.places.folder import OpenFile
from dlprobe.errors import CacheError
from dlprobe.extraction import extract

KINDS = {
    "zarr float16": {"dtype": "float16"},
    "zarr float32": {"dtype": "float32"},
    "zarr int8": {"dtype": "int8"},
    "zarr float16 compressed": {"dtype": "float16", "compress": True},
    "zarr int8 compressed": {"dtype": "int8", "compress": True},
    "hdf5 float16": {"dtype": "float16", "store": "hdf5"},
    "hdf5 int8": {"dtype": "int8", "store": "hdf5"},
    "s3 float16": {"dtype": "float16", "s3": True},
    "s3 int8 compressed": {"dtype": "int8", "compress": True, "s3": True},
}
#: Those of which as many flips as were promised are made; the others differ from them in codecs alone.
THOROUGH = ("zarr float16", "hdf5 float16")
#: Largest error of a stored value: relative for floats, in parts of the window's largest magnitude for int8.
ERROR = {"float16": 2**-11, "float32": 1e-6, "int8": 0.51 / 127}
SETTINGS = {"stride_px": 40, "block_windows": 4}


def flips(name, promised):
    """Return how many flips to make where so many are promised; on S3 each is read back over HTTP."""
    if name in THOROUGH:
        return promised
    return 1 if KINDS[name].get("s3") else 3


@pytest.fixture(scope="module", params=KINDS, ids=lambda name: name.replace(" ", "-"))
def name(request):
    if KINDS[request.param].get("s3"):
        request.getfixturevalue("s3")
    return request.param


@pytest.fixture(scope="module")
def kind(name):
    return {key: value for key, value in KINDS[name].items() if key != "s3"}


@pytest.fixture(scope="module")
def new_path(name, tmp_path_factory):
    """Return a function that gives the path or URL of a cache to be."""

    def make(what):
        folder = tmp_path_factory.mktemp("contract") / what
        return f"s3://caches{folder}" if KINDS[name].get("s3") else folder

    return make


@pytest.fixture(scope="module")
def stored(kind, manifest, backbone, new_path):
    path = new_path("cache")
    extract(manifest, backbone, path, **SETTINGS, **kind)
    return path


@pytest.fixture
def cache(stored):
    return open_cache(stored)


@pytest.fixture
def changed(stored, new_path, objects):
    path = new_path("changed")
    before, after = objects(stored), objects(path)
    for name in before.names():
        after.write(name, before.read(name))
    return path


@pytest.fixture(scope="module")
def expected(manifest, projection):
    """Return a function that embeds the pixels of a window in float64, with numpy alone."""
    matrix = projection.Projection().matrix.numpy().astype(np.float64)

    def embed(row):
        image = Image.open(manifest.root / row["path"]).convert("RGB")
        if min(image.size) < 56:
            scale = max(1016 * 56 / 504 / np.sqrt(image.width * image.height), 56 / min(image.size))
            image = image.resize([max(56, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
        crop = np.asarray(image)[row["y"] : row["y"] + 56, row["x"] : row["x"] + 56] / 127.5 - 1.0
        patches = crop.reshape(4, 14, 4, 14, 3).transpose(0, 2, 1, 3, 4).reshape(4, 4, -1)
        return patches @ matrix

    return embed


def test_embeddings_are_those_of_the_pixels_within_the_error_of_the_codec(cache, expected):
    found = cache.read(np.arange(len(cache))).embeddings
    limit = ERROR[cache.cache_spec.dtype]
    for window, row in cache.windows.iterrows():
        truth = expected(row)
        largest = np.abs(truth).max(axis=(0, 1)) if cache.cache_spec.dtype == "int8" else np.abs(truth)
        assert (np.abs(found[window] - truth) <= limit * largest + 2e-6).all()


def test_moments_are_those_of_the_values_that_are_read(cache):
    values = cache.read(np.arange(len(cache))).embeddings.astype(np.float64).reshape(len(cache), 16, -1)
    assert_allclose(cache.moments()[:, 0], values.sum(1), rtol=1e-6, atol=1e-6)
    assert_allclose(cache.moments()[:, 1], (values**2).sum(1), rtol=1e-6)


@pytest.fixture
def side_by_side(monkeypatch):
    """Let blocks in folders be read in threads, however little is read; return the threads that have read."""
    seen = set()
    plain = OpenFile.read_into

    def read_into(self, start, views):
        seen.add(threading.current_thread().name.rpartition("_")[0])
        time.sleep(0.002)
        plain(self, start, views)

    monkeypatch.setattr(folder, "_MUCH_BYTES", 0)
    monkeypatch.setattr(OpenFile, "read_into", read_into)
    return seen


def test_blocks_read_side_by_side_are_those_read_one_after_the_other(stored, side_by_side, monkeypatch):
    shuffled = np.random.default_rng(0).permutation(len(open_cache(stored)))
    together = open_cache(stored).read(shuffled)
    if side_by_side:  # neither on S3, which has threads of its own, nor compressed, which goes through a copy
        assert side_by_side == {"dlprobe-read"}
    monkeypatch.setattr(folder, "_MUCH_BYTES", 1 << 40)
    alone = open_cache(stored).read(shuffled)
    assert_array_equal(together.embeddings, alone.embeddings)
    assert_array_equal(together.coverage, alone.coverage)


@pytest.mark.usefixtures("side_by_side")
def test_a_damaged_block_among_others_read_side_by_side_is_told(changed, objects):
    cache = open_cache(changed)
    extent = cache.store.extent("embeddings", 1)
    found = objects(changed)
    found.write(extent.name, found.read(extent.name)[: extent.offset + 5])
    with pytest.raises(CacheError, match=r"block \d+\) is missing or has another length"):
        cache.read(np.arange(len(cache)))


def test_any_order_with_repeats(cache):
    everything = cache.read(np.arange(len(cache)))
    rng = np.random.default_rng(0)
    for _ in range(10):
        indices = rng.integers(0, len(cache), rng.integers(1, 40))
        block = cache.read(indices)
        assert_array_equal(block.embeddings, everything.embeddings[indices])
        assert_array_equal(block.coverage, everything.coverage[indices])
        assert_array_equal(cache.regions(indices), cache.regions(np.arange(len(cache)))[indices])


def test_a_shuffled_stream_hands_out_every_window_once(cache):
    everything = cache.read(np.arange(len(cache)))
    blocks = list(cache.blocks(seed=0, buffer_blocks=2))
    assert sorted(np.concatenate([block.windows for block in blocks])) == list(range(len(cache)))
    for block in blocks:
        assert_array_equal(block.embeddings, everything.embeddings[block.windows])


@pytest.fixture
def again(manifest, backbone, new_path):
    """Return a function that extracts into ``again.path``."""

    def run(**settings):
        return extract(manifest, backbone, run.path, **settings)

    run.path = new_path("again")
    return run


def test_a_second_run_is_identical_byte_for_byte(stored, kind, again, tree):
    class StopError(Exception):
        pass

    def stop(done, _total):
        if done >= 8:
            raise StopError

    with pytest.raises(StopError):
        again(progress=stop, **SETTINGS, **kind)
    assert not open_cache(again.path).complete
    again(**SETTINGS, **kind)
    assert tree(again.path) == tree(stored)


def test_a_block_without_a_record_is_never_read(changed, objects):
    objects(changed).remove("records/000001.json")
    cache = open_cache(changed)
    cache.read([0, 8])
    for ask in (cache.read, cache.moments, cache.coverage, cache.regions):
        with pytest.raises(CacheError, match="no record"):
            ask([0, 5])
    [damage] = verify(changed)
    assert (damage.block, damage.file) == (1, "records/000001.json")


def test_what_is_cut_short_is_never_read(changed, objects):
    cache = open_cache(changed)
    last = cache.n_blocks - 1
    images = set(cache.images_of_block(last))
    extents = [cache.store.extent(name, last) for name in cache.record(last).chunks]
    extent = max(extents, key=lambda found: found.offset)
    name = list(cache.record(last).chunks)[extents.index(extent)]
    found = objects(changed)
    found.write(extent.name, found.read(extent.name)[: extent.offset + 5])
    ask = {"embeddings": cache.read, "scale": cache.read}.get(name) or getattr(cache, name)
    with pytest.raises(CacheError, match=f"block {last}"):
        ask([len(cache) - 1])
    [damage] = {found.images for found in verify(changed) if (found.block, found.file) == (last, extent.name)}
    assert set(damage) == images


def test_flips_in_blocks_are_all_found(changed, name, objects, flip):
    """A hundred in embeddings, ten in each other array of a block."""
    cache, found = open_cache(changed), objects(changed)
    rng = np.random.default_rng(1)
    for array in cache.record(0).chunks:
        for _ in range(flips(name, 100 if array == "embeddings" else 10)):
            block = int(rng.integers(cache.n_blocks))
            extent, length = cache.store.extent(array, block), cache.record(block).chunks[array].length
            position = extent.offset + int(rng.integers(length))
            flip(found, extent.name, position)
            [damage] = verify(changed)
            assert (damage.block, damage.file) == (block, extent.name)
            assert set(damage.images) == set(cache.windows["path"][cache.windows["block"] == block])
            flip(found, extent.name, position)
    assert verify(changed) == []


def test_flips_in_padding_are_all_found(changed, name, objects, flip):
    cache, found = open_cache(changed), objects(changed)
    last = cache.n_blocks - 1
    start, stop = cache.store.layout.block_range(last)
    rng = np.random.default_rng(3)
    for array, layout in cache.store.layout.arrays().items():
        if array not in cache.record(last).chunks or array in cache.store.packed:
            continue
        extent, digest = cache.store.extent(array, last), cache.record(last).chunks[array]
        data = (stop - start) * layout.row_bytes
        if not extent.alone:  # HDF5 stores none
            assert digest.length == data
            continue
        assert digest.length == layout.chunk_bytes > data
        for position in rng.integers(data, digest.length, flips(name, 10)).tolist():
            flip(found, extent.name, position)
            assert [(damage.block, damage.file) for damage in verify(changed)] == [(last, extent.name)]
            flip(found, extent.name, position)


def test_flips_in_everything_else_are_found(changed, name, objects, flip):
    """Ten in each piece of metadata, windows, manifest and reference, and ten in each record; see `flips`."""
    import json

    found, rng = objects(changed), np.random.default_rng(2)
    count = flips(name, 10)
    for part, digest in json.loads(found.read("records/root.json"))["files"].items():
        file, _, span = part.partition("#")
        start = int(span.split("-")[0]) if span else 0
        for position in (start + rng.integers(0, digest["length"], count)).tolist():
            flip(found, file, position)
            assert part in [damage.file for damage in verify(changed)]
            flip(found, file, position)
    for record in [file for file in found.names() if file.startswith("records/")]:
        for position in rng.integers(0, len(found.read(record)), count).tolist():
            flip(found, record, position)
            assert record in [damage.file for damage in verify(changed)]
            flip(found, record, position)
    assert verify(changed) == []


def test_every_byte_of_the_stored_files_has_a_checksum(stored, objects):
    import json

    cache, found = open_cache(stored), objects(stored)
    covered = sum(digest["length"] for digest in json.loads(found.read("records/root.json"))["files"].values())
    covered += sum(digest.length for block in range(cache.n_blocks) for digest in cache.record(block).chunks.values())
    assert covered == sum(len(found.read(name)) for name in found.names() if name.startswith("features"))


def test_the_manifest_is_a_parquet_file(cache, manifest):
    frame = pd.read_parquet(io.BytesIO(cache.store.fixed("manifest")))
    assert list(frame["path"]) == list(manifest.frame["path"])


def test_a_back_end_that_there_is_none_of(manifest, backbone, tmp_path):
    with pytest.raises(CacheError, match="no back end 'sqlite'; write one of zarr, hdf5"):
        extract(manifest, backbone, tmp_path / "cache", store="sqlite")


def test_hdf5_is_not_compressed(manifest, backbone, tmp_path):
    with pytest.raises(CacheError, match="cannot be compressed"):
        extract(manifest, backbone, tmp_path / "cache", store="hdf5", compress=True)
    assert not (tmp_path / "cache").exists()


def test_a_cache_is_taken_up_in_the_back_end_that_it_has(manifest, backbone, tmp_path):
    from dlprobe.errors import OutputError

    extract(manifest, backbone, tmp_path / "cache", store="hdf5", **SETTINGS)
    assert extract(manifest, backbone, tmp_path / "cache", **SETTINGS).done == 0
    with pytest.raises(OutputError, match="kept in hdf5, not in zarr"):
        extract(manifest, backbone, tmp_path / "cache", store="zarr", **SETTINGS)


def test_h5py_reads_an_hdf5_cache_by_itself(manifest, backbone, tmp_path):
    import json

    import h5py

    extract(manifest, backbone, tmp_path / "cache", store="hdf5", **SETTINGS)
    cache = open_cache(tmp_path / "cache")
    with h5py.File(tmp_path / "cache" / "features.h5") as file:
        everything = np.arange(len(cache))
        assert_array_equal(file["embeddings"][:], cache.read(everything).embeddings)
        assert_array_equal(file["regions"][:], cache.regions(everything))
        assert [axis.label for axis in file["embeddings"].dims] == ["window", "row", "col", "feature"]
        assert json.loads(file.attrs["schema"]) == {"kind": "dlprobe-features", "version": 1}
