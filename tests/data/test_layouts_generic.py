"""The csv and folder layouts."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dlprobe.data.layouts import LAYOUTS, Finding, Ignored, Record, Reject
from dlprobe.errors import DataError


def save(path, size=(24, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path)


def records(root, name, **options):
    return [item for item in LAYOUTS[name](root, **options) if isinstance(item, Record)]


def rejects(root, name, **options):
    return {item.path: item.reason for item in LAYOUTS[name](root, **options) if isinstance(item, Reject)}


def test_csv_fills_what_a_table_leaves_out(tmp_path):
    (tmp_path / "manifest.csv").write_text("path,variant,mask,split\na\\b c.png,sp,m\\b.png,Training\n")
    (record,) = records(tmp_path, "csv", dataset="mine")
    assert record == Record("a/b c.png", "sp", "b c", mask="m/b.png", split="train", dataset="mine")


def test_csv_keeps_what_a_table_says(tmp_path):
    columns = ["path", "variant", "source_id", "donor_id", "generator", "mask_kind", "split", "dataset"]
    values = ["./a//b.png", "real", "coco:1", "coco:2", "sd2", "segm", "validation", "theirs"]
    pd.DataFrame([values], columns=columns).to_parquet(tmp_path / "manifest.parquet")
    (record,) = records(tmp_path, "csv", dataset="mine")
    assert record == Record("a/b.png", "real", "coco:1", "", "coco:2", "sd2", "segm", "val", "theirs")


def test_csv_prefers_the_manifest_and_takes_any_named_table(tmp_path):
    (tmp_path / "index.csv").write_text("path,variant\nindex.png,real\n")
    assert [r.path for r in records(tmp_path, "csv")] == ["index.png"]
    (tmp_path / "manifest.csv").write_text("path,variant\nmanifest.png,real\n")
    assert [r.path for r in records(tmp_path, "csv")] == ["manifest.png"]
    (tmp_path / "mine.csv").write_text("path,variant\nmine.png,real\n")
    assert [r.path for r in records(tmp_path / "mine.csv", "csv")] == ["mine.png"]
    assert Ignored("manifest.csv", "table") in list(LAYOUTS["csv"](tmp_path))


@pytest.mark.parametrize(
    ("header", "missing"), [("path,source_id", "variant"), ("variant", "path"), ("x", "path and variant")]
)
def test_csv_without_a_needed_column_is_an_error(tmp_path, header, missing):
    (tmp_path / "manifest.csv").write_text(f"{header}\n")
    with pytest.raises(DataError, match=f"lacks the column {missing};"):
        records(tmp_path, "csv")


def test_a_folder_without_a_table_is_an_error(tmp_path):
    with pytest.raises(DataError, match="neither a table nor a folder with"):
        records(tmp_path, "csv")


def test_folders_of_variants(tmp_path):
    for name in (
        "real/a.jpg",
        "ae/a.png",
        "sp/sd 2/a.png",
        "fr/b.v1.PNG",
        "masks/sp/sd 2/a_mask.png",
        "masks/b.v1.png",
    ):
        save(tmp_path / name)
    (tmp_path / "real" / "notes.txt").write_text("x")
    assert {r.path: r for r in records(tmp_path, "folder", dataset="d")} == {
        "real/a.jpg": Record("real/a.jpg", "real", "a", dataset="d"),
        "ae/a.png": Record("ae/a.png", "ae", "a", dataset="d"),
        "sp/sd 2/a.png": Record(
            "sp/sd 2/a.png", "sp", "a", mask="masks/sp/sd 2/a_mask.png", generator="sd 2", dataset="d"
        ),
        "fr/b.v1.PNG": Record("fr/b.v1.PNG", "fr", "b.v1", mask="masks/b.v1.png", dataset="d"),
    }
    assert rejects(tmp_path, "folder") == {}


def test_a_mask_of_another_sub_folder_is_not_taken(tmp_path):
    save(tmp_path / "sp" / "one" / "a.png")
    save(tmp_path / "masks" / "two" / "a.png")
    assert rejects(tmp_path, "folder") == {
        "sp/one/a.png": "variant sp needs a mask, and masks/ has none for one/a",
    }


def test_masks_without_an_image_are_orphans(tmp_path):
    for name in ("sp/one/a.png", "real/b.png", "masks/one/a_mask.png", "masks/sp/one/c.png", "masks/b.png"):
        save(tmp_path / name)
    items = list(LAYOUTS["folder"](tmp_path))
    assert {i.path: i.reason for i in items if isinstance(i, Ignored)} == {
        "masks/one/a_mask.png": "mask",
        "masks/sp/one/c.png": "orphan mask",
        "masks/b.png": "orphan mask",
    }
    assert [i.examples for i in items if isinstance(i, Finding)] == [("masks/b.png", "masks/sp/one/c.png")]


def test_two_masks_for_one_image_are_a_reject(tmp_path):
    for name in ("sp/a.png", "masks/a.png", "masks/a_mask.png"):
        save(tmp_path / name)
    assert rejects(tmp_path, "folder")["sp/a.png"].startswith("two masks claim")


def test_one_variant_for_a_folder_of_images(tmp_path):
    for name in ("images/x/a.jpg", "images/x/b.jpg", "masks/x/a.png", "masks/x/b_mask.bmp"):
        save(tmp_path / name)
    found = records(tmp_path, "folder", variant="fr")
    assert [(r.path, r.variant, r.mask, r.generator) for r in found] == [
        ("images/x/a.jpg", "fr", "masks/x/a.png", "x"),
        ("images/x/b.jpg", "fr", "masks/x/b_mask.bmp", "x"),
    ]
    assert [r.mask for r in records(tmp_path, "folder", variant="real")] == ["", ""]


@pytest.mark.parametrize(("options", "words"), [({}, "neither folders named"), ({"variant": "no"}, "no variant 'no'")])
def test_a_folder_that_fits_neither_form_is_an_error(tmp_path, options, words):
    save(tmp_path / "pictures" / "a.png")
    with pytest.raises(DataError, match=words):
        records(tmp_path, "folder", **options)
    with pytest.raises(DataError, match="with --variant, a folder images"):
        records(tmp_path, "folder", variant="sp")
