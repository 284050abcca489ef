"""TGIF and TGIF2: official names, and the traps that are known of them."""

import numpy as np
import pytest
from PIL import Image

from dlprobe.data.layouts import LAYOUTS, Finding, Ignored, Record, Reject
from dlprobe.data.scan import scan
from dlprobe.errors import DataError


def save(path, size=(24, 16), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)


def put(root, names, **how):
    for name in names:
        save(root / name, **how)


def by_path(items, kind):
    return {item.path: item for item in items if isinstance(item, kind)}


@pytest.fixture
def tgif(tmp_path):
    """One photograph in testing with every sub-set of TGIF, and what surrounds it."""
    cat = "testing/stop sign"
    put(
        tmp_path,
        [
            f"orig/{cat}/1234_orig.png",
            f"masks/{cat}/1234_mask_bbox.png",
            f"masks/{cat}/1234_mask_segm.png",
            f"masks/{cat}/1234_mask_bbox.png_ps_mask.png",
            f"masks/{cat}/1234_mask_segm.png_ps_mask.png",
            f"sd2-sp/{cat}/1234_mask_bbox.png_ps_mask.png_sd2_0.png",
            f"sd2-sp/{cat}/1234_mask_segm.png_ps_mask.png_sd2_1.png",
            f"ps-sp/{cat}/1234_mask_bbox.png_ps_2.png",
        ],
    )
    crop = [
        f"orig/{cat}/1234_orig_512.png",
        f"masks/{cat}/1234_mask_bbox_512.png",
        f"masks/{cat}/1234_mask_512.png",
        f"sd2-fr/{cat}/1234_mask_bbox.png_sd2-512_0.png",
    ]
    large = [
        f"orig/{cat}/1234_orig_1024.png",
        f"masks/{cat}/1234_mask_segm_1024.png",
        f"masks/{cat}/1234_mask_1024.png",
        f"sdxl-fr/{cat}/1234_mask_segm.png_sdxl-1024_0.png",
    ]
    put(tmp_path, crop, size=(16, 16))
    put(tmp_path, large, size=(32, 32))
    return tmp_path


def test_every_sub_set_gets_its_variant_mask_and_partner_sizes(tgif):
    result = scan(tgif, "tgif", sample=0)
    assert result.rejects == []
    frame = result.manifest.frame
    assert set(frame["source_id"]) == {"coco:000000001234"}
    assert set(frame["split"]) == {"test"}
    assert set(frame["dataset"]) == {"tgif"}
    rows = {row.path.split("/", 1)[0]: row for row in frame[frame["variant"] != "real"].itertuples()}
    assert {name: (row.variant, row.generator, row.mask_kind) for name, row in rows.items()} == {
        "sd2-sp": ("sp", "sd2", "segm-soft"),
        "ps-sp": ("sp", "ps", "bbox-soft"),
        "sd2-fr": ("fr", "sd2", "bbox"),
        "sdxl-fr": ("fr", "sdxl", "segm"),
    }
    masks = dict(zip(frame["path"], frame["mask"], strict=True))
    cat = "testing/stop sign"
    assert masks[f"sd2-sp/{cat}/1234_mask_bbox.png_ps_mask.png_sd2_0.png"].endswith("1234_mask_bbox.png_ps_mask.png")
    assert masks[f"ps-sp/{cat}/1234_mask_bbox.png_ps_2.png"].endswith("1234_mask_bbox.png_ps_mask.png")
    assert masks[f"sd2-fr/{cat}/1234_mask_bbox.png_sd2-512_0.png"].endswith("/1234_mask_bbox_512.png")
    assert masks[f"sdxl-fr/{cat}/1234_mask_segm.png_sdxl-1024_0.png"].endswith("/1234_mask_segm_1024.png")
    assert sum(frame["variant"] == "real") == 3
    counts = result.accounting
    assert counts["files"] == 16 == counts["records"] + counts["ignored"]


