"""Where the disk is full, or the process is told to end: one clear line, nothing half-written, nothing lost."""

import signal
import subprocess
import sys

import pytest

from dlprobe.cache import convert, merge
from dlprobe.errors import CacheError, DlprobeError
from dlprobe.extraction import extract

SETTINGS = {"stride_px": 40, "block_windows": 4}


@pytest.fixture
def full_disk(small_disk):
    """Return a small file system with not a byte left."""
    (small_disk.path / "filler").write_bytes(bytes(4096))
    small_disk.resize("4k")
    return small_disk


@pytest.fixture
def works(whole, manifest, backbone):
    """Return what writes a cache, by name."""
    return {
        "extract": lambda path: extract(manifest, backbone, path, **SETTINGS),
        "convert": lambda path: convert(whole, path, store="hdf5"),
        "merge": lambda path: merge([whole], path),
    }


@pytest.mark.parametrize("name", ["extract", "convert", "merge"])
def test_a_cache_goes_on_where_the_disk_ended_it(full_disk, works, tmp_path, tree, name):
    works[name](tmp_path / "whole")
    path, said, recorded = full_disk.path / "cache", [], set()
    for kilobytes in range(4, 500, 12):
        full_disk.resize(f"{kilobytes}k")
        try:
            works[name](path)
        except CacheError as error:
            said.append(str(error))
            assert "no space is left for" in said[-1]
            records = set(path.glob("records/0*.json"))
            assert records >= recorded
            assert path.exists() == bool(records)
            recorded = records
        else:
            break
    assert len(said) > 3
    assert tree(path) == tree(tmp_path / "whole")


def test_no_room_for_a_folder(full_disk, works):
    """A file system may have bytes left and no room for another file."""
    full_disk.resize("1m")
    full_disk.run(f"mount -o remount,nr_inodes=4 {full_disk.path}")
    for work in works.values():
        with pytest.raises(DlprobeError, match=r"No space left|no space is left"):
            work(full_disk.path / "cache")
        assert [path.name for path in full_disk.path.iterdir()] == ["filler"]


EXPORT = """
import json, sys
from pathlib import Path
from dlprobe.cache import export
from dlprobe.errors import OutputError

try:
    export(sys.argv[1], sys.argv[2], format=sys.argv[3])
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["npy", "parquet"])
@pytest.mark.parametrize("kilobytes", [4, 16, 24])
def test_an_export_is_whole_or_absent(full_disk, whole, kind, kilobytes):
    """In a process of its own: a memory map of a full disk would kill it."""
    full_disk.resize(f"{kilobytes}k")
    command = [sys.executable, "-c", EXPORT, whole, full_disk.path / "out", kind]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "no space is left for" in run.stdout
    assert [path.name for path in full_disk.path.iterdir()] == ["filler"]


TERMINATED = """
import os, signal, sys
from dlprobe import cache
from dlprobe.cache.reader import FeatureCache

blocks, name, source, target = FeatureCache.blocks, *sys.argv[1:]

def end(*_):
    os.kill(os.getpid(), signal.SIGTERM)

def ended(self, *args, **settings):
    for block in blocks(self, *args, **settings):
        yield block
        end()

FeatureCache.blocks = ended
if name == "export":
    cache.export(source, target)
elif name == "merge":
    cache.merge([source], target, progress=end)
else:
    cache.convert(source, target, progress=end)
"""


@pytest.mark.parametrize("name", ["export", "merge", "convert"])
def test_sigterm_leaves_nothing(whole, tmp_path, name):
    command = [sys.executable, "-c", TERMINATED, name, whole, tmp_path / "out"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 128 + signal.SIGTERM, run.stderr
    assert list(tmp_path.iterdir()) == []
