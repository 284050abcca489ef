"""Scan: every file ends as record, reject or ignored, and each fault is found by name."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from dlprobe.data.layouts.base import LAYOUTS, Finding, Ignored, Record, Reject, walk
from dlprobe.data.scan import scan
from dlprobe.errors import DataError, RegistryError

HEADER = "path,mask,variant,source_id,split"


def save(path, size=(24, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).convert(mode).save(path)
    return path


def table(root, *rows, header=HEADER):
    (root / "manifest.csv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")


def reasons(result):
    return {item.path: item.reason for item in result.rejects}


def balanced(result, root):
    on_disk = sum(len(files) for _, _, files in os.walk(root))
    counts = result.accounting
    assert counts["files"] == on_disk
    assert counts["files"] + counts["listed"] == counts["records"] + counts["rejects"] + counts["ignored"]
    return counts


@pytest.fixture
def clean(tmp_path):
    save(tmp_path / "real.png")
    save(tmp_path / "fake.jpg")
    save(tmp_path / "masks" / "fake.png", mode="L")
    table(tmp_path, "real.png,,real,s,train", "fake.jpg,masks/fake.png,sp,s,train")
    return tmp_path


def test_a_clean_set_is_whole(clean):
    result = scan(clean)
    assert list(result.manifest.frame["path"]) == ["fake.jpg", "real.png"]
    assert set(result.manifest.frame["width"]) == {24}
    assert set(result.manifest.frame["height"]) == {16}
    assert result.rejects == []
    assert result.ignored_reasons == {"table": 1, "mask": 1}
    counts = balanced(result, clean)
    assert counts["files"] == 4
    assert counts["listed"] == 0


def test_each_planted_fault_is_a_reject_by_name(clean):
    save(clean / "size.png")
    save(clean / "turned.png")
    save(clean / "masks" / "small.png", (12, 8), "L")
    save(clean / "masks" / "turned.png", (16, 24), "L")
    save(clean / "nomask.png")
    save(clean / "extra.png")
    save(clean / "strange.png")
    save(clean / "badsplit.png")
    (clean / "noimage.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    (clean / "empty.jpg").write_bytes(b"")
    (clean / "badmask.png").write_bytes((clean / "real.png").read_bytes())
    (clean / "masks" / "bad.png").write_bytes(b"no mask")
    rows = [
        "real.png,,real,s,train",
        "fake.jpg,masks/fake.png,sp,s,train",
        "missing.png,,real,s,",
        "noimage.png,,real,s,",
        "empty.jpg,,real,s,",
        "size.png,masks/small.png,sp,s,",
        "turned.png,masks/turned.png,fr,s,",
        "nomask.png,,sp,s,",
        "extra.png,masks/fake.png,real,s,",
        "strange.png,,spliced,s,",
        "badmask.png,masks/bad.png,sp,s,",
        "badsplit.png,,real,s,holdout",
        "real.png,,real,s,train",
        ",,real,s,",
        "lost.png,masks/lost.png,sp,s,",
    ]
    table(clean, *rows)
    result = scan(clean)
    found = reasons(result)
    assert found["missing.png"].startswith("no image at")
    assert found["size.png"].endswith(
        "small.png is 12x8 px, its image 24x16 px; if it shows the whole image, scan with --mask-resize"
    )
    assert found["turned.png"].endswith("turned.png is 16x24 px, its image 24x16 px, transposed; turn the mask")
    assert "needs a mask and has none" in found["nomask.png"]
    assert "has no mask, but one is named" in found["extra.png"]
    assert found["strange.png"] == "no variant 'spliced'; write one of real, ae, aesp, sp, fr"
    assert found["badmask.png"].startswith("its mask: ")
    assert found["badsplit.png"].startswith("no split 'holdout'")
    assert found["real.png"].startswith("named twice")
    assert found[""] == "row 14 has no path"
    assert found["lost.png"].startswith("no image at")
    assert {item.path: item.fault for item in result.rejects} == {
        "missing.png": "missing",
        "noimage.png": "unreadable",
        "empty.jpg": "unreadable",
        "size.png": "mask-size",
        "turned.png": "mask-transposed",
        "nomask.png": "no-mask",
        "extra.png": "surplus-mask",
        "strange.png": "unknown-variant",
        "badmask.png": "mask-unreadable",
        "badsplit.png": "unknown-split",
        "real.png": "doubled",
        "": "no-path",
        "lost.png": "missing",
    }
    findings = {finding.name: finding for finding in result.faults}
    assert findings["missing"].count == 2
    assert findings["mask-size"].examples == ("size.png",)
    assert len(result.rejects) == 13
    assert list(result.manifest.frame["path"]) == ["fake.jpg", "real.png"]
    counts = balanced(result, clean)
    assert counts["listed"] == 4  # missing, lost, the nameless row and the second real.png


def test_missing_mask_file_is_a_reject(clean):
    (clean / "masks" / "fake.png").unlink()
    assert reasons(scan(clean))["fake.jpg"].startswith("its mask: no image at")


def test_files_that_nobody_names_are_counted_and_orphans_found(clean):
    save(clean / "sub" / "orphan.PNG")
    (clean / "sub" / "animation.gif").write_bytes(b"GIF89a")
    (clean / "data.tar.gz").write_bytes(b"x")
    (clean / "README.md").write_text("x")
    (clean / "weights.bin").write_text("x")
    result = scan(clean)
    assert reasons(result) == {"sub/animation.gif": ".gif is no image format that is read; convert it to PNG"}
    assert {item.path: item.reason for item in result.ignored} == {
        "README.md": "table or text",
        "data.tar.gz": "packed archive",
        "manifest.csv": "table",
        "masks/fake.png": "mask",
        "sub/orphan.PNG": "image that the layout does not name",
        "weights.bin": "no image",
    }
    found = {finding.name: finding for finding in result.findings}
    assert found["orphan-image"].examples == ("sub/orphan.PNG",)
    assert found["packed-archive"].count == 1
    balanced(result, clean)


def test_a_table_as_root_counts_its_rows_only(clean):
    save(clean / "orphan.png")
    result = scan(clean / "manifest.csv")
    assert result.accounting == {"files": 0, "listed": 2, "records": 2, "rejects": 0, "ignored": 0}
    assert result.manifest.root == clean


def test_a_source_in_two_splits_is_a_finding(clean):
    save(clean / "b.png")
    save(clean / "c.png")
    table(clean, "real.png,,real,s,train", "fake.jpg,masks/fake.png,sp,s,test", "b.png,,real,t,train", "c.png,,real,t,")
    found = [f for f in scan(clean).findings if f.name == "source-crosses-splits"]
    assert [(f.count, f.severity, f.examples) for f in found] == [(1, "error", ("s",))]


def test_undecodable_and_control_names_are_rejects_that_can_be_printed(clean):
    save(clean / "real" / "good.png")
    for name in (b"caf\xe9.png", b"line\nbreak.png"):
        (clean / "real" / os.fsdecode(name)).write_bytes((clean / "real.png").read_bytes())
    result = scan(clean, "folder")
    assert len(result.rejects) == 2
    for item in result.rejects:
        item.path.encode("utf-8")
        assert "rename it" in item.reason
    balanced(result, clean)


def test_progress_ends_at_all_and_never_falls(clean):
    calls = []
    scan(clean, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 2), (3, 4), (4, 4)]  # the headers of both, then their pixels


def test_nothing_usable_nothing_there_and_unknown_layout_are_errors(tmp_path):
    table(tmp_path, "a.png,,real,s,")
    with pytest.raises(DataError, match=r"no image that can be used \(1 rejected; the first: a.png: no image at"):
        scan(tmp_path)
    with pytest.raises(DataError, match="nothing at"):
        scan(tmp_path / "x")
    with pytest.raises(DataError, match="layout folder has no option 'kind'; it has variant, dataset"):
        scan(tmp_path, "folder", kind="x")
    with pytest.raises(RegistryError, match="no layout 'foldr'; did you mean folder"):
        scan(tmp_path, "foldr")


def test_a_third_partys_layout_with_findings_and_extras(clean):
    @LAYOUTS.register("test-third-party")
    def layout(root, *, word):
        yield Record("real.png", "real", word)
        yield Reject("fake.jpg", "not wanted", "unwanted")
        yield Ignored("masks/fake.png", "crop location")
        yield Finding("third", "said", 3)

    result = scan(clean, "test-third-party", word="w")
    assert list(result.manifest.frame["source_id"]) == ["w"]
    assert reasons(result) == {"fake.jpg": "not wanted"}
    assert result.ignored_reasons == {"crop location": 1, "table or text": 1}
    assert [f.name for f in result.findings] == ["third", "unwanted"]
    balanced(result, clean)


def test_exif_orientation_counts_when_sizes_are_compared(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16)).save(tmp_path / "a.jpg", exif=exif)
    save(tmp_path / "m.png", (16, 24), "L")
    table(tmp_path, "a.jpg,m.png,sp,s,")
    frame = scan(tmp_path).manifest.frame
    assert tuple(frame.loc[0, ["width", "height"]]) == (16, 24)


def test_images_beyond_the_pixel_limit_are_rejects(clean):
    save(clean / "real.png", (40, 40))
    result = scan(clean, max_pixels=1000)
    assert [(item.path, item.fault) for item in result.rejects] == [("real.png", "unreadable")]
    assert scan(clean, max_pixels=1600).rejects == []


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path):
    with pytest.raises(DataError, match="cannot be listed"):
        list(walk(tmp_path / "gone"))


def test_walk_follows_links_once_and_leaves_hidden_folders(tmp_path):
    save(tmp_path / "a" / "x.png")
    save(tmp_path / ".hidden" / "y.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "b").mkdir()
    assert list(walk(tmp_path)) == [".hidden/", "a/x.png"]


def test_a_manifest_is_scanned_again_from_wherever_it_lies(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.csv").write_text("path,variant\nphoto.png,real\n")
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(tmp_path / "data" / "photo.png")
    first = scan(tmp_path / "data").manifest
    first.write(tmp_path / "elsewhere" / "manifest.parquet")
    again = scan(tmp_path / "elsewhere" / "manifest.parquet")
    assert again.rejects == []
    assert again.manifest.sha256 == first.sha256
    assert again.manifest.root.resolve() == first.root.resolve()
    with pytest.raises(DataError, match=f"is a manifest of images in {tmp_path / 'data'}; give the table itself"):
        scan(tmp_path / "elsewhere")
    moved = tmp_path / "data" / "moved.parquet"  # names a folder that is not there any more
    shutil.copy(tmp_path / "elsewhere" / "manifest.parquet", moved)
    assert scan(moved).manifest.sha256 == first.sha256
    first.write(tmp_path / "data" / "manifest.parquet")  # beside its images it is as good as a table in a folder
    (tmp_path / "data" / "manifest.csv").unlink()
    assert scan(tmp_path / "data").manifest.sha256 == first.sha256
