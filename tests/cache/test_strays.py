"""What lies among the files of a cache and is no part of it: found, and out of the way after a repair."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dlprobe.cache import convert, merge, open_cache, verify
from dlprobe.cache.places import Bucket, Folder, open_place
from dlprobe.errors import CacheError
from dlprobe.extraction import extract, repair
from dlprobe.spec import canonical_json, fingerprint

SETTINGS = {"stride_px": 40, "block_windows": 4}
#: Any of 8 bytes, about a page, a block, and more than all the rest.
LENGTHS = [*range(1, 9), 511, 4095, 4096, 4097, 65536, 1_000_003]


@pytest.fixture(scope="module", params=["float16", "int8"])
def hdf5(request, manifest, backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("strays") / "whole"
    extract(manifest, backbone, path, store="hdf5", dtype=request.param, **SETTINGS)
    return path


@pytest.fixture
def changed(hdf5, tmp_path):
    """Return a copy of an HDF5 cache, to be changed."""
    return shutil.copytree(hdf5, tmp_path / "changed")


def append(path, data):
    with path.open("ab") as file:
        file.write(data)


def without_strays(files):
    return {name: data for name, data in files.items() if not name.startswith("strays/")}


@pytest.mark.parametrize("content", ["zeros", "noise"])
def test_bytes_after_the_end_of_an_hdf5_file_are_found_and_moved(hdf5, changed, manifest, backbone, *, tree, content):
    expected, file = tree(hdf5), changed / "features.h5"
    end = file.stat().st_size
    for length in LENGTHS:
        tail = bytes(length) if content == "zeros" else np.random.default_rng(0).bytes(length)
        append(file, tail)
        [damage] = verify(changed)
        name = f"features.h5#{end}-{end + length}"
        assert (damage.file, damage.block, damage.reason) == (name, None, "is no part of the cache")
        assert open_cache(changed).complete
        report = repair(manifest, backbone, changed)
        assert (report.restored, report.recomputed, report.different, report.set_apart) == ((), (), (), (name,))
        expected[f"strays/features.h5.{end}-{end + length}"] = tail
        assert tree(changed) == expected


@pytest.mark.parametrize("disk", ["full", "well"])
def test_nothing_is_cut_off_before_it_is_on_the_disk(changed, manifest, backbone, tree, monkeypatch, *, disk):
    append(changed / "features.h5", b"somebody's")
    before, seen, truncate = tree(changed), [], os.truncate

    def copy(*_):
        raise OSError(errno.ENOSPC, "no space")

    def cut(path, length):
        if path == changed / "features.h5":
            seen.append({name: data for name, data in tree(changed).items() if name.startswith("strays/")})
        truncate(path, length)

    monkeypatch.setattr(os, "truncate", cut)
    if disk == "full":
        monkeypatch.setattr(shutil, "copyfileobj", copy)
        with pytest.raises(CacheError, match="no space is left"):
            repair(manifest, backbone, changed)
        assert tree(changed) == before
    else:
        repair(manifest, backbone, changed)
        assert [list(files.values()) for files in seen] == [[b"somebody's"]]


def test_a_tail_does_not_take_the_place_of_another(changed, manifest, backbone, tree):
    end = (changed / "features.h5").stat().st_size
    for data in (b"one", b"two"):
        append(changed / "features.h5", data)
        repair(manifest, backbone, changed)
    found = {name: data for name, data in tree(changed).items() if name.startswith("strays/")}
    name = f"strays/features.h5.{end}-{end + 3}"
    assert found == {name: b"one", f"{name}.1": b"two"}


def test_they_are_moved_beside_other_damage(hdf5, changed, manifest, backbone, tree):
    whole, file = tree(hdf5), changed / "features.h5"
    extent = open_cache(changed).store.extent("embeddings", 1)
    for where in ("root record", "metadata", "block"):
        if where == "root record":
            (changed / "records" / "root.json").unlink()
        else:
            with file.open("r+b") as opened:
                opened.seek(300 if where == "metadata" else extent.offset + 3)
                opened.write(b"\xa5\x5a\xa5")
        append(file, b"after the end")
        repair(manifest, backbone, changed)
        assert without_strays(tree(changed)) == whole
        assert verify(changed) == []


def test_a_file_that_is_cut_short_and_grown_again_has_its_end_where_it_was(hdf5, changed, manifest, backbone, tree):
    file = changed / "features.h5"
    with file.open("r+b") as opened:
        opened.truncate(5000)
    append(file, bytes((hdf5 / "features.h5").stat().st_size))
    assert any(damage.reason == "is no part of the cache" for damage in verify(changed))
    repair(manifest, backbone, changed)
    assert without_strays(tree(changed)) == tree(hdf5)


def test_no_alarm_whatever_made_the_file(hdf5, manifest, backbone, tmp_path):
    """Also where the last block is small, and where a writer was stopped and went on."""

    class StopError(Exception):
        pass

    def stop(done, _total):
        if done >= 8:
            raise StopError

    convert(hdf5, tmp_path / "zarr", store="zarr")
    convert(tmp_path / "zarr", tmp_path / "back", store="hdf5")
    merge([hdf5], tmp_path / "merged", store="hdf5")
    with pytest.raises(StopError):
        extract(manifest, backbone, tmp_path / "resumed", store="hdf5", progress=stop, **SETTINGS)
    assert {damage.reason for damage in verify(tmp_path / "resumed")} == {"missing: never written, or lost"}
    extract(manifest, backbone, tmp_path / "resumed", store="hdf5", **SETTINGS)
    for name in ("zarr", "back", "merged", "resumed"):
        assert verify(tmp_path / name) == []
    for windows in (1, 2, 3, 7, 64):
        path = tmp_path / str(windows)
        extract(manifest, backbone, path, store="hdf5", stride_px=40, block_windows=windows)
        assert verify(path) == []


@pytest.mark.parametrize(
    "name",
    [
        "features.zarr/notes.txt",
        "features.zarr/embeddings/c.99.0.0.0",
        "features.zarr/embeddings/c.0.0.0.1",
        "features.zarr/windows/c.1.0",
        "features.zarr/labels/zarr.json",
        "features.zarr/labels/c/0/0",
        "records/000099.json",
        "records/copy of root.json",
        "records/#root.json#",
        "records/root.json#1-2",
    ],
)
def test_a_file_that_is_no_part_of_a_cache_is_found_and_moved_aside(copy, manifest, backbone, tree, name):
    before = tree(copy)
    for times in (1, 2):  # a second one of the same name does not take the place of the first
        (copy / name).parent.mkdir(exist_ok=True, parents=True)
        (copy / name).write_text(f"somebody's {times}")
        [damage] = verify(copy)
        assert (damage.file, damage.block, damage.reason) == (name, None, "is no part of the cache")
        report = repair(manifest, backbone, copy)
        assert (report.restored, report.set_apart) == ((), (name,))
        assert verify(copy) == []
    aside = {f"strays/{name}": b"somebody's 1", f"strays/{name}.1": b"somebody's 2"}
    assert tree(copy) == before | aside


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("kind", ["folder", "another disk", "bucket"])
def test_an_object_is_moved_and_not_read(kind, tmp_path, monkeypatch):
    place = open_place(f"s3://caches{tmp_path}/moved" if kind == "bucket" else tmp_path / "moved")
    place.make("a")
    place.make("b/c")
    place.write("a/1", b"one")
    place.write("b/c/2", b"two")
    if kind == "another disk":
        replace, refused = Path.replace, []

        def elsewhere(path, target):
            if not refused:
                refused.append(path)
                raise OSError(errno.EXDEV, "another disk")
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", elsewhere)
    for kind_of_place in (Folder, Bucket):
        monkeypatch.setattr(kind_of_place, "read", lambda *_: pytest.fail("read"))
        monkeypatch.setattr(kind_of_place, "open", lambda *_: pytest.fail("opened"))
    place.move("a/1", "b/c/2")
    assert place.sizes() == {"b/c/2": 3}
    place.move("b/c/2", "a/3")
    monkeypatch.undo()
    assert place.sizes() == {"a/3": 3}
    assert place.read("a/3") == b"one"
    with pytest.raises(FileNotFoundError):
        place.move("a/1", "a/4")
    assert place.sizes() == {"a/3": 3}


def test_files_of_writers_and_of_file_systems_are_no_strays(copy):
    for name in (".dlprobe-scratch-1", ".nfs0000000000a1", ".DS_Store", "._zarr.json"):
        (copy / "features.zarr" / "embeddings" / name).write_text("comes and goes")
    (copy / "README").write_text("beside the cache")
    assert verify(copy) == []


def test_an_array_of_a_later_release_is_no_stray(copy, hdf5, changed):
    """It is in the root record; what else belongs to it, or where it ends, only that release knows."""
    for path, part in ((copy, "features.zarr/depth/zarr.json"), (changed, None)):
        record = json.loads((path / "records" / "root.json").read_text())
        del record["checksum"]
        if part:
            (path / part).parent.mkdir()
            (path / part).write_bytes(b"{}")
            (path / "features.zarr" / "depth" / "c.0.0").write_bytes(b"depth")
            record["files"][part] = {
                "length": 2,
                "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            }
        else:
            record["offsets"]["depth"] = (path / "features.h5").stat().st_size
            append(path / "features.h5", b"depth")
        (path / "records" / "root.json").write_text(canonical_json({**record, "checksum": fingerprint(record)}))
        assert verify(path) == []


@pytest.mark.usefixtures("s3")
def test_strays_on_s3(whole, objects, tree, *, manifest, backbone, tmp_path):
    path = f"s3://caches{tmp_path}/cache"
    for name, data in tree(whole).items():
        objects(path).write(name, data)
    objects(path).write("features.zarr/embeddings/", b"")  # as consoles make folders
    assert verify(path) == []
    objects(path).write("features.zarr/embeddings/c.99.0.0.0", b"of another cache")
    assert [damage.file for damage in verify(path)] == ["features.zarr/embeddings/c.99.0.0.0"]
    report = repair(manifest, backbone, path)
    assert (report.restored, report.set_apart) == ((), ("features.zarr/embeddings/c.99.0.0.0",))
    assert verify(path) == []
    assert not (objects(path).names().count("features.zarr/embeddings/c.99.0.0.0"))
    assert objects(path).read("strays/features.zarr/embeddings/c.99.0.0.0") == b"of another cache"


def test_files_that_vanish_while_they_are_counted(copy, monkeypatch):
    walk = os.walk

    def walking(top):
        for folder, folders, names in walk(top):
            yield folder, folders, [*names, "renamed meanwhile"]

    monkeypatch.setattr(os, "walk", walking)
    assert verify(copy) == []
