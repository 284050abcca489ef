"""Caches on S3, on a real server: the bytes of a folder, one writer at a time, one line for whatever is wrong."""

import multiprocessing
import pickle
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import xarray
import zarr
from numpy.testing import assert_array_equal

from dlprobe.cache import convert, describe, export, merge, open_cache, parity, unlock, verify
from dlprobe.cache.places import Bucket, Folder, open_place
from dlprobe.cache.records import read_block_record, write_block_record
from dlprobe.errors import CacheError, OutputError
from dlprobe.extraction import extract, repair

SETTINGS = {"stride_px": 40, "block_windows": 4}
TEXT = {"Content-Type": "text/plain"}

pytestmark = pytest.mark.usefixtures("s3")


@pytest.fixture
def url(tmp_path):
    return f"s3://caches{tmp_path}/cache"


@pytest.fixture
def fill(manifest, backbone):
    """Return a function that extracts into a URL."""
    return lambda url, **settings: extract(manifest, backbone, url, **SETTINGS, **settings)


@pytest.fixture(scope="module")
def remote(s3, manifest, backbone, tmp_path_factory):
    """Return the URL of a complete cache; not to be changed."""
    url = f"s3://caches{tmp_path_factory.mktemp('remote')}"
    extract(manifest, backbone, url, **SETTINGS)
    return url


class TestSameAsAFolder:
    def test_objects_are_the_files_byte_for_byte(self, remote, whole, tree):
        assert tree(remote) == tree(whole)

    def test_numbers_and_tables(self, remote, whole):
        far, near = open_cache(remote), open_cache(whole)
        assert far.windows.equals(near.windows)
        order = np.random.default_rng(0).permutation(len(near))
        assert_array_equal(far.read(order).embeddings, near.read(order).embeddings)
        for a, b in zip(far.blocks(seed=3), near.blocks(seed=3), strict=True):
            assert_array_equal(a.windows, b.windows)
            assert_array_equal(a.embeddings, b.embeddings)

    def test_reads_larger_than_one_request(self, remote, whole, monkeypatch):
        from dlprobe.cache.places import bucket

        monkeypatch.setattr(bucket, "_PIECE_BYTES", 300)
        expected = open_cache(whole).read(np.arange(12)[::-1])
        assert_array_equal(open_cache(remote).read(np.arange(12)[::-1]).embeddings, expected.embeddings)

    def test_descriptions_agree(self, remote, whole):
        here, there = describe(whole), describe(remote)
        assert there.pop("path") == remote
        assert here.pop("path") == str(whole)
        assert there == here

    def test_zarr_and_xarray_read_it_through_zarr_s_own_store(self, remote, whole):
        from obstore.store import S3Store
        from zarr.storage import ObjectStore

        prefix = remote.removeprefix("s3://caches/") + "/features.zarr"
        store = ObjectStore(S3Store("caches", prefix=prefix, client_options={"allow_http": True}), read_only=True)
        expected = open_cache(whole).read(np.arange(9))
        assert_array_equal(zarr.open_group(store, mode="r")["embeddings"][:9], expected.embeddings)
        with xarray.open_zarr(store, consolidated=False) as data:
            assert_array_equal(data["coverage"][:9].values, expected.coverage)

    def test_convert_merge_export_and_parity(self, remote, whole, url, tmp_path, tree):
        convert(remote, tmp_path / "near", store="zarr")
        assert tree(tmp_path / "near") == tree(whole)
        convert(tmp_path / "near", url, store="zarr")
        assert tree(url) == tree(whole)
        assert parity(remote, whole).max_abs == 0.0
        assert export(remote, tmp_path / "out", windows=[5, 2]) == 2
        with pytest.raises(OutputError, match="exports go to a folder"):
            export(remote, url + "-out")
        merged = merge([remote, whole], url + "-merged", prefixes=["a/", "b/"])
        assert verify(url + "-merged") == []
        assert len(merged) == 2 * len(open_cache(whole))

    def test_the_path_may_have_been_through_pathlib(self, remote):
        from pathlib import Path

        assert open_cache(Path(remote)).path == remote


