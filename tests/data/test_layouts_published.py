"""B-Free, CocoGlide, BtB, AutoSplice, OpenSDI and BR-Gen: official names in small trees."""

import numpy as np
import pytest
from PIL import Image

from dlprobe.data.layouts import LAYOUTS, Finding, Guess, Ignored, Record, Reject
from dlprobe.data.layouts.published.bfree import FAMILIES
from dlprobe.data.scan import scan
from dlprobe.errors import DataError


def put(root, *names, size=(24, 16)):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(root / name)


def of(items, kind):
    return {item.path: item for item in items if isinstance(item, kind)}


def findings(items):
    return {item.name: item for item in items if isinstance(item, Finding)}


def balanced(result):
    counts = result.accounting
    assert counts["files"] + counts["listed"] == counts["records"] + counts["rejects"] + counts["ignored"]
    return counts


@pytest.fixture
def bfree(tmp_path):
    for folder in FAMILIES:
        put(tmp_path, f"{folder}/000000000009.png", f"{folder}/000000000025.png")
    for folder in ("masks_and_bbox/mask", "masks_and_bbox/bbox"):
        put(tmp_path, f"{folder}/000000000009.png", f"{folder}/000000000025.png")
    (tmp_path / "train_list.csv").write_text("id,category\n000000000009,cat\n")
    (tmp_path / "valid_list.csv").write_text("id,category\n25,dog\n")
    return tmp_path


def test_bfree_families(bfree):
    result = scan(bfree, "bfree", sample=0)
    frame = result.manifest.frame
    assert result.rejects == []
    assert result.faults == []
    assert len(frame) == 14
    first = frame[frame["source_id"] == "coco:000000000009"].pipe(
        lambda f: f.set_index(f["path"].str.split("/").str[0])
    )
    assert set(first["split"]) == {"train"}
    assert set(frame[frame["source_id"] == "coco:000000000025"]["split"]) == {"val"}
    assert {name: (first.loc[name, "variant"], first.loc[name, "mask_kind"]) for name in first.index} == {
        "COCO_real_512": ("real", ""),
        "SD2.1_selfconditioned": ("ae", ""),
        "SD2.1_selfconditioned_origBG": ("aesp", "segm"),
        "SD2.1_inpainted_samecat": ("fr", "segm"),
        "SD2.1_inpainted_samecat_origBG": ("sp", "segm"),
        "SD2.1_inpainted_diffcat": ("fr", "bbox"),
        "SD2.1_inpainted_diffcat_origBG": ("sp", "bbox"),
    }
    assert first.loc["SD2.1_inpainted_diffcat", "mask"] == "masks_and_bbox/bbox/000000000009.png"
    assert first.loc["SD2.1_inpainted_samecat", "mask"] == "masks_and_bbox/mask/000000000009.png"
    assert first.loc["COCO_real_512", "generator"] == ""
    assert first.loc["SD2.1_selfconditioned", "generator"] == "sd2.1"
    assert balanced(result)["ignored"] == 6


def test_bfree_says_what_lists_and_folders_disagree_on(bfree):
    put(bfree, "COCO_real_512/000000000100.png", "COCO_real_512/photo.png", "masks_and_bbox/bbox/000000000777.png")
    (bfree / "masks_and_bbox/mask/000000000025.png").unlink()
    (bfree / "valid_list.csv").write_text("id\n25\n9\n55\n")
    items = list(LAYOUTS["bfree"](bfree))
    assert {path: item.fault for path, item in of(items, Reject).items()} == {
        "COCO_real_512/photo.png": "no-source",
        "SD2.1_selfconditioned_origBG/000000000025.png": "no-mask",
        "SD2.1_inpainted_samecat/000000000025.png": "no-mask",
        "SD2.1_inpainted_samecat_origBG/000000000025.png": "no-mask",
    }
    found = findings(items)
    assert found["unlisted-image"].examples == ("100", "photo")
    assert found["listed-without-image"].examples == ("55",)
    assert found["list-overlap"].examples == ("9",)
    assert found["orphan-mask"].examples == ("masks_and_bbox/bbox/000000000777.png",)
    assert of(items, Record)["COCO_real_512/000000000100.png"].split == ""


def test_bfree_without_lists_or_with_masks_at_the_root(tmp_path):
    put(tmp_path, "SD2.1_inpainted_samecat/000000000009.png", "masks/000000000009.png")
    items = list(LAYOUTS["bfree"](tmp_path))
    assert findings(items)["no-split"].severity == "info"
    assert [r.mask for r in of(items, Record).values()] == ["masks/000000000009.png"]
    (tmp_path / "train_list.csv").write_text("name\nx\n")
    with pytest.raises(DataError, match="no column id"):
        list(LAYOUTS["bfree"](tmp_path))


