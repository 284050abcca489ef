"""SAGI-D: Windows separators, running numbers, names that say everything, masks of another size."""

import numpy as np
import pytest
from PIL import Image

from dlprobe.data.layouts import LAYOUTS, Finding, Guess, Record, Reject
from dlprobe.data.scan import scan
from dlprobe.errors import DataError

HEADER = "img_path,mask_path,inpainting_model,prompt"


def save(path, size=(24, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(path)


def rows_of(root, *rows):
    (root / "sagid.csv").write_text("\n".join([HEADER, *rows, ""]))


@pytest.fixture
def tabled(tmp_path):
    rows_of(
        tmp_path,
        r"sagid\train\coco\original\0000.jpg,,,",
        r"sagid\train\coco\modified\0000.jpg,sagid\train\coco\mask\0000.png,BrushNet,a cat",
        r"sagid\test\raise\modified\r0b0e2ba5t_Q85.jpg,sagid\test\raise\mask\r0b0e2ba5t.png,HD-Painter,x",
        r"sagid\test\openimages\modified\ab12.jpg,sagid\test\openimages\mask\ab12.png,remove_anything,x",
        r"sagid\val\coco\modified\000000000042.jpg,sagid\val\coco\mask\42.png,powerpaint,x",
    )
    for name in (
        "train/coco/original/0000.jpg",
        "train/coco/modified/0000.jpg",
        "train/coco/mask/0000.png",
        "test/raise/modified/r0b0e2ba5t_Q85.jpg",
        "test/raise/mask/r0b0e2ba5t.png",
        "test/openimages/modified/ab12.jpg",
        "test/openimages/mask/ab12.png",
        "val/coco/modified/000000000042.jpg",
    ):
        save(tmp_path / name)
    save(tmp_path / "val/coco/mask/42.png", (12, 8))
    return tmp_path


def test_a_table_with_windows_separators_and_a_head_above_the_root(tabled):
    result = scan(tabled, "sagi", sample=0)
    frame = result.manifest.frame.set_index("path")
    assert {path: tuple(frame.loc[path, ["variant", "source_id", "generator", "split"]]) for path in frame.index} == {
        "train/coco/original/0000.jpg": ("real", "sagi-coco:train/0000", "", "train"),
        "train/coco/modified/0000.jpg": ("fr", "sagi-coco:train/0000", "brushnet", "train"),
        "test/raise/modified/r0b0e2ba5t_Q85.jpg": ("sp", "raise:r0b0e2ba5t", "hdpainter", "test"),
        "test/openimages/modified/ab12.jpg": ("sp", "openimages:ab12", "removeanything", "test"),
    }
    assert frame.loc["train/coco/modified/0000.jpg", "mask"] == "train/coco/mask/0000.png"
    assert [(r.path, r.fault) for r in result.rejects] == [("val/coco/modified/000000000042.jpg", "mask-size")]
    assert {f.name: f.count for f in result.faults} == {"source-unknown": 2, "mask-size": 1}
    counts = result.accounting
    assert counts["files"] + counts["listed"] == counts["records"] + counts["rejects"] + counts["ignored"] == 10


def test_the_folder_above_works_as_well(tabled):
    inside = tabled / "sagid"
    inside.mkdir()
    for name in ("train", "test", "val"):
        (tabled / name).rename(inside / name)
    assert len(scan(tabled, "sagi", sample=0).manifest) == 4


def test_coco_numbers_are_recognised_only_where_they_are_whole(tabled):
    found = {i.path: i.source_id for i in LAYOUTS["sagi"](tabled) if isinstance(i, Record)}
    assert found["val/coco/modified/000000000042.jpg"] == "coco:000000000042"


def test_a_fake_named_after_photograph_and_model_has_the_photographs_source(tmp_path):
    rows_of(
        tmp_path,
        r"sagid\train\coco\original\000000000042.jpg,,,",
        r"sagid\train\coco\modified\000000000042_BrushNet.png,sagid\train\coco\mask\000000000042.png,BrushNet,x",
        r"sagid\train\raise\original\0007.jpg,,,",
        r"sagid\train\raise\modified\0007_hdpainter_sd1-5.png,sagid\train\raise\mask\0007.png,hdpainter,x",
    )
    found = {i.path.rpartition("/")[2]: i.source_id for i in LAYOUTS["sagi"](tmp_path) if isinstance(i, Record)}
    assert found == {
        "000000000042.jpg": "coco:000000000042",
        "000000000042_BrushNet.png": "coco:000000000042",
        "0007.jpg": "sagi-raise:train/0007",
        "0007_hdpainter_sd1-5.png": "sagi-raise:train/0007",
    }


def test_a_mask_that_no_row_names_is_an_orphan(tabled):
    save(tabled / "val/coco/mask/43.png")
    found = {f.name: f.examples for f in scan(tabled, "sagi", sample=0).findings}
    assert found["orphan-mask"] == ("val/coco/mask/43.png",)
    assert "orphan-image" not in found


def test_guesses_name_the_models_that_are_there(tabled):
    guesses = [i for i in LAYOUTS["sagi"](tabled) if isinstance(i, Guess)]
    assert [g.generator for g in guesses if g.check == "variant"] == [
        "brushnet",
        "hdpainter",
        "powerpaint",
        "removeanything",
    ]
    assert [g.check for g in guesses if not g.generator] == ["polarity"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (r"train\coco\modified\1.jpg,m.png,dalle,x", "unknown-generator"),
        (r"train\coco\modified\1.jpg,,brushnet,x", "no-mask"),
        (r"train\other\modified\1.jpg,m.png,brushnet,x", "no-source"),
        (",m.png,brushnet,x", "no-path"),
    ],
)
def test_rows_that_cannot_be_placed(tmp_path, row, fault):
    rows_of(tmp_path, row)
    assert [i.fault for i in LAYOUTS["sagi"](tmp_path) if isinstance(i, Reject)] == [fault]


def test_names_say_everything_where_there_is_no_table(tmp_path):
    names = {
        "images/raise_r0b0e2ba5t_Q85_brushnet_sd1-5_1_None.jpg": ("fr", "raise:r0b0e2ba5t", "brushnet/sd1-5"),
        "images/coco_000000123456_hdpainter_dreamshaper_0_Upscaled.jpg": (
            "sp",
            "coco:000000123456",
            "hdpainter/dreamshaper",
        ),
        "images/openimages_a_b_removeanything_lama_0_None.jpg": ("sp", "openimages:a_b", "removeanything/lama"),
        "images/coco_000000123456.jpg": ("real", "coco:000000123456", ""),
    }
    for name in names:
        save(tmp_path / name)
    save(tmp_path / "mask" / "raise_r0b0e2ba5t_Q85_brushnet_sd1-5_1_None.png")
    save(tmp_path / "mask" / "coco_000000123456_mask.png")
    save(tmp_path / "mask" / "openimages_a_b.png")
    items = list(LAYOUTS["sagi"](tmp_path))
    found = {i.path: (i.variant, i.source_id, i.generator) for i in items if isinstance(i, Record)}
    assert found == names
    masks = {i.path: i.mask for i in items if isinstance(i, Record)}
    assert masks["images/coco_000000123456_hdpainter_dreamshaper_0_Upscaled.jpg"] == "mask/coco_000000123456_mask.png"
    assert not [i for i in items if isinstance(i, (Reject, Finding))]


def test_a_published_asset_without_mask_is_a_reject(tmp_path):
    save(tmp_path / "raise_r0b0e2ba5t_Q85_controlnet_sdxl_1_None.jpg")
    (item,) = [i for i in LAYOUTS["sagi"](tmp_path) if isinstance(i, Reject)]
    assert item.fault == "no-mask"


def test_a_foreign_tree_is_an_error(tmp_path):
    save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="no tree of layout sagi"):
        list(LAYOUTS["sagi"](tmp_path))