class TestWriting:
    def test_an_interrupted_extraction_goes_on(self, fill, url, remote, tree):
        class StoppedError(Exception):
            pass

        def stop(done, _total):
            if done >= 8:
                raise StoppedError

        with pytest.raises(StoppedError):
            fill(url, progress=stop)
        recorded = open_cache(url).n_blocks - len(open_cache(url).missing_blocks)
        assert 0 < recorded < open_cache(url).n_blocks
        assert fill(url).skipped == 4 * recorded
        assert tree(url) == tree(remote)

    def test_what_a_killed_writer_left_of_a_block_is_swept(self, fill, url, remote, tree, objects):
        fill(url)
        objects(url).remove("records/000001.json")
        objects(url).write("features.zarr/embeddings/c.1.0.0.0", b"half")
        fill(url)
        assert tree(url) == tree(remote)

    def test_before_the_first_record_nothing_is_left(self, fill, url, objects):
        def stop(_done, _total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fill(url, progress=stop)
        assert objects(url).names() == []

    @pytest.fixture
    def damaged(self, fill, url, objects, flip):
        fill(url)
        found = objects(url)
        for name in ("features.zarr/zarr.json", "features.zarr/windows/c.0.0", "features.zarr/regions/c.2.0.0"):
            flip(found, name, 7)
        found.remove("features.zarr/moments/c.0.0.0")
        found.remove("records/000003.json")
        return url

    def test_every_kind_of_damage_is_repaired(self, damaged, manifest, backbone, remote, tree):
        assert {damage.block for damage in verify(damaged)} >= {None}
        report = repair(manifest, backbone, damaged, **SETTINGS)
        assert (report.recomputed, report.different) == ((0, 2, 3), ())
        assert tree(damaged) == tree(remote)

    def test_something_else_is_left_alone(self, fill, url, objects):
        objects(url).write("notes.txt", b"mine")
        with pytest.raises(OutputError, match="is no cache of dlprobe"):
            fill(url)
        assert objects(url).names() == ["notes.txt"]

    def test_hdf5_needs_a_folder(self, fill, url, objects):
        with pytest.raises(CacheError, match=r"s3://.* cannot hold HDF5.* use the Zarr back end"):
            fill(url, store="hdf5")
        assert objects(url).names() == []


class TestTogether:
    def test_a_second_writer_gets_one_line_and_changes_nothing(self, fill, url, tree):
        refused = []

        def second(done, _total):
            if done and not refused:
                before = tree(url)
                with pytest.raises(CacheError) as caught:
                    fill(url)
                assert tree(url) == before
                refused.append(str(caught.value))

        fill(url, progress=second)
        assert "is being written by process" in refused[0]
        assert "cache unlock s3://" in refused[0]
        assert "\n" not in refused[0]
        assert open_cache(url).complete

    def test_two_shards_at_once_end_in_the_bytes_of_one(self, fill, url, remote, tree, objects):
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(fill, url, shard=(i, 2)) for i in (0, 1)]
            assert sum(run.result().done for run in runs) == len(open_cache(remote))
        assert tree(url) == tree(remote)
        assert not [name for name in objects(url).names() if name.startswith("locks/")]

    def test_a_stale_lock_is_refused_until_it_is_taken_away(self, fill, url, objects):
        fill(url, shard=(0, 2))
        objects(url).write("locks/shard-1-of-2.lock", b"process 7 on gone since long ago")
        with pytest.raises(CacheError, match="process 7 on gone since long ago"):
            fill(url, shard=(1, 2))
        with pytest.raises(CacheError, match="is being written as 2 shards"):
            fill(url)
        assert unlock(url) == ["shard-1-of-2.lock: process 7 on gone since long ago"]
        assert unlock(url) == []
        fill(url)
        assert open_cache(url).complete

    def test_a_lock_that_was_broken_and_taken_by_another_is_left_to_it(self, url, objects):
        place = open_place(url)
        with place.hold("locks/a.lock", wait=False):
            objects(url).write("locks/a.lock", b"another")
        assert objects(url).read("locks/a.lock") == b"another"

    def test_the_setup_lock_is_waited_for_but_not_for_ever(self, url, objects, monkeypatch):
        from dlprobe.cache.places import bucket

        place = open_place(url)
        objects(url).write("locks/a.lock", b"another")
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(lambda: (time.sleep(0.5), objects(url).remove("locks/a.lock")))
            with place.hold("locks/a.lock", wait=True):
                assert later.done()
        objects(url).write("locks/a.lock", b"another")
        monkeypatch.setattr(bucket, "_WAIT_S", 0.3)
        with pytest.raises(CacheError, match="written by another"), place.hold("locks/a.lock", wait=True):
            pass

    def test_two_writers_cannot_both_record_a_block(self, fill, url):
        fill(url)
        place = open_place(url)
        record = read_block_record(place, 1)
        write_block_record(place, record)  # the same bytes again: an answer that was lost on the way
        other = type(record)(1, record.cache, record.chunks, {}, ())
        with pytest.raises(CacheError, match=r"block 1 of s3://.* was recorded by another writer"):
            write_block_record(place, other)
        assert read_block_record(place, 1) == record

    def test_folders_have_no_stale_locks(self, whole):
        with pytest.raises(CacheError, match="locks vanish with their process"):
            unlock(whole)