def test_cocoglide_pairs_by_number_across_classes_with_spaces(tmp_path):
    put(
        tmp_path,
        "real/fire hydrant_1000.png",
        "mask/fire hydrant_1000_mask.png",
        "fake/glide_inpainting_val2017_1000_up.png",
        "fake/glide_inpainting_val2017_139_up.png",
        "fake/glide_inpainting_val2017_776_up.png",
        "mask/cat_776_mask.png",
        "mask/teddy bear_776_mask.png",
        "mask/cat_5_mask.png",
    )
    (tmp_path / "table.csv").write_text("x\n")
    result = scan(tmp_path, "cocoglide", sample=0)
    frame = result.manifest.frame
    assert list(frame["variant"]) == ["sp", "real"]
    assert set(frame["source_id"]) == {"coco:000000001000"}
    assert frame["mask"][0] == "mask/fire hydrant_1000_mask.png"
    assert {r.path: r.fault for r in result.rejects} == {
        "fake/glide_inpainting_val2017_139_up.png": "no-mask",
        "fake/glide_inpainting_val2017_776_up.png": "two-masks",
    }
    assert {f.name for f in result.faults} == {"no-mask", "two-masks", "orphan-mask"}
    balanced(result)


def test_btb_sizes_splits_and_tables_of_unknown_columns(tmp_path):
    put(
        tmp_path,
        "flickr30k/images/10.jpg",
        "flickr30k/images/10_small_0_inpainted.png",
        "flickr30k/images/10_large_4_inpainted.png",
        "flickr30k/masks/mask_10_small.png",
        "flickr30k/masks/mask_10.jpg_large.png",
        "vision/images/D01_I_1_medium_2_inpainted.jpg",
        "vision/masks/mask_D01_I_1_medium.png",
        "vision/images/D02_I_2.jpg",
        "vision/images/D03.jpg",
        "vision/masks/mask_D09_small.png",
    )
    (tmp_path / "btb-flickr30k-train.csv").write_text("a,b\nimages/10_small_0_inpainted.png,0.1\n")
    (tmp_path / "btb-vision-valid.csv").write_text("file\nvision\\images\\D01_I_1.jpg\nD02_I_2.jpg\n")
    (tmp_path / "btb-vision-test.csv").write_text("file\nD02_I_2.jpg\n")
    items = list(LAYOUTS["btb"](tmp_path))
    found = {
        path: (i.variant, i.source_id, i.mask_kind, i.split, i.mask.rsplit("/", 1)[-1])
        for path, i in of(items, Record).items()
    }
    assert found == {
        "flickr30k/images/10.jpg": ("real", "flickr30k:10", "", "train", ""),
        "flickr30k/images/10_small_0_inpainted.png": ("sp", "flickr30k:10", "small", "train", "mask_10_small.png"),
        "flickr30k/images/10_large_4_inpainted.png": ("sp", "flickr30k:10", "large", "train", "mask_10.jpg_large.png"),
        "vision/images/D01_I_1_medium_2_inpainted.jpg": (
            "sp",
            "vision:D01_I_1",
            "medium",
            "val",
            "mask_D01_I_1_medium.png",
        ),
        "vision/images/D02_I_2.jpg": ("real", "vision:D02_I_2", "", "", ""),
        "vision/images/D03.jpg": ("real", "vision:D03", "", "", ""),
    }
    said = findings(items)
    assert said["split-conflict"].examples == ("vision/D02_I_2",)
    assert said["no-split"].count == 2
    assert "columns a, b, file" in said["table-columns"].detail
    assert said["orphan-mask"].examples == ("vision/masks/mask_D09_small.png",)


def test_autosplice_shares_masks_and_keeps_qualities_apart(tmp_path):
    put(
        tmp_path,
        "Authentic/12.jpg",
        "Forged_JPEG100/12_0.jpg",
        "Forged_JPEG75/12_0.jpg",
        "Forged_JPEG75/12_1.jpg",
        "Forged_JPEG90/13_0.jpg",
        "Mask/12_mask.png",
        "Mask/12_1_mask.png",
        "Mask/99_mask.png",
    )
    items = list(LAYOUTS["autosplice"](tmp_path))
    found = {path: (i.variant, i.source_id, i.generator, i.mask) for path, i in of(items, Record).items()}
    assert found == {
        "Authentic/12.jpg": ("real", "autosplice:12", "", ""),
        "Forged_JPEG100/12_0.jpg": ("sp", "autosplice:12", "dalle2/q100", "Mask/12_mask.png"),
        "Forged_JPEG75/12_0.jpg": ("sp", "autosplice:12", "dalle2/q75", "Mask/12_mask.png"),
        "Forged_JPEG75/12_1.jpg": ("sp", "autosplice:12", "dalle2/q75", "Mask/12_1_mask.png"),
    }
    assert of(items, Reject)["Forged_JPEG90/13_0.jpg"].fault == "no-mask"
    assert findings(items)["orphan-mask"].examples == ("Mask/99_mask.png",)
    assert {i.generator for i in items if isinstance(i, Guess)} == {"dalle2/q100", "dalle2/q75", "dalle2/q90"}
    assert {i.variant for i in LAYOUTS["autosplice"](tmp_path, variant="fr") if isinstance(i, Record)} == {"real", "fr"}


