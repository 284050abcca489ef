"""Formats of other toolkits: ManiDataset, JSON and lists of lines."""

import json

import numpy as np
import pytest
from PIL import Image

from dlprobe.data.layouts import LAYOUTS, Finding, Ignored, Record, Reject
from dlprobe.data.scan import scan
from dlprobe.errors import DataError


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 24, 3), 90, np.uint8)).save(root / name)


def records(root, name, **options):
    found = [item for item in LAYOUTS[name](root, **options) if isinstance(item, Record)]
    return {item.path: (item.variant, item.mask, item.source_id) for item in found}


def rejects(root, name, **options):
    return {item.path: item.fault for item in LAYOUTS[name](root, **options) if isinstance(item, Reject)}


def test_manidataset_pairs_by_stem_where_sorted_order_would_not(tmp_path):
    put(tmp_path, "Tp/a.jpg", "Tp/b.jpg", "Tp/c_mask.png", "Tp/sub/d.png", "Tp/two.png", "Au/e.jpg")
    put(tmp_path, "Gt/b_gt.png", "Gt/c_mask.png", "Gt/sub/d_mask.png", "Gt/aa.png", "Gt/two.png", "Gt/two_gt.png")
    assert records(tmp_path, "manidataset", dataset="x", variant="fr") == {
        "Tp/b.jpg": ("fr", "Gt/b_gt.png", "x:b"),
        "Tp/c_mask.png": ("fr", "Gt/c_mask.png", "x:c_mask"),
        "Tp/sub/d.png": ("fr", "Gt/sub/d_mask.png", "x:d"),
        "Au/e.jpg": ("real", "", "x:e"),
    }
    assert rejects(tmp_path, "manidataset") == {"Tp/a.jpg": "no-mask", "Tp/two.png": "two-masks"}
    items = list(LAYOUTS["manidataset"](tmp_path))
    assert Ignored("Gt/aa.png", "orphan mask") in items
    assert [(i.name, i.examples) for i in items if isinstance(i, Finding)] == [("orphan-mask", ("Gt/aa.png",))]


def test_source_pattern_joins_the_images_of_a_photograph(tmp_path):
    put(tmp_path, "Tp/0042_cat_1.jpg", "Gt/0042_cat_1.png", "Au/0042.jpg", "Au/COCO_val2014_000000123456.jpg")
    found = records(tmp_path, "manidataset", source_pattern=r"^(\d+)(?:_|$)")
    assert {path: value[2] for path, value in found.items()} == {
        "Tp/0042_cat_1.jpg": "0042",
        "Au/0042.jpg": "0042",
        "Au/COCO_val2014_000000123456.jpg": "coco:000000123456",
    }
    for pattern in ("(", "abc|0042"):
        with pytest.raises(DataError, match="no regular expression with one group"):
            records(tmp_path, "manidataset", source_pattern=pattern)


def test_json_of_imdlbenco(tmp_path):
    put(tmp_path, "Tp/a b.jpg", "Gt/a b.png", "Au/c.jpg")
    rows = [["Tp/a b.jpg", "Gt/a b.png"], ["Au\\c.jpg", "Negative"], ["x"], [str(tmp_path / "Au/c.jpg"), "Negative"]]
    (tmp_path / "set.json").write_text(json.dumps(rows))
    result = scan(tmp_path, "json", sample=0, dataset="d")
    assert [tuple(row) for row in result.manifest.frame[["path", "variant", "mask"]].to_numpy()] == [
        ("Au/c.jpg", "real", ""),
        ("Tp/a b.jpg", "sp", "Gt/a b.png"),
    ]
    assert [r.fault for r in result.rejects] == ["bad-row", "doubled"]
    counts = result.accounting
    assert counts["files"] + counts["listed"] == counts["records"] + counts["rejects"] + counts["ignored"]