class TestWhatIsWrong:
    def test_no_cache_there(self, url):
        with pytest.raises(CacheError, match=r"no cache at s3://.*`dlprobe extract`"):
            open_cache(url)

    @pytest.mark.parametrize("bad", ["gs://bucket/cache", "https://example.org/cache", "s3://", "s3:/"])
    def test_urls_of_something_else(self, bad):
        with pytest.raises(CacheError, match=r"name a folder, or s3://BUCKET/PREFIX"):
            open_place(bad)

    def test_a_bucket_that_is_not_there(self, fill):
        for attempt in (
            lambda: open_cache("s3://nowhere/cache"),
            lambda: fill("s3://nowhere/c"),
        ):
            self.fails_with_one_line(attempt, "there is no bucket nowhere")

    def test_nobody_answers(self, fill, remote, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        for attempt in (lambda: open_cache(remote), lambda: fill(remote)):
            self.fails_with_one_line(attempt, r"http://127\.0\.0\.1:9 cannot be reached")

    def test_wrong_credentials(self, fill, s3, remote):
        from urllib.request import Request, urlopen

        reset = f"{s3.meta.endpoint_url}/moto-api/reset-auth"  # from now on, the server asks who is there
        urlopen(Request(reset, data=b"0", headers=TEXT))  # noqa: S310 (localhost)
        try:
            for attempt in (lambda: open_cache(remote), lambda: fill(remote)):
                self.fails_with_one_line(attempt, "access was refused .*AWS_ACCESS_KEY_ID")
        finally:
            urlopen(Request(reset, data=b"inf", headers=TEXT))  # noqa: S310

    @staticmethod
    def fails_with_one_line(attempt, message):
        with pytest.raises(CacheError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)

    def test_without_the_extra(self, remote):
        code = (
            "import sys; sys.modules['obstore'] = None\nfrom dlprobe.cache import open_cache\nopen_cache(sys.argv[1])"
        )
        run = subprocess.run([sys.executable, "-c", code, remote], capture_output=True, text=True, check=False)
        assert run.stderr.splitlines()[-1].endswith(
            "a cache on S3 needs obstore; install with pip install 'dlprobe[s3]'"
        )


def test_threads_pickles_and_spawned_processes(remote, whole):
    cache, expected = open_cache(remote), open_cache(whole).read(np.arange(9)).embeddings
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: cache.read(np.arange(9)).embeddings, range(8)):
            assert_array_equal(found, expected)
    assert_array_equal(pickle.loads(pickle.dumps(cache)).read([3]).embeddings, expected[[3]])  # noqa: S301
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert_array_equal(pool.submit(cache.read, [3, 1]).result().embeddings, expected[[3, 1]])


# CPython 3.12 and later warn of any fork beside threads; this one is refused by name (2026-11)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_is_told_so(remote):
    cache = open_cache(remote)
    here, there = multiprocessing.Pipe()

    def read():
        try:
            cache.read([3])
        except CacheError as error:
            there.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    process.join()
    assert "cannot be used after a fork; start processes by 'spawn' or 'forkserver'" in here.recv()


class TestPlaces:
    """What folders and buckets do alike."""

    @pytest.fixture(params=["folder", "bucket"])
    def place(self, request, tmp_path):
        found = open_place(tmp_path / "a" if request.param == "folder" else f"s3://caches{tmp_path}/a")
        assert type(found) is {"folder": Folder, "bucket": Bucket}[request.param]
        return found

    def test_objects(self, place):
        assert place.make("x")
        assert not place.exists("x/1")
        place.write("x/1", b"one")
        place.write("x/1", memoryview(b"two"))
        assert not place.make("x")
        assert (place.read("x/1"), place.exists("x/1"), place.exists("x")) == (b"two", True, False)
        with pytest.raises(FileExistsError):
            place.write_new("x/1", b"three")
        place.write_new("x/2", b"three")
        place.write_group("y", {"a/b": b"4", "c": b""})
        assert place.sizes() == {"x/1": 3, "x/2": 5, "y/a/b": 1, "y/c": 0}
        assert (place.children(), place.children("y"), place.children("z")) == ({"x", "y"}, {"a", "c"}, set())
        place.remove("y")
        place.remove("x/1")
        place.remove("x/1")
        assert place.sizes() == {"x/2": 5}
        with pytest.raises(FileNotFoundError):
            place.read("x/1")
        with pytest.raises(FileNotFoundError), place.open("x/1"):
            pass
        place.remove("x")
        place.unmake()

    def test_parts(self, place):
        place.make("")
        place.write("a", b"0123456789")
        with place.open("a") as opened:
            assert opened.size == 10
            assert [bytes(opened.read(*part)) for part in [(0, 3), (8, 5), (10, 1)]] == [b"012", b"89", b""]
            buffer = bytearray(8)
            views = [memoryview(buffer)[5:8], memoryview(buffer)[0:2]]
            opened.read_into(4, views)
            assert buffer == b"78\0\0\x00456"
            with pytest.raises(EOFError):
                opened.read_into(7, [memoryview(buffer)])

    def test_a_name_is_held_once(self, place):
        place.make("locks")
        with place.hold("locks/a", wait=False):
            assert place.held("locks/a")
            with pytest.raises(CacheError, match="is being written by process"), place.hold("locks/a", wait=False):
                pass
            with place.hold("locks/b", wait=False):
                pass
        with place.hold("locks/a", wait=False):
            pass

    def test_each_keeps_the_order(self, place):
        assert list(place.each(lambda n: n * n, range(40))) == [n * n for n in range(40)]