def test_opensdi_keys(tmp_path):
    put(
        tmp_path,
        "wild/images/partial/flux/fake/000201886.jpg",
        "wild/images/partial/flux/real/000201886.jpg",
        "wild/images/partial/sd3/fake/000201887.jpg",
        "wild/images/full/sd3/fake/000201888.jpg",
        "wild/masks/partial/flux/fake/000201886.png",
        "test/partial/sdxl/fake/7.jpg",
        "test/masks/partial/sdxl/fake/7.png",
    )
    items = list(LAYOUTS["opensdi"](tmp_path, split="train"))
    found = {path: (i.variant, i.generator, i.split, i.mask) for path, i in of(items, Record).items()}
    assert found == {
        "wild/images/partial/flux/fake/000201886.jpg": (
            "fr",
            "flux",
            "train",
            "wild/masks/partial/flux/fake/000201886.png",
        ),
        "wild/images/partial/flux/real/000201886.jpg": ("real", "", "train", ""),
        "test/partial/sdxl/fake/7.jpg": ("fr", "sdxl", "test", "test/masks/partial/sdxl/fake/7.png"),
    }
    assert of(items, Reject)["wild/images/partial/sd3/fake/000201887.jpg"].fault == "no-mask"
    assert of(items, Ignored)["wild/images/full/sd3/fake/000201888.jpg"].reason.startswith("wholly synthetic")
    assert {i.source_id for i in of(items, Record).values()} == {"opensdi:000201886", "opensdi:7"}


@pytest.mark.parametrize("mask", ["{split}/masks/{key}.png", "masks/{split}/{key}.png", "{split}/mask/{key}.png"])
def test_opensdi_keys_that_train_and_test_share_keep_their_own_masks(tmp_path, mask):
    key = "partial/sd15/fake/000000500"
    for split in ("OpenSDI_train", "test"):
        put(tmp_path, f"{split}/images/{key}.jpg", mask.format(split=split, key=key))
    found = {i.path: (i.mask, i.split) for i in LAYOUTS["opensdi"](tmp_path) if isinstance(i, Record)}
    assert found == {
        f"{split}/images/{key}.jpg": (mask.format(split=split, key=key), split.removeprefix("OpenSDI_"))
        for split in ("OpenSDI_train", "test")
    }


def test_opensdi_shards_must_be_written_out(tmp_path):
    (tmp_path / "train-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="its 1 Parquet shards must be written out first"):
        list(LAYOUTS["opensdi"](tmp_path))


def test_brgen_names_say_generator_and_kind(tmp_path):
    put(
        tmp_path,
        "Au/000000123456.png",
        "Au/n01440764_10.png",
        "Tp/LaMa_Stuff_000000123456.png",
        "Tp/BrushNet_Background_n01440764_10.png",
        "Tp/Other_Stuff_1.png",
        "Gt/LaMa_Stuff_000000123456_mask.png",
        "Gt/BrushNet_Background_n01440764_10_mask.png",
        "Gt/MAT_Stuff_5_mask.png",
    )
    items = list(LAYOUTS["br-gen"](tmp_path))
    found = {path: (i.variant, i.source_id, i.generator, i.mask_kind) for path, i in of(items, Record).items()}
    assert found == {
        "Au/000000123456.png": ("real", "coco:000000123456", "", ""),
        "Au/n01440764_10.png": ("real", "br-gen:n01440764_10", "", ""),
        "Tp/LaMa_Stuff_000000123456.png": ("sp", "coco:000000123456", "lama", "stuff"),
        "Tp/BrushNet_Background_n01440764_10.png": ("fr", "br-gen:n01440764_10", "brushnet", "background"),
    }
    assert of(items, Reject)["Tp/Other_Stuff_1.png"].fault == "unknown-generator"
    assert findings(items)["orphan-mask"].count == 1


@pytest.mark.parametrize("name", ["bfree", "cocoglide", "btb", "autosplice", "opensdi", "br-gen", "manidataset"])
def test_a_foreign_tree_is_an_error_that_names_the_layout(tmp_path, name):
    put(tmp_path, "pictures/a.png")
    with pytest.raises(DataError, match=f"no tree of layout {name}"):
        list(LAYOUTS[name](tmp_path))


def test_data_sets_that_share_photographs_share_source_ids(bfree):
    put(bfree / "glide", "fake/glide_inpainting_val2017_9_up.png", "mask/cat_9_mask.png")
    put(bfree / "tgif", "orig/testing/cat/9_orig.png")
    sources = {
        item.source_id
        for name, root in {"bfree": bfree, "cocoglide": bfree / "glide", "tgif": bfree / "tgif"}.items()
        for item in LAYOUTS[name](root)
        if isinstance(item, Record)
    }
    assert sources == {"coco:000000000009", "coco:000000000025"}
