"""Masks in which black is what was generated, and masks of another size: what becomes of labels and identity."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from dlprobe.data import Manifest, label_patches, scan
from dlprobe.data.images import read_mask, same_view
from dlprobe.data.labels import patch_coverage
from dlprobe.data.samples import read_sample
from dlprobe.errors import DataError
from dlprobe.studies.evaluation.scoring import regions_of

SIZE = 84, 112
PATCH = 14


@pytest.fixture
def shapes():
    """What was generated, at three sizes of the same view: as large, half as large, and larger by a third."""
    found = {}
    for name, (height, width) in {"same": SIZE, "half": (42, 56), "large": (112, 149)}.items():
        y, x = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None] + 0.5) / width
        found[name] = ((y - 0.5) ** 2 + (x - 0.4) ** 2 < 0.07) | (x > 0.93)
    return found


def write(root, generated, inverted):
    """Write a photograph, a spliced image and its mask, as a table names them."""
    rng = np.random.default_rng(0)
    real = rng.integers(0, 200, (*SIZE, 3), np.uint8)
    fake = real.copy()
    at = nearest(generated)
    fake[at] = 255 - fake[at]
    Image.fromarray(real).save(root / "real.png")
    Image.fromarray(fake).save(root / "fake.png")
    Image.fromarray(((generated != inverted) * 255).astype(np.uint8)).save(root / "mask.png")
    table = "path,mask,variant,source_id\nreal.png,,real,a\nfake.png,mask.png,sp,a\n"
    (root / "manifest.csv").write_text(table)
    return at


def nearest(generated):
    """Bring a mask to the image's size by the centres of pixels, in float64."""
    y, x = (
        np.floor((np.arange(new, dtype=np.float64) + 0.5) * old / new).astype(int)
        for new, old in zip(SIZE, generated.shape, strict=True)
    )
    return generated[np.ix_(y, x)]


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("size", ["same", "half", "large"])
def test_labels_are_those_of_a_reference_in_float64(tmp_path, shapes, size, inverted):
    truth = write(tmp_path, shapes[size], inverted)
    found = scan(tmp_path, mask_inverted=inverted, mask_resize=size != "same")
    assert found.rejects == []
    row = found.manifest.frame.set_index("path", drop=False).loc["fake.png"]
    regions = read_sample(found.manifest.root, row, 84).regions
    assert_array_equal(regions == 2, truth)
    share = truth.astype(np.float64).reshape(SIZE[0] // PATCH, PATCH, SIZE[1] // PATCH, PATCH).mean(axis=(1, 3))
    coverage = patch_coverage(regions, PATCH)
    assert np.abs(coverage[..., 2] / 255 - share).max() < 1 / 255
    sure = np.abs(share - 0.5) > 1 / 255
    assert_array_equal(label_patches(coverage, "autoencoded-pristine")[sure], (share >= 0.5)[sure])
    assert 0 < share.mean() < 0.5


def test_evaluation_has_the_same_truth(tmp_path, shapes):
    truth = write(tmp_path, shapes["half"], inverted=True)
    frame = scan(tmp_path, mask_inverted=True, mask_resize=True).manifest.frame
    for row, expected in zip(frame.to_dict("records"), (truth, np.zeros_like(truth)), strict=True):
        assert_array_equal(regions_of(row, tmp_path, 10**6) == 2, expected)


def test_the_reading_is_part_of_the_identity_and_travels_with_the_manifest(tmp_path, shapes):
    write(tmp_path, shapes["half"], inverted=False)
    plain = scan(tmp_path, mask_resize=True).manifest
    turned = scan(tmp_path, mask_resize=True, mask_inverted=True).manifest
    assert plain.sha256 != turned.sha256
    assert list(plain.frame["mask_reading"]) == ["resized", ""]
    assert list(turned.frame["mask_reading"]) == ["inverted+resized", ""]
    for name in ("m.parquet", "m.csv"):
        turned.write(tmp_path / name)
        turned.write(tmp_path / name)  # it is known again as a manifest
        assert Manifest.read(tmp_path / name).sha256 == turned.sha256
    again = scan(tmp_path / "m.csv").manifest
    assert again.sha256 == turned.sha256


def test_a_manifest_whose_masks_are_plain_is_what_it_was(tmp_path, shapes):
    write(tmp_path, shapes["same"], inverted=False)
    plain, asked = scan(tmp_path).manifest, scan(tmp_path, mask_resize=True).manifest
    assert "mask_reading" not in plain.frame
    assert plain.sha256 == asked.sha256
    with_column = Manifest(plain.frame.assign(mask_reading=""), tmp_path)
    assert with_column.sha256 == plain.sha256


def test_the_audit_names_the_option_and_is_content_with_it(tmp_path, shapes):
    write(tmp_path, shapes["same"], inverted=True)
    [wrong] = [each for each in scan(tmp_path).findings if each.name == "mask-inverted"]
    assert wrong.severity == "error"
    assert "--mask-inverted" in wrong.detail
    right = {each.name: each for each in scan(tmp_path, mask_inverted=True).findings}
    assert "mask-inverted" not in right
    assert (right["mask-read-inverted"].severity, right["mask-read-inverted"].count) == ("info", 1)


def test_the_audit_says_when_the_option_turned_right_masks_round(tmp_path, shapes):
    write(tmp_path, shapes["same"], inverted=False)
    [wrong] = [each for each in scan(tmp_path, mask_inverted=True).findings if each.name == "mask-inverted"]
    assert "scan without --mask-inverted" in wrong.detail


def test_a_table_says_it_of_single_masks(tmp_path, shapes):
    write(tmp_path, shapes["same"], inverted=True)
    table = pd.read_csv(tmp_path / "manifest.csv", keep_default_na=False)
    table.assign(mask_reading=["", "inverted"]).to_csv(tmp_path / "manifest.csv", index=False)
    assert list(scan(tmp_path).manifest.frame["mask_reading"]) == ["inverted", ""]
    table.assign(mask_reading=["inverted", "upside down"]).to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(DataError, match=r"no mask_reading 'inverted': write one of .*; empty without a mask"):
        scan(tmp_path)
    with pytest.raises(DataError, match=r"fake.png has the mask_reading 'upside down'; write one of inverted, resized"):
        Manifest(table.assign(mask_reading=["", "upside down"]), tmp_path)


def test_a_scan_says_how_far_masks_are_stretched(tmp_path, shapes):
    write(tmp_path, shapes["same"], inverted=False)
    Image.fromarray(np.full((84, 110), 255, np.uint8)).save(tmp_path / "mask.png")
    [found] = [each for each in scan(tmp_path, mask_resize=True).findings if each.name == "mask-resized"]
    assert found.detail.endswith("stretched by up to 1.8%")


def test_a_mask_of_another_shape_is_refused_with_a_remedy(tmp_path, shapes):
    write(tmp_path, shapes["same"], inverted=False)
    Image.fromarray(np.full((84, 84), 255, np.uint8)).save(tmp_path / "mask.png")
    for resize in (False, True):
        [reject] = scan(tmp_path, mask_resize=resize).rejects
        assert reject.fault == "mask-size"
        assert "of another shape; bring it to the image's size" in reject.reason
    with pytest.raises(DataError, match="84x84 px, its image 112x84 px"):
        read_mask(tmp_path / "mask.png", SIZE, reading="resized")


@pytest.mark.parametrize(
    ("mask", "image", "expected"),
    [
        ((42, 56), (84, 112), True),
        ((84, 112), (42, 56), True),
        ((586, 512), (576, 512), True),  # each side rounded to a multiple of 64
        ((512, 853), (512, 832), True),
        ((60, 64), (1000, 1000), False),
        ((7, 8), (1000, 1000), True),  # a pixel of the smaller
        ((112, 84), (84, 112), False),
        ((500, 512), (512, 500), False),  # on its side, however near to a square
        ((1, 1), (1, 2), False),
        ((64, 64), (480, 640), False),
        ((1000, 1001), (64, 64), True),
    ],
)
def test_which_sizes_can_show_the_same_view(mask, image, expected):
    assert same_view(mask, image) is expected