def test_crop_location_masks_are_never_ground_truth(tgif):
    cat = "testing/stop sign"
    (tgif / f"masks/{cat}/1234_mask_bbox_512.png").unlink()
    items = list(LAYOUTS["tgif"](tgif))
    assert all("1234_mask_512" not in item.mask for item in items if isinstance(item, Record))
    rejects = by_path(items, Reject)
    assert rejects[f"sd2-fr/{cat}/1234_mask_bbox.png_sd2-512_0.png"].fault == "no-mask"
    ignored = [item for item in items if isinstance(item, Ignored) and item.path.endswith("1234_mask_512.png")]
    assert [item.reason for item in ignored] == ["crop location, no inpainting mask"]


def test_a_mask_whose_photograph_is_nowhere_in_its_split_is_an_orphan(tgif):
    put(tgif, ["masks/testing/bus/4242_mask_bbox.png", "masks/training/stop sign/1234_mask_segm.png"])
    put(tgif, ["masks/testing/stop sign/1234_mask_segm_512.png"])  # spare: its photograph is there
    items = list(LAYOUTS["tgif"](tgif))
    orphans = {path for path, i in by_path(items, Ignored).items() if i.reason == "orphan mask"}
    assert orphans == {"masks/testing/bus/4242_mask_bbox.png", "masks/training/stop sign/1234_mask_segm.png"}
    (found,) = [i for i in items if isinstance(i, Finding) and i.name == "orphan-mask"]
    assert found.count == 2


def test_which_mask_was_used_is_said_and_can_be_chosen(tgif):
    used = [i for i in LAYOUTS["tgif"](tgif) if isinstance(i, Finding) and i.name == "mask-used"]
    assert used[0].detail.startswith("3 images use the soft mask of their compositing, 2 the two-level one")
    plain = [i for i in LAYOUTS["tgif"](tgif, masks="plain") if isinstance(i, Record) and i.variant == "sp"]
    assert {i.mask.rsplit("/", 1)[1] for i in plain} == {"1234_mask_bbox.png", "1234_mask_segm.png"}
    assert {i.mask_kind for i in plain} == {"bbox", "segm"}
    with pytest.raises(DataError, match="masks called 'hard'"):
        list(LAYOUTS["tgif"](tgif, masks="hard"))


def test_a_category_called_train_one_level_too_deep(tmp_path):
    put(
        tmp_path,
        [
            "masks/validation/train/77_mask_segm_512.png",
            "sd2-fr/validation/train/train/77_mask_segm.png_sd2-512_2.png",
            "sd2-fr/validation/train/77_mask_segm.png_sd2-512_1.png",
        ],
    )
    found = by_path(LAYOUTS["tgif"](tmp_path), Record)
    assert {(item.split, item.mask) for item in found.values()} == {
        ("val", "masks/validation/train/77_mask_segm_512.png")
    }
    assert len(found) == 2


def test_the_mask_of_the_same_category_is_taken(tmp_path):
    for category in ("cat", "dog"):
        put(tmp_path, [f"masks/training/{category}/5_mask_bbox.png_ps_mask.png"])
        put(tmp_path, [f"ps-sp/training/{category}/5_mask_bbox.png_ps_0.png"])
    found = by_path(LAYOUTS["tgif"](tmp_path), Record)
    assert {path.split("/")[2] for path in found} == {"cat", "dog"}
    assert all(item.mask.split("/")[2] == path.split("/")[2] for path, item in found.items())


def test_a_photograph_under_two_categories_counts_once_but_its_crops_stay(tmp_path):
    for category, value in (("cat", 10), ("dog", 10)):
        put(tmp_path, [f"orig/training/{category}/5_orig.png"], value=value)
    save(tmp_path / "orig/training/cat/5_orig_512.png", (16, 16), 3)
    save(tmp_path / "orig/training/dog/5_orig_512.png", (16, 24), 200)
    items = list(LAYOUTS["tgif"](tmp_path))
    assert sorted(by_path(items, Record)) == [
        "orig/training/cat/5_orig.png",
        "orig/training/cat/5_orig_512.png",
        "orig/training/dog/5_orig_512.png",
    ]
    assert [i.reason for i in items if isinstance(i, Ignored)] == ["same photograph under another category"]
    assert [(i.name, i.count) for i in items if isinstance(i, Finding)] == [("same-photograph", 1)]


