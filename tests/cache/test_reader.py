"""Reading: the same numbers as zarr and xarray, in the order asked for, and never a made-up zero."""

import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from numpy.testing import assert_array_equal

from dlprobe.cache import open_cache
from dlprobe.errors import CacheError

BLOCK_ARRAYS = {"embeddings", "coverage", "regions", "moments"}


@pytest.fixture
def cache(whole):
    return open_cache(whole)


def test_zarr_reads_the_same_numbers(cache, whole):
    group = zarr.open_group(whole / "features.zarr", mode="r")
    everything = np.arange(len(cache))
    block = cache.read(everything)
    assert_array_equal(group["embeddings"][:], block.embeddings)
    assert_array_equal(group["coverage"][:], block.coverage)
    assert_array_equal(group["regions"][:], cache.regions(everything))
    assert_array_equal(group["moments"][:], cache.moments())
    assert_array_equal(group["windows"][:], cache.windows[["image", "view", "y", "x", "h", "w"]])
    assert_array_equal(group["reference"][:], cache.reference)
    assert group["embeddings"].shape == cache.shape


def test_xarray_opens_it_without_dlprobe_and_without_warnings(cache, whole):
    with xarray.open_zarr(whole / "features.zarr", consolidated=False) as data:
        assert data["embeddings"].dims == ("window", "row", "col", "feature")
        assert data["coverage"].dims == ("window", "row", "col", "class")
        assert data["regions"].dims == ("window", "y", "x")
        assert set(data.data_vars) == BLOCK_ARRAYS | {"windows", "manifest", "reference"}
        assert_array_equal(data["embeddings"][3:9].values, cache.read(range(3, 9)).embeddings)
        assert data.attrs["schema"] == {"kind": "dlprobe-features", "version": 1}
        assert data.attrs["cache_fingerprint"] == cache.cache_spec.fingerprint


