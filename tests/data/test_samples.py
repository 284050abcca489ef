"""A manifest's row, decoded."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from dlprobe.data.samples import read_sample
from dlprobe.errors import DataError

RNG = np.random.default_rng(1)
PIXELS = RNG.integers(0, 256, (30, 40, 3), np.uint8)
MASK = np.zeros((30, 40), np.uint8)
MASK[5:20, 8:30] = 255


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "images" / "a.png")
    Image.fromarray(MASK).save(tmp_path / "m.png")
    return tmp_path


def row(**changes):
    return pd.Series({"path": "images/a.png", "mask": "m.png", "variant": "fr", "height": 30, "width": 40, **changes})


def test_pixels_regions_and_hash_of_an_image_at_its_own_size(root):
    sample = read_sample(root, row(), 28)
    assert_array_equal(sample.pixels, PIXELS)
    assert_array_equal(sample.regions, np.where(MASK > 127, 2, 1))
    assert sample.sha256 == hashlib.sha256((root / "images" / "a.png").read_bytes()).hexdigest()


def test_a_small_image_is_enlarged_with_its_regions(root):
    sample = read_sample(root, row(), 56)
    side = 1016 * 56 / 504
    expected = round(side * (30 / 40) ** 0.5), round(side * (40 / 30) ** 0.5)
    assert sample.pixels.shape == (*expected, 3)
    out = expected[::-1]
    assert_array_equal(sample.pixels, np.asarray(Image.fromarray(PIXELS).resize(out, Image.Resampling.BICUBIC)))
    regions = Image.fromarray(np.where(MASK > 127, 2, 1).astype(np.uint8))
    assert_array_equal(sample.regions, np.asarray(regions.resize(out, Image.Resampling.NEAREST)))


def test_authentic_images_need_no_mask(root):
    assert not read_sample(root, row(mask="", variant="real"), 28).regions.any()
    assert (read_sample(root, row(mask="", variant="ae"), 28).regions == 1).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 31}, "40x30 px, the manifest says 40x31"),
        ({"path": "images/b.png"}, "no image at"),
        ({"mask": "n.png"}, "no mask at"),
        ({"mask": ""}, "needs a mask"),
        ({"variant": "real"}, "has no mask"),
    ],
)
def test_rows_that_do_not_fit_their_files_are_refused(root, changes, words):
    with pytest.raises(DataError, match=words):
        read_sample(root, row(**changes), 28)


@pytest.mark.parametrize("large", ["images/a.png", "m.png"])
def test_the_limit_of_pixels_reaches_image_and_mask(root, large):
    if large == "m.png":
        Image.fromarray(np.zeros((31, 40), np.uint8)).save(root / "m.png")
    with pytest.raises(DataError, match=rf"{large} has .* more than {1200 if large == 'm.png' else 1199:,};"):
        read_sample(root, row(), 28, max_pixels=1200 if large == "m.png" else 1199)
