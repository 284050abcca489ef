"""Compression: quality means what it says, against a block transform by hand, Pillow and OpenCV."""

import io

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from scipy.fft import dctn, idctn

from dlprobe.data.degrade import DoubleJpeg, Jpeg, Webp
from dlprobe.errors import DataError

RNG = np.random.default_rng(0)
#: Luma table of ITU-T T.81, Annex K.1.
LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


def picture(height=64, width=80):
    smooth = cv2.GaussianBlur(RNG.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)


PICTURE = picture()
GREY = np.dstack([PICTURE[..., 0]] * 3)


def table(quality):
    """Return the luma table at a quality, as libjpeg scales it."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((LUMA * scale + 50) // 100, 1, 255)


def blocks(grey):
    height, width = grey.shape
    return grey.reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2)


def by_hand(grey, quality):
    steps = table(quality)
    coefficients = np.rint(dctn(blocks(grey.astype(float) - 128), axes=(2, 3), norm="ortho") / steps) * steps
    found = idctn(coefficients, axes=(2, 3), norm="ortho").swapaxes(1, 2).reshape(grey.shape)
    return np.clip(np.rint(found + 128), 0, 255)


@pytest.mark.parametrize("quality", [30, 50, 75, 90, 100])
def test_jpeg_quantises_blocks_by_the_standard_table(quality):
    found = Jpeg(quality, "4:4:4").change(GREY, RNG)
    expected = by_hand(GREY[..., 0], quality)
    difference = np.abs(found - expected[..., None])
    # libjpeg's transform works in integers, so that now and then a coefficient falls to the other side
    assert np.quantile(difference, 0.9) <= 1
    assert difference.mean() < 0.4
    coarser = by_hand(GREY[..., 0], quality - 10)
    assert np.abs(found - coarser[..., None]).mean() > 2 * difference.mean()


@pytest.mark.parametrize("quality", [40, 80])
@pytest.mark.parametrize(
    ("subsampling", "flag"),
    [
        ("4:4:4", cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
        ("4:2:2", cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422),
        ("4:2:0", cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
    ],
)
def test_jpeg_against_opencv(quality, subsampling, flag):
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, flag]
    done, content = cv2.imencode(".jpg", PICTURE[..., ::-1], options)
    assert done
    expected = cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1]
    difference = np.abs(Jpeg(quality, subsampling).change(PICTURE, RNG).astype(int) - expected)
    assert difference.max() <= 3
    assert difference.mean() < 0.1


def test_jpeg_is_in_pillows_default_colours_and_keeps_odd_sizes():
    odd = picture(37, 23)
    buffer = io.BytesIO()
    Image.fromarray(odd).save(buffer, "JPEG", quality=75)
    assert_array_equal(Jpeg(75).change(odd, RNG), np.asarray(Image.open(buffer)))


def test_double_jpeg_without_a_shift_is_two_jpegs():
    once = Jpeg(60, "4:2:2").change(PICTURE, RNG)
    assert_array_equal(
        DoubleJpeg(60, 85, subsampling="4:2:2").change(PICTURE, RNG), Jpeg(85, "4:2:2").change(once, RNG)
    )


@pytest.mark.parametrize(("shift_y", "shift_x"), [(0, 0), (3, 0), (0, 5), (4, 7)])
def test_the_first_grid_of_a_double_jpeg_lies_where_the_shift_says(shift_y, shift_x):
    found = DoubleJpeg(40, 100, shift_y, shift_x, "4:4:4").change(GREY, RNG)[..., 0].astype(float)
    assert found.shape == GREY.shape[:2]
    step = table(40)[0, 1]

    def misfit(y, x):
        inner = found[(8 - y) % 8 :, (8 - x) % 8 :]
        inner = inner[: inner.shape[0] // 8 * 8, : inner.shape[1] // 8 * 8]
        coefficients = dctn(blocks(inner - 128), axes=(2, 3), norm="ortho")[..., 0, 1]
        return np.abs(coefficients - np.rint(coefficients / step) * step).mean()

    misfits = {(y, x): misfit(y, x) for y in range(8) for x in range(8)}
    best = min(misfits, key=misfits.get)
    assert best == (shift_y, shift_x)
    assert misfits[best] < 0.5 * sorted(misfits.values())[1]


@pytest.mark.parametrize("quality", [20, 80])
def test_webp_against_opencv(quality):
    done, content = cv2.imencode(".webp", PICTURE[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert done
    expected = cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1]
    difference = np.abs(Webp(quality).change(PICTURE, RNG).astype(int) - expected)
    assert difference.mean() < 0.5


@pytest.mark.parametrize("kind", [Jpeg, Webp, lambda quality: DoubleJpeg(95, quality)])
def test_a_higher_quality_is_nearer_to_the_image(kind):
    errors = [np.abs(kind(q).change(PICTURE, RNG).astype(float) - PICTURE).mean() for q in (10, 40, 70, 95)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[-1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Jpeg(0), "quality_pct is 0; it must lie between 1 and 100"),
        (lambda: Jpeg(101), "quality_pct is 101"),
        (lambda: Jpeg(80, "4:1:1"), "write one of 4:4:4, 4:2:2, 4:2:0"),
        (lambda: DoubleJpeg(80, 101), "q2_pct is 101"),
        (lambda: DoubleJpeg(80, 90, 16), "shift_y_px is 16"),
        (lambda: Webp(-1), "quality_pct is -1"),
    ],
)
def test_values_out_of_range_are_refused(make, words):
    with pytest.raises(DataError, match=words):
        make()


@pytest.mark.parametrize(("step", "side"), [(Jpeg(80), 65_501), (Webp(80), 16_384)])
def test_images_too_large_for_a_format_are_refused(step, side):
    with pytest.raises(DataError, match=f"the image is {side}x1 px"):
        step.change(np.zeros((1, side, 3), np.uint8), RNG)