def test_files_of_tgif2_are_rejected_by_tgif_and_read_by_tgif2(tmp_path):
    cat = "training/cat"
    put(
        tmp_path,
        [
            f"masks/{cat}/9_mask_bbox.png_ps_mask.png",
            f"masks-flux/{cat}/9_mask_bbox.png_ps_mask.png",
            f"masks-flux/{cat}/9_mask_bbox_1024.png",
            f"masks-flux/{cat}/9_mask_random.png",
            f"masks-sdxl/{cat}/9_mask_random_1024.png",
            f"masks-sd2/{cat}/9_mask_random_512.png",
            f"original-flux/{cat}/9_orig.png",
            f"flux1schnell-sp/{cat}/9_mask_bbox.png_ps_mask.png_flux1schnell_0.png",
            f"flux1filldev-fr/{cat}/9_mask_bbox.png_flux1filldev-1024_0.png",
            f"flux1dev-sp-random/{cat}/9_mask_random.png_flux1dev_2.png",
            f"sd2-fr-random/{cat}/9_mask_random.png_sd2-512_2.png",
            f"sdxl-fr-random/{cat}/9_mask_random.png_sd2-1024_2.png",
            f"sdxl-fr-random/{cat}/9_mask_random.png_sdxl-1024_1.png",
            f"sd2-sp/{cat}/9_mask_bbox.png_ps_mask.png_sd2_1.png",
        ],
    )
    first = list(LAYOUTS["tgif"](tmp_path))
    assert {item.fault for item in first if isinstance(item, Reject)} == {"other-layout"}
    assert len(by_path(first, Record)) == 2
    items = by_path(LAYOUTS["tgif2"](tmp_path), Record)
    said = {path.split("/")[0] + "/" + path.rsplit("_", 2)[1]: item for path, item in items.items()}
    expected = {
        "flux1schnell-sp/flux1schnell": ("sp", "flux1schnell", "bbox-soft", "masks-flux"),
        "flux1filldev-fr/flux1filldev-1024": ("fr", "flux1filldev", "bbox", "masks-flux"),
        "flux1dev-sp-random/flux1dev": ("sp", "flux1dev", "random", "masks-flux"),
        "sd2-fr-random/sd2-512": ("fr", "sd2", "random", "masks-sd2"),
        "sdxl-fr-random/sd2-1024": ("fr", "sdxl", "random", "masks-sdxl"),
        "sdxl-fr-random/sdxl-1024": ("fr", "sdxl", "random", "masks-sdxl"),
        "sd2-sp/sd2": ("sp", "sd2", "bbox-soft", "masks"),
    }
    for name, values in expected.items():
        item = said[name]
        assert (item.variant, item.generator, item.mask_kind, item.mask.split("/")[0]) == values, name
        assert item.dataset == "tgif2"
    assert items[f"original-flux/{cat}/9_orig.png"].variant == "real"


def test_blurred_masks_of_the_generator_code_are_paired(tmp_path):
    put(
        tmp_path,
        [
            "masks/testing/cat/3_mask_bbox.png_blur_5_7.png",
            "masks/testing/cat/3_mask_bbox.png_ps_mask.png",
            "sd2-sp/testing/cat/3_mask_bbox.png_blur_5_7.png_sd2_0.png",
        ],
    )
    (item,) = by_path(LAYOUTS["tgif"](tmp_path), Record).values()
    assert item.mask == "masks/testing/cat/3_mask_bbox.png_blur_5_7.png"


def test_identical_tables_no_split_and_foreign_trees(tmp_path):
    with pytest.raises(DataError, match=r"no file named as in TGIF.*layout tgif"):
        list(LAYOUTS["tgif"](tmp_path))
    put(tmp_path, ["orig/cat/3_orig.png", "orig/testing/cat/4_orig.png", "orig/testing/cat/strange.png"])
    (tmp_path / "metadata-flux").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"metadata-flux/orig-flux_{split}.csv").write_text("category,image_id\ncat,3\n")
    result = scan(tmp_path, "tgif", sample=0)
    assert [(r.path, r.fault) for r in result.rejects] == [("orig/cat/3_orig.png", "no-split")]
    findings = {finding.name: finding for finding in result.findings}
    assert findings["twin-tables"].count == 2
    assert findings["orphan-image"].examples == ("orig/testing/cat/strange.png",)