def test_json_of_forensichub(tmp_path):
    rows = [
        {"path": "a.jpg", "mask": "m.png", "label": 1},
        {"path": "b.jpg", "mask": "Negative", "label": 0},
        {"path": "c.jpg", "mask": "Negative", "label": 1},
        {"path": "d.jpg", "mask": "m.png", "label": 0},
        {"path": "e.jpg", "mask": None},
        {"path": "f.jpg", "label": 7},
        {"image": "g.jpg"},
    ]
    (tmp_path / "hub.json").write_text(json.dumps(rows))
    assert records(tmp_path / "hub.json", "json", variant="fr") == {
        "a.jpg": ("fr", "m.png", "a"),
        "b.jpg": ("real", "", "b"),
        "e.jpg": ("real", "", "e"),
    }
    assert sorted(rejects(tmp_path / "hub.json", "json").values()) == [
        "bad-row",
        "bad-row",
        "label-contradicts-mask",
        "no-mask",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("{}", "holds no list"),
        ('[["ManiDataset", "/x"], ["JsonDataset", "/y"]]', "BalancedDataset; scan each of its 2 parts"),
    ],
)
def test_json_that_is_something_else(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=words):
        records(tmp_path, "json")


def test_lists_of_trufor_and_safire(tmp_path):
    lines = "img/a b.png,mask/a b.png\nimg/c.png,None\n\nimg/d.png, mask/d.png,extra\n"
    (tmp_path / "list.txt").write_text("\ufeff" + lines, encoding="utf-8")
    assert records(tmp_path, "list") == {
        "img/a b.png": ("sp", "mask/a b.png", "a b"),
        "img/c.png": ("real", "", "c"),
        "img/d.png": ("sp", "mask/d.png", "d"),
    }


def test_lists_of_mmfusion_with_spaces_in_names(tmp_path):
    put(tmp_path, "fake/stop sign_1.png", "mask/stop sign_1_mask.png", "real/stop sign_1.png")
    lines = [
        "fake/stop_sign_1.png mask/stop_sign_1_mask.png 1",
        "real/stop sign_1.png None 0",
        "sp/fire hydrant/1_mask_bbox.png_ps_0.png masks/fire hydrant/1_mask_bbox.png 1",
        "x.jpg y.png",
        "x.jpg None 1",
        "nothing to see",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    assert records(tmp_path, "list", dataset="d") == {
        "fake/stop sign_1.png": ("sp", "mask/stop sign_1_mask.png", "d:stop sign_1"),
        "real/stop sign_1.png": ("real", "", "d:stop sign_1"),
        "sp/fire hydrant/1_mask_bbox.png_ps_0.png": (
            "sp",
            "masks/fire hydrant/1_mask_bbox.png",
            "d:1_mask_bbox.png_ps_0",
        ),
        "x.jpg": ("sp", "y.png", "d:x"),
    }
    assert rejects(tmp_path, "list") == {"x.jpg": "no-mask", "nothing to see": "bad-row"}
    found = [item for item in LAYOUTS["list"](tmp_path) if isinstance(item, Finding)]
    assert [(f.name, f.count) for f in found] == [("respaced-name", 1)]


def test_which_table_must_be_clear(tmp_path):
    with pytest.raises(DataError, match=r"has no \.txt; name one with the option table"):
        records(tmp_path, "list")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{name}.png,None\n")
    with pytest.raises(DataError, match=r"2 files .txt \(a.txt, b.txt\)"):
        records(tmp_path, "list")
    assert list(records(tmp_path, "list", table="b.txt")) == ["b.txt.png"]
    assert list(records(tmp_path / "a.txt", "list")) == ["a.txt.png"]
    with pytest.raises(DataError, match=r"no file c\.txt"):
        records(tmp_path, "list", table="c.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="no UTF-8 text"):
        records(tmp_path / "a.txt", "list")


@pytest.mark.parametrize("variant", ["real", "ae", "spliced"])
def test_a_variant_without_mask_is_refused(tmp_path, variant):
    put(tmp_path, "Tp/a.png", "Gt/a.png")
    with pytest.raises(DataError, match="write one of aesp, sp, fr"):
        records(tmp_path, "manidataset", variant=variant)
