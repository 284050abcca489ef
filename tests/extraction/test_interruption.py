"""Killed, stopped, crowded out: whatever interrupts an extraction, the same command ends in the same bytes."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dlprobe.cache import convert, open_cache
from dlprobe.errors import CacheError
from dlprobe.extraction import extract, plan
from dlprobe.extraction.runners.local import WRITERS

SETTINGS = {"stride_px": 40, "block_windows": 4}
KILLER = Path(__file__).with_name("killer.py")


class StoppedError(Exception):
    pass


class StopsAfter:
    """Progress that breaks off after some calls."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, done, total):
        self.calls -= 1
        if self.calls < 0:
            raise StoppedError


@pytest.mark.parametrize(("store", "kills"), [("zarr", 20), ("hdf5", 10)])
def test_sigkill_at_random_moments_ends_in_the_same_bytes(projection, tmp_path, tree, store, kills):
    backbone = projection.Projection()
    manifest = projection.write_images(tmp_path / "images", projection.SIZES * 2)
    extract(manifest, backbone, tmp_path / "whole", stride_px=40, block_windows=2, store=store)
    run = subprocess.run(
        [sys.executable, KILLER, tmp_path / "images", tmp_path / "killed", "3", str(kills), store],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert len(seen) == kills
    # an HDF5 file shows nothing of a block that was hit, but for the scratch file of its record
    hit = any(kill["scratch"] or kill["orphans"] for kill in seen)
    assert hit or store == "hdf5", "no kill hit a block while it was being written"
    assert any(kill["recorded"] for kill in seen[:-1])
    whole = tree(tmp_path / "whole")
    for path in (tmp_path / "killed").iterdir():
        killed = tree(path)
        assert killed.keys() == whole.keys()
        assert killed == whole
        assert open_cache(path).verify() == []


@pytest.mark.parametrize("blocks", [1, 3])
def test_an_exception_keeps_what_was_recorded_and_a_second_run_does_the_rest(
    manifest, backbone, tmp_path, tree, blocks
):
    whole = extract(manifest, backbone, tmp_path / "whole", **SETTINGS)
    with pytest.raises(StoppedError):
        extract(manifest, backbone, tmp_path / "cache", progress=StopsAfter(1 + blocks), **SETTINGS)
    cache = open_cache(tmp_path / "cache")
    recorded = cache.n_blocks - len(cache.missing_blocks)
    assert blocks + 1 <= recorded <= blocks + WRITERS < cache.n_blocks  # those in the hands of writers are finished
    report = extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
    assert (report.skipped, report.done) == (4 * recorded, whole.done - 4 * recorded)
    assert tree(tmp_path / "cache") == tree(tmp_path / "whole")


def test_before_the_first_record_nothing_is_left(manifest, backbone, tmp_path):
    with pytest.raises(StoppedError):
        extract(manifest, backbone, tmp_path / "cache", progress=StopsAfter(0), **SETTINGS)
    assert not (tmp_path / "cache").exists()


def test_a_cache_killed_while_it_was_set_up_is_set_up_again(manifest, backbone, tmp_path, tree):
    extract(manifest, backbone, tmp_path / "whole", **SETTINGS)
    for state in ("only locks", "scratch group", "group without root record"):
        path = tmp_path / state
        (path / "locks").mkdir(parents=True)
        if state == "scratch group":
            (path / ".dlprobe-scratch-0123" / "embeddings").mkdir(parents=True)
        if state == "group without root record":
            (path / "features.zarr").mkdir()
            (path / "features.zarr" / "zarr.json").write_text("{")
        extract(manifest, backbone, path, **SETTINGS)
        assert tree(path) == tree(tmp_path / "whole")


def test_chunk_files_without_a_record_are_swept_before_work_begins(manifest, backbone, tmp_path):
    with pytest.raises(StoppedError):
        extract(manifest, backbone, tmp_path / "cache", progress=StopsAfter(3), **SETTINGS)
    last = open_cache(tmp_path / "cache").n_blocks - 1
    orphan = tmp_path / "cache" / "features.zarr" / "coverage" / f"c.{last}.0.0.0"
    orphan.write_bytes(b"of a killed process")
    with pytest.raises(StoppedError):
        extract(manifest, backbone, tmp_path / "cache", progress=StopsAfter(0), **SETTINGS)
    assert not orphan.exists()
    assert (orphan.parent / "c.0.0.0.0").exists()


def test_a_second_writer_gets_one_line_and_changes_nothing(manifest, backbone, tmp_path, tree):
    with pytest.raises(StoppedError):
        extract(manifest, backbone, tmp_path / "cache", progress=StopsAfter(2), **SETTINGS)
    (tmp_path / "cache" / "features.zarr" / ".dlprobe-scratch-of-the-first-writer").write_text("half a chunk")
    before = tree(tmp_path / "cache")
    with (tmp_path / "cache" / "locks" / "shard-0-of-1.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CacheError, match="is being written by process") as caught:
            extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
        assert "\n" not in str(caught.value)
        assert tree(tmp_path / "cache") == before
    extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
    assert not list((tmp_path / "cache").rglob(".dlprobe-scratch-*"))


def test_a_full_disk_is_one_line_and_loses_nothing_recorded(manifest, backbone, tmp_path, tree, monkeypatch):
    extract(manifest, backbone, tmp_path / "whole", **SETTINGS)
    write, left = Path.write_bytes, [30]

    def filling(path, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", filling)
    with pytest.raises(CacheError, match=r"no space is left for .* it will go on"):
        extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
    monkeypatch.undo()
    cache = open_cache(tmp_path / "cache")
    assert 0 < len(cache.missing_blocks) < cache.n_blocks
    extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
    assert tree(tmp_path / "cache") == tree(tmp_path / "whole")


def test_a_small_file_system_that_fills_loses_nothing_recorded(projection, small_disk, tmp_path, tree):
    backbone = projection.Projection(width=96)
    manifest = projection.write_images(tmp_path / "images", projection.SIZES * 2)
    settings = {"stride_px": 40, "block_windows": 2}
    extract(manifest, backbone, tmp_path / "whole", **settings)
    small_disk.resize("500k")
    cache = small_disk.path / "cache"
    with pytest.raises(CacheError, match=r"no space is left for .* it will go on"):
        extract(manifest, backbone, cache, **settings)
    before = {name: data for name, data in tree(cache).items() if name.startswith("records/0")}
    assert before
    assert not [damage for damage in open_cache(cache).verify() if "never written" not in damage.reason]
    small_disk.resize("20m")
    assert extract(manifest, backbone, cache, **settings).skipped > 0
    assert tree(cache) == tree(tmp_path / "whole")
    assert tree(cache).items() >= before.items()


class TestShards:
    @pytest.fixture
    def whole(self, manifest, backbone, tmp_path):
        extract(manifest, backbone, tmp_path / "alone", **SETTINGS)
        return tmp_path / "alone"

    @pytest.fixture
    def write(self, manifest, tmp_path):
        """Return a function that starts a process which writes a shard; it waits for a line after its first block."""
        manifest.write(tmp_path / "manifest.parquet")

        def start(cache, store, shard):
            arguments = (KILLER.parent, tmp_path / "manifest.parquet", cache, store, *map(str, shard))
            command = [sys.executable, "-c", WRITER, *arguments]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        return start

    def test_two_at_once_end_in_the_bytes_of_one(self, manifest, backbone, tmp_path, tree):
        whole = extract(manifest, backbone, tmp_path / "whole", **SETTINGS)
        with ThreadPoolExecutor(2) as pool:
            runs = [
                pool.submit(extract, manifest, backbone, tmp_path / "cache", shard=(i, 2), **SETTINGS) for i in (0, 1)
            ]
            reports = [run.result() for run in runs]
        assert tree(tmp_path / "cache") == tree(tmp_path / "whole")
        assert sum(report.done for report in reports) == sum(report.windows for report in reports) == whole.windows
        assert not list((tmp_path / "cache").rglob(".dlprobe-scratch-*"))

    def test_a_second_process_at_one_shard_gets_one_line_that_names_the_first(self, write, tmp_path, tree, whole):
        with write(tmp_path / "cache", "zarr", (0, 1)) as first:
            assert first.stdout.readline() == "begun\n"
            before = tree(tmp_path / "cache")
            with write(tmp_path / "cache", "zarr", (0, 1)) as second:
                said, _ = second.communicate(timeout=60)
            assert second.returncode == 2
            assert f"is being written by process {first.pid} on" in said
            assert "; wait for it or stop it" in said
            assert said.count("\n") == 1
            assert tree(tmp_path / "cache") == before
            first.communicate("on\n", timeout=60)
        assert first.returncode == 0
        assert tree(tmp_path / "cache") == tree(whole)

    @pytest.mark.parametrize("store", ["zarr", "hdf5"])
    def test_two_processes_at_two_shards_end_in_the_bytes_of_one(self, write, tmp_path, tree, whole, store):
        with write(tmp_path / "cache", store, (0, 2)) as one, write(tmp_path / "cache", store, (1, 2)) as two:
            for process in (one, two):  # each has recorded a block and holds its lock while it waits
                assert process.stdout.readline() == "begun\n"
            for process in (one, two):
                process.stdin.write("on\n")
                process.stdin.flush()
            assert [process.wait(timeout=60) for process in (one, two)] == [0, 0]
        expected = convert(whole, tmp_path / "whole", store=store).path
        assert tree(tmp_path / "cache") == tree(expected)

    def test_one_shard_fills_its_blocks_alone(self, manifest, backbone, tmp_path):
        report = extract(manifest, backbone, tmp_path / "cache", shard=(1, 3), **SETTINGS)
        cache = open_cache(tmp_path / "cache")
        assert cache.missing_blocks == [block for block in range(cache.n_blocks) if block % 3 != 1]
        assert report.done == report.windows == cache.windows["stored"].sum()

    def test_one_whose_windows_are_all_rejects_is_done_like_any_other(self, projection, backbone, tmp_path):
        manifest = projection.write_images(tmp_path / "images", [(56, 56)] * 4)
        settings = {"stride_px": 40, "block_windows": 1}
        first = plan(manifest, backbone.spec, **settings).windows[0, 0]
        (manifest.root / manifest.frame["path"][first]).write_bytes(b"no image")
        for _ in range(2):
            reports = [extract(manifest, backbone, tmp_path / "cache", shard=(i, 4), **settings) for i in range(4)]
            assert [len(report.rejected) for report in reports] == [1, 0, 0, 0]
            assert open_cache(tmp_path / "cache").complete

    def test_another_shard_s_scratch_files_are_left_alone(self, manifest, backbone, tmp_path):
        extract(manifest, backbone, tmp_path / "cache", shard=(1, 2), **SETTINGS)
        scratch = tmp_path / "cache" / "features.zarr" / "regions" / ".dlprobe-scratch-1"
        scratch.write_text("half a chunk")
        with (tmp_path / "cache" / "locks" / "shard-1-of-2.lock").open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            extract(manifest, backbone, tmp_path / "cache", shard=(0, 2), **SETTINGS)
            assert scratch.exists()
        extract(manifest, backbone, tmp_path / "cache", shard=(0, 2), **SETTINGS)
        assert not scratch.exists()

    def test_another_number_of_shards_at_the_same_time_is_refused(self, manifest, backbone, tmp_path):
        extract(manifest, backbone, tmp_path / "cache", shard=(1, 2), **SETTINGS)
        with (tmp_path / "cache" / "locks" / "shard-1-of-2.lock").open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(CacheError, match="is being written as 2 shards"):
                extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
        extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
        assert open_cache(tmp_path / "cache").complete

    @pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
    def test_a_shard_that_is_none(self, manifest, backbone, tmp_path, shard):
        with pytest.raises(CacheError, match="numbered from 0"):
            extract(manifest, backbone, tmp_path / "cache", shard=shard, **SETTINGS)
        assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_in_order(projection, tmp_path, tree, number, status):
    backbone = projection.Projection()
    manifest = projection.write_images(tmp_path / "images", projection.SIZES * 2)
    extract(manifest, backbone, tmp_path / "whole", stride_px=40, block_windows=2)
    code = SIGNALLED.format(folder=str(KILLER.parent), images=str(tmp_path / "images"), cache=str(tmp_path / "cache"))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        run.stdout.readline()
        run.send_signal(number)
        assert run.wait(timeout=60) == status
    cache = open_cache(tmp_path / "cache")
    assert 0 < len(cache.missing_blocks) < cache.n_blocks
    assert not list(cache.path.rglob(".dlprobe-scratch-*"))
    recorded = {int(path.stem) for path in (cache.path / "records").glob("0*.json")}
    stored = {int(path.name.split(".")[1]) for path in cache.path.glob("features.zarr/embeddings/c.*")}
    assert stored == recorded
    extract(manifest, backbone, tmp_path / "cache", stride_px=40, block_windows=2)
    assert tree(tmp_path / "cache") == tree(tmp_path / "whole")


WRITER = """
import sys
folder, manifest, cache, store, number, count = sys.argv[1:]
sys.path.insert(0, folder)
import projection
from dlprobe.data import Manifest
from dlprobe.errors import CacheError
from dlprobe.extraction import extract

calls = []

def progress(done, total):
    calls.append(done)
    if len(calls) == 2:
        print("begun", flush=True)
        sys.stdin.readline()

try:
    extract(Manifest.read(manifest), projection.Projection(), cache, store=store, shard=(int(number), int(count)),
            stride_px=40, block_windows=4, progress=progress)
except CacheError as error:
    print(error)
    sys.exit(2)
"""

#: A shell starts its background jobs with SIGINT ignored, and children inherit that: hence the first lines.
SIGNALLED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {folder!r})
import projection
from dlprobe.extraction import extract
from dlprobe.extraction.runners.local import WRITERS

def progress(done, total):
    if done == 4:
        print("begun", flush=True)
    if done > 4:
        time.sleep(0.05)

try:
    extract(projection.write_images(__import__("pathlib").Path({images!r}), projection.SIZES * 2),
            projection.Projection(), {cache!r}, stride_px=40, block_windows=2, progress=progress)
except KeyboardInterrupt:
    sys.exit(130)
"""