def test_what_a_cache_says_of_itself(cache, manifest, backbone):
    assert cache.model_spec == backbone.spec
    assert cache.pins == backbone.pins
    assert cache.cache_spec.manifest_sha256 == manifest.sha256 == cache.manifest.sha256
    assert cache.manifest.frame.equals(manifest.frame)
    assert str(cache.manifest.root) == "."
    assert cache.complete
    cache.require_complete()
    joined = cache.windows.merge(manifest.frame, on="path", suffixes=("", "_manifest"))
    for name in ("variant", "source_id", "donor_id", "generator", "mask_kind", "split"):
        assert (joined[name] == joined[f"{name}_manifest"]).all()
    assert_array_equal(cache.windows["block"], np.arange(len(cache)) // 4)
    assert cache.windows["stored"].all()
    assert not cache.windows["rejected"].any()


@pytest.mark.parametrize(
    "indices", [[], [5], [0, 1, 2, 3], [9, 2, 3, 4, 0], [3, 4], [7, 7, 1, 7], [18, 17, 16, 15, 14]]
)
def test_windows_come_in_the_order_asked_for(cache, indices):
    everything = cache.read(np.arange(len(cache)))
    block = cache.read(indices)
    assert_array_equal(block.windows, indices)
    assert_array_equal(block.embeddings, everything.embeddings[indices])
    assert_array_equal(block.coverage, everything.coverage[indices])
    assert_array_equal(cache.moments(indices), cache.moments()[indices])
    assert_array_equal(cache.regions(indices), cache.regions(np.arange(len(cache)))[indices])


def test_random_orders_with_repeats(cache):
    everything = cache.read(np.arange(len(cache))).embeddings
    rng = np.random.default_rng(0)
    for _ in range(20):
        indices = rng.integers(0, len(cache), rng.integers(1, 40))
        assert_array_equal(cache.read(indices).embeddings, everything[indices])


def test_a_boolean_mask_selects(cache):
    mask = (cache.windows["variant"] == "sp").to_numpy()
    assert_array_equal(cache.read(mask).windows, np.flatnonzero(mask))


@pytest.mark.parametrize("indices", [[-1], [10_000], [0, 10_000]])
def test_a_window_that_is_not_there(cache, indices):
    with pytest.raises(CacheError, match=r"give indices into \.windows"):
        cache.read(indices)


class TestBlocks:
    def test_without_a_seed_stored_order_a_block_at_a_time(self, cache):
        blocks = list(cache.blocks())
        assert_array_equal(np.concatenate([block.windows for block in blocks]), np.arange(len(cache)))
        assert [len(block) for block in blocks] == [4] * (len(cache) // 4) + [len(cache) % 4]
        everything = cache.read(np.arange(len(cache)))
        assert_array_equal(np.concatenate([block.embeddings for block in blocks]), everything.embeddings)
        assert_array_equal(np.concatenate([block.coverage for block in blocks]), everything.coverage)

    def test_with_a_seed_every_window_once_with_its_own_numbers(self, cache):
        everything = cache.read(np.arange(len(cache)))
        blocks = list(cache.blocks(seed=1))
        order = np.concatenate([block.windows for block in blocks])
        assert sorted(order) == list(range(len(cache)))
        assert list(order) != sorted(order)
        for block in blocks:
            assert len(block) <= 4
            assert_array_equal(block.embeddings, everything.embeddings[block.windows])
            assert_array_equal(block.coverage, everything.coverage[block.windows])

    def test_the_seed_decides_the_order(self, cache):
        def order(**options):
            return [window for block in cache.blocks(**options) for window in block.windows]

        assert order(seed=1) == order(seed=1) != order(seed=2)
        assert order(seed=0) != order()

    def test_windows_are_mixed_across_the_blocks_of_a_buffer_and_no_further(self, cache):
        order = np.concatenate([block.windows for block in cache.blocks(seed=3, buffer_blocks=2)])
        full = [set(order[i : i + 8] // 4) for i in range(0, 16, 8)]
        assert all(len(blocks) <= 3 for blocks in full)
        assert any(len(set(order[i : i + 4] // 4)) > 1 for i in range(0, 16, 4))

    def test_a_split_and_a_selection(self, cache):
        table = cache.windows
        read = np.concatenate([block.windows for block in cache.blocks(seed=1, split="val")])
        assert sorted(read) == list(np.flatnonzero(table["split"] == "val"))
        real = (table["variant"] == "real").to_numpy()
        read = np.concatenate([block.windows for block in cache.blocks(split="train", windows=real)])
        assert list(read) == list(np.flatnonzero(real & (table["split"] == "train")))
        read = np.concatenate([block.windows for block in cache.blocks(windows=[5, 2])])
        assert list(read) == [2, 5]

    def test_nothing_selected_is_an_error(self, cache):
        with pytest.raises(CacheError, match=r"no windows of split 'holdout'; there are 'test', 'train', 'val'"):
            cache.blocks(split="holdout")

    def test_breaking_off_ends_the_thread(self, cache):
        import threading

        before = threading.active_count()
        stream = cache.blocks(seed=0)
        next(stream)
        stream.close()
        assert threading.active_count() == before

    def test_blocks_kept_by_the_caller_do_not_change(self, cache):
        kept = list(cache.blocks(seed=4, buffer_blocks=1))
        copies = [block.embeddings.copy() for block in kept]
        list(cache.blocks(seed=5, buffer_blocks=1))
        for block, copy in zip(kept, copies, strict=True):
            assert_array_equal(block.embeddings, copy)


@pytest.fixture(scope="module")
def every_array(manifest, projection, tmp_path_factory):
    """A cache that has each array that a cache can have."""
    from dlprobe.extraction import extract

    class WithClassTokens(projection.Projection):
        def with_class_tokens(self, windows):
            tokens = self(windows)
            return tokens, tokens.mean(dim=(1, 2))

    path = tmp_path_factory.mktemp("every") / "cache"
    extract(manifest, WithClassTokens(), path, stride_px=40, block_windows=4, dtype="int8", cls=True)
    return path


@pytest.fixture
def full(every_array, tmp_path):
    return Path(shutil.copytree(every_array, tmp_path / "cache"))


class TestMissing:
    @pytest.fixture
    def incomplete(self, copy):
        (copy / "records" / "000001.json").unlink()
        return open_cache(copy)

    def test_an_incomplete_cache_opens_and_says_so(self, incomplete):
        assert not incomplete.complete
        assert incomplete.missing_blocks == [1]
        assert list(np.flatnonzero(~incomplete.windows["stored"])) == [4, 5, 6, 7]
        with pytest.raises(CacheError, match=r"incomplete: 1 of \d+ blocks .* again .*`dlprobe fit --allow-partial`"):
            incomplete.require_complete()

    @pytest.mark.parametrize("outside", [-1, 1000])
    def test_the_window_that_there_is_none_of_is_named(self, incomplete, outside):
        with pytest.raises(CacheError, match=f"window {outside} asked of"):
            incomplete.read([0, outside, 3])

    def test_missing_blocks_are_never_zeros(self, incomplete):
        assert incomplete.read([0, 8]).embeddings.any()
        for ask in (incomplete.read, incomplete.moments, incomplete.coverage, incomplete.regions):
            with pytest.raises(CacheError, match="no record"):
                ask([0, 5])
        for ask in (incomplete.moments, incomplete.coverage, incomplete.blocks):
            with pytest.raises(CacheError, match="no record"):
                ask()

    def test_what_is_there_can_be_streamed(self, incomplete):
        stored = incomplete.windows["stored"].to_numpy()
        read = np.concatenate([block.windows for block in incomplete.blocks(seed=0, windows=stored)])
        assert sorted(read) == list(np.flatnonzero(stored))

    @pytest.mark.parametrize("name", sorted(BLOCK_ARRAYS))
    @pytest.mark.parametrize("change", ["gone", "shorter", "longer"])
    def test_a_chunk_file_that_is_gone_or_of_another_length(self, copy, name, change):
        [path] = (copy / "features.zarr" / name).glob("c.1.*")
        data = path.read_bytes()
        if change == "gone":
            path.unlink()
        else:
            path.write_bytes(data[:-1] if change == "shorter" else data + b"\0")
        cache = open_cache(copy)
        ask = {"embeddings": cache.read}.get(name) or getattr(cache, name)
        with pytest.raises(CacheError, match=r"\(block 1\) is missing or has another length"):
            ask([4])
        ask([0])

    @pytest.mark.parametrize("name", sorted(BLOCK_ARRAYS | {"windows", "manifest", "reference", "scale", "cls"}))
    @pytest.mark.parametrize("place", ["first", "last"])
    def test_whoever_needs_a_whole_cache_misses_a_chunk_that_nothing_reads(self, full, name, place):
        open_cache(full).require_complete()
        chunk = sorted((full / "features.zarr" / name).glob("c.*"))[0 if place == "first" else -1]
        chunk.unlink()
        cache = open_cache(full)
        assert cache.absent == [chunk.relative_to(full).as_posix()]
        with pytest.raises(CacheError, match=rf"{name}/c\.\d+\S* is missing; run `dlprobe cache repair`"):
            cache.require_complete()

    def test_the_file_of_the_other_back_end_is_all_there(self, whole, tmp_path):
        from dlprobe.cache import convert

        convert(whole, tmp_path / "hdf5", store="hdf5")
        assert open_cache(tmp_path / "hdf5").absent == []

    def test_several_missing_chunks_are_counted(self, copy):
        for path in (copy / "features.zarr" / "regions").glob("c.[01].*"):
            path.unlink()
        with pytest.raises(CacheError, match=r"regions/c\.0\.0\.0 and 1 more are missing"):
            open_cache(copy).require_complete()

    def test_a_block_that_vanishes_while_it_is_streamed(self, copy):
        cache = open_cache(copy)
        stream = cache.blocks()
        next(stream)
        [path] = (copy / "features.zarr" / "embeddings").glob("c.3.*")
        path.unlink()
        with pytest.raises(CacheError, match="block 3"):
            list(stream)

    def test_a_record_of_another_cache(self, copy, manifest, projection, tmp_path):
        from dlprobe.extraction import extract

        extract(manifest, projection.Projection(scale=2.0), tmp_path / "other", stride_px=40, block_windows=4)
        (copy / "records" / "000001.json").write_bytes((tmp_path / "other" / "records" / "000001.json").read_bytes())
        with pytest.raises(CacheError, match="another block or cache"):
            open_cache(copy).read([4])


class TestOpening:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(CacheError, match=r"no cache at .*`dlprobe extract`"):
            open_cache(tmp_path / "nothing")

    def test_another_mode(self, whole):
        with pytest.raises(CacheError, match="mode is 'w'"):
            open_cache(whole, mode="w")

    def test_another_version_of_the_schema(self, copy):
        path = copy / "features.zarr" / "zarr.json"
        path.write_text(path.read_text().replace('"version": 1', '"version": 9'))
        with pytest.raises(CacheError, match=r"'version': 9.*this release reads"):
            open_cache(copy)

    @pytest.mark.parametrize("name", ["embeddings", "coverage", "windows"])
    def test_metadata_that_contradict_the_identity(self, copy, name):
        path = copy / "features.zarr" / name / "zarr.json"
        path.write_text(path.read_text().replace('"window"', '"window"').replace("int32", "int16").replace("4,", "5,"))
        with pytest.raises(CacheError, match="is damaged"):
            open_cache(copy)

    def test_metadata_that_are_no_json(self, copy):
        (copy / "features.zarr" / "zarr.json").write_text("{")
        with pytest.raises(CacheError, match=r"zarr.json is damaged"):
            open_cache(copy)


# CPython 3.12 and later warn of any fork beside threads; ours hold no lock (2026-11)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(cache, method):
    expected = cache.read(np.arange(len(cache)))
    stream = cache.blocks(seed=0, buffer_blocks=1)  # a thread is reading ahead while the process forks
    next(stream)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        assert_array_equal(pool.submit(cache.moments).result(), cache.moments())
        found = pool.submit(cache.read, [3, 1]).result()
    assert_array_equal(found.embeddings, expected.embeddings[[3, 1]])
    for block in stream:
        assert_array_equal(block.embeddings, expected.embeddings[block.windows])


def test_threads_and_pickles(cache):
    expected = cache.read(np.arange(len(cache))).embeddings
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: cache.read(np.arange(len(cache))).embeddings, range(16)):
            assert_array_equal(found, expected)
    sent = pickle.loads(pickle.dumps(cache))  # noqa: S301 (our own bytes)
    assert_array_equal(sent.read([3]).embeddings, expected[[3]])


def test_no_file_stays_open(cache):
    before = len(list(Path("/proc/self/fd").iterdir()))
    cache.read([0, 5, 9])
    list(cache.blocks(seed=0))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_reads_that_the_system_cuts_short_are_continued(cache, monkeypatch):
    expected = cache.read(np.arange(len(cache))).embeddings
    preadv, rng = os.preadv, np.random.default_rng(0)

    def short(handle, views, offset):
        """Read some bytes fewer than asked for, ending anywhere, as the system may."""
        limit = int(rng.integers(1, sum(view.nbytes for view in views) + 1))
        given = []
        for view in views:
            given.append(view[: min(limit, view.nbytes)])
            limit -= given[-1].nbytes
            if not limit:
                break
        return preadv(handle, given, offset)

    monkeypatch.setattr(os, "preadv", short)
    for _ in range(5):
        order = rng.permutation(len(cache))
        assert_array_equal(cache.read(order).embeddings, expected[order])
