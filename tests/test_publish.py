"""A file is there and whole, or not there."""

import os
from pathlib import Path

import pytest

from dlprobe.publish import SCRATCH_PREFIX, fsync, publish


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def interrupt(path, error):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half")
    raise error


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_under_its_name_and_replaces_the_old_one(tmp_path, durable):
    target = tmp_path / "table.txt"
    target.write_text("old")
    with publish(target, durable=durable) as scratch:
        scratch.write_text("new")
        assert scratch.parent == tmp_path
        assert scratch.name.startswith(SCRATCH_PREFIX)
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["table.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_interrupts_leaves_nothing(tmp_path, error):
    target = tmp_path / "table.txt"
    with pytest.raises(error), publish(target) as scratch:
        interrupt(scratch, error)
    assert names(tmp_path) == []
    target.write_text("old")
    with pytest.raises(error), publish(target, durable=True) as scratch:
        interrupt(scratch, error)
    assert names(tmp_path) == ["table.txt"]
    assert target.read_text() == "old"


def test_folders_are_published_and_swept_whole(tmp_path):
    target = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), publish(target) as scratch:
        interrupt(scratch / "deep" / "a.txt", KeyboardInterrupt)
    assert names(tmp_path) == []
    with publish(target) as scratch:
        scratch.mkdir()
        (scratch / "a.txt").write_text("a")
    assert names(tmp_path) == ["run"]
    assert names(target) == ["a.txt"]


def make_old_folder(target):
    target.mkdir()
    (target / "old.txt").write_text("old")


def test_a_folder_replaces_the_old_one_only_when_whole(tmp_path):
    target = tmp_path / "run"
    make_old_folder(target)
    with pytest.raises(KeyboardInterrupt), publish(target) as scratch:
        interrupt(scratch / "new.txt", KeyboardInterrupt)
    assert names(target) == ["old.txt"]
    with publish(target) as scratch:
        scratch.mkdir()
        (scratch / "new.txt").write_text("new")
        assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["run"]
    assert names(target) == ["new.txt"]


def test_an_interrupt_between_the_two_renames_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "run"
    make_old_folder(target)
    real = Path.replace

    def interrupted(self, where):
        if Path(where) == target and not self.name.endswith("-old"):
            raise KeyboardInterrupt
        return real(self, where)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), publish(target) as scratch:
        scratch.mkdir()
    assert names(tmp_path) == ["run"]
    assert names(target) == ["old.txt"]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    target = tmp_path / "run"
    make_old_folder(target)
    with pytest.raises(OSError, match="directory"), publish(target) as scratch:
        scratch.write_text("a file")
    assert names(tmp_path) == ["run"]
    assert names(target) == ["old.txt"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), publish(tmp_path / "table.txt"):
        pass
    assert names(tmp_path) == []


def test_durable_syncs_the_content_before_the_name_and_the_folder_after(tmp_path, monkeypatch):
    target = tmp_path / "record.json"
    synced = []
    real = os.fsync

    def spy(handle):
        inode = os.fstat(handle).st_ino
        synced.append("folder" if inode == tmp_path.stat().st_ino else "content")
        assert target.exists() == (synced[-1] == "folder")
        real(handle)

    monkeypatch.setattr(os, "fsync", spy)
    with publish(target, durable=True) as scratch:
        scratch.write_text("{}")
    assert synced == ["content", "folder"]
    with publish(target) as scratch:
        scratch.write_text("[]")
    assert synced == ["content", "folder"]


def test_fsync_closes_what_it_opens(tmp_path):
    path = tmp_path / "a"
    path.write_text("a")
    before = os.open(path, os.O_RDONLY)
    os.close(before)
    for _ in range(3):
        fsync(path)
    after = os.open(path, os.O_RDONLY)
    os.close(after)
    assert after == before
