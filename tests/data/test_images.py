"""Reading images and masks, against Pillow and NumPy."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from dlprobe.data.images import enlarge, enlarge_regions, image_size, read_image, read_mask
from dlprobe.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (9, 14, 3), np.uint8)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def test_a_photograph_comes_back_bit_for_bit(tmp_path):
    path = save(tmp_path / "a.png", RGB)
    found = read_image(path)
    assert_array_equal(found, RGB)
    assert found.dtype == np.uint8
    assert image_size(path) == (9, 14)


def ties(out, side):
    """Tell where a new pixel's centre falls between two old pixels."""
    return (2 * np.arange(out) + 1) * side % (2 * out) == 0


@pytest.mark.parametrize("size", [(9, 14), (40, 20), (28, 28), (27, 300)])
def test_enlarging_is_pillows_own(size):
    height, width = size
    pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
    regions = RNG.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
    found, moved = enlarge(pixels, 28), enlarge_regions(regions, 28)
    if min(size) >= 28:
        assert found is pixels
        assert moved is regions
        return
    assert found.shape[:2] == moved.shape
    assert min(moved.shape) >= 28
    out = (moved.shape[1], moved.shape[0])
    assert_array_equal(found, np.asarray(Image.fromarray(pixels).resize(out, Image.Resampling.BICUBIC)))
    assert_array_equal(moved, np.asarray(Image.fromarray(regions).resize(out, Image.Resampling.NEAREST)))
    rows = ((np.arange(moved.shape[0]) + 0.5) * height / moved.shape[0]).astype(int)
    columns = ((np.arange(moved.shape[1]) + 0.5) * width / moved.shape[1]).astype(int)
    sure = np.ix_(~ties(moved.shape[0], height), ~ties(moved.shape[1], width))
    assert_array_equal(moved[sure], regions[np.ix_(rows, columns)][sure])  # nearest: no class is invented


def test_a_mask_is_true_above_127(tmp_path):
    grey = np.array([[0, 1, 126, 127], [128, 129, 254, 255]], np.uint8)
    path = save(tmp_path / "m.png", grey)
    assert_array_equal(read_mask(path, (2, 4)), grey > 127)
    assert image_size(path) == (2, 4)


def test_a_mask_of_another_size_is_refused(tmp_path):
    path = save(tmp_path / "m.png", np.zeros((2, 4), np.uint8))
    with pytest.raises(DataError, match="4x2 px, its image 2x4"):
        read_mask(path, (4, 2))


@pytest.mark.parametrize("reader", [image_size, read_image, lambda path: read_mask(path, (1, 1))])
def test_missing_files_and_other_files_are_data_errors(tmp_path, reader):
    with pytest.raises(DataError, match=r"no (image|mask) at .*a\.png"):
        reader(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image at all")
    with pytest.raises(DataError, match=r"b\.png cannot be read"):
        reader(tmp_path / "b.png")
    with pytest.raises(DataError):
        reader(tmp_path)
