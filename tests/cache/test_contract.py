"""What every back end and every codec must do alike."""

import io

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from dlprobe.cache import open_cache, verify
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
}
#: Largest error of a stored value: relative for floats, in parts of the window's largest magnitude for int8.
ERROR = {"float16": 2**-11, "float32": 1e-6, "int8": 0.51 / 127}
SETTINGS = {"stride_px": 40, "block_windows": 4}


@pytest.fixture(scope="module", params=KINDS, ids=lambda name: name.replace(" ", "-"))
def kind(request):
    return KINDS[request.param]


@pytest.fixture(scope="module")
def stored(kind, manifest, backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("contract") / "cache"
    extract(manifest, backbone, path, **SETTINGS, **kind)
    return path


@pytest.fixture
def cache(stored):
    return open_cache(stored)


@pytest.fixture
def changed(stored, tmp_path):
    import shutil

    return shutil.copytree(stored, tmp_path / "changed")


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
def again(manifest, backbone, tmp_path):
    """Return a function that extracts into ``again.path``."""

    def run(**settings):
        return extract(manifest, backbone, tmp_path / "again", **settings)

    run.path = tmp_path / "again"
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


def test_a_block_without_a_record_is_never_read(changed):
    (changed / "records" / "000001.json").unlink()
    cache = open_cache(changed)
    cache.read([0, 8])
    for ask in (cache.read, cache.moments, cache.coverage, cache.regions):
        with pytest.raises(CacheError, match="no record"):
            ask([0, 5])
    [damage] = verify(changed)
    assert (damage.block, damage.file) == (1, "records/000001.json")


def test_a_file_cut_short_is_never_read(changed):
    cache = open_cache(changed)
    last = cache.n_blocks - 1
    extents = [cache.store.extent(name, last) for name in cache.record(last).chunks]
    extent = max(extents, key=lambda found: found.offset)
    name = list(cache.record(last).chunks)[extents.index(extent)]
    with extent.path.open("r+b") as file:
        file.truncate(extent.offset + 5)
    ask = {"embeddings": cache.read, "scale": cache.read}.get(name) or getattr(cache, name)
    with pytest.raises(CacheError, match=f"block {last}"):
        ask([len(cache) - 1])
    damages = verify(changed)
    if extent.alone:
        assert (last, str(extent.path.relative_to(changed))) in [(d.block, d.file) for d in damages]
    else:  # h5py opens no file that was cut short
        assert damages[-1].file.startswith("features.h5#")


def flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        [value] = file.read(1)
        file.seek(position)
        file.write(bytes([value ^ 1 << position % 8]))


def test_flips_anywhere_in_blocks_are_all_found(changed, kind):
    """A hundred for the default, fewer for the others, which differ in where bytes lie."""
    cache = open_cache(changed)
    rng = np.random.default_rng(1)
    places = [(block, name) for block in range(cache.n_blocks) for name in cache.record(block).chunks]
    for _ in range(100 if kind == KINDS["zarr float16"] else 15):
        block, name = places[rng.integers(len(places))]
        extent, length = cache.store.extent(name, block), cache.record(block).chunks[name].length
        position = extent.offset + int(rng.integers(length))
        flip(extent.path, position)
        [damage] = verify(changed)
        assert damage.block == block
        assert set(damage.images) == set(cache.windows["path"][cache.windows["block"] == block])
        flip(extent.path, position)
    assert verify(changed) == []


def test_flips_in_everything_else_are_found(changed, kind):
    import json

    rng = np.random.default_rng(2)
    flips = 10 if kind == KINDS["zarr float16"] else 2
    files = json.loads((changed / "records" / "root.json").read_text())["files"]
    for name, digest in files.items():
        file, _, part = name.partition("#")
        start = int(part.split("-")[0]) if part else 0
        for _ in range(flips):
            position = start + int(rng.integers(digest["length"]))
            flip(changed / file, position)
            assert name in [damage.file for damage in verify(changed)]
            flip(changed / file, position)
    for path in sorted((changed / "records").iterdir()):
        for _ in range(flips):
            position = int(rng.integers(path.stat().st_size))
            flip(path, position)
            assert f"records/{path.name}" in [damage.file for damage in verify(changed)]
            flip(path, position)
    assert verify(changed) == []


def test_every_byte_of_the_stored_files_has_a_checksum(stored):
    import json

    cache = open_cache(stored)
    covered = sum(
        digest["length"] for digest in json.loads((stored / "records" / "root.json").read_text())["files"].values()
    )
    covered += sum(digest.length for block in range(cache.n_blocks) for digest in cache.record(block).chunks.values())
    files = [path for path in stored.rglob("*") if path.is_file() and path.parent.name not in {"locks", "records"}]
    assert covered == sum(path.stat().st_size for path in files)


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
