"""Resizing, cropping and cutting out: against Pillow, OpenCV and NumPy; region maps follow without invented classes."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from dlprobe.data.degrade import Crop, CutOut, Limit, Resize
from dlprobe.errors import DataError

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (30, 44, 3), np.uint8)
REGIONS = RNG.choice(np.array([0, 1, 2, 255], np.uint8), (30, 44))
PILLOW = {"nearest": 0, "box": 4, "bilinear": 2, "bicubic": 3, "lanczos": 1}
OPENCV = {"cv-nearest": 0, "cv-linear": 1, "cv-cubic": 2, "cv-area": 3, "cv-lanczos": 4}


def apply(step, pixels=PICTURE, regions=REGIONS):
    return step.apply(pixels, regions, RNG)


@pytest.mark.parametrize("factor", [0.5, 0.73, 1.5, 2.0])
@pytest.mark.parametrize("name", PILLOW)
def test_resizing_against_pillow(name, factor):
    pixels, regions = apply(Resize(factor, name))
    size = round(44 * factor), round(30 * factor)
    assert_array_equal(pixels, np.asarray(Image.fromarray(PICTURE).resize(size, Image.Resampling(PILLOW[name]))))
    assert_array_equal(regions, np.asarray(Image.fromarray(REGIONS).resize(size, Image.Resampling.NEAREST)))


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("name", OPENCV)
def test_resizing_against_opencv(name, factor):
    pixels, regions = apply(Resize(factor, name))
    size = round(44 * factor), round(30 * factor)
    assert_array_equal(pixels, cv2.resize(PICTURE, size, interpolation=OPENCV[name]))
    assert regions.shape == pixels.shape[:2]


@pytest.mark.parametrize("name", ["box", "cv-area"])
def test_half_the_size_by_area_is_the_mean_of_four(name):
    expected = PICTURE.reshape(15, 2, 22, 2, 3).mean(axis=(1, 3))
    assert np.abs(apply(Resize(0.5, name))[0] - expected).max() <= 1  # Pillow rounds once per axis


def test_twice_the_size_by_nearest_is_a_repetition():
    pixels, regions = apply(Resize(2, "nearest"))
    assert_array_equal(pixels, PICTURE.repeat(2, axis=0).repeat(2, axis=1))
    assert_array_equal(regions, REGIONS.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize("factor", [0.4, 1.7])
def test_on_the_way_back_the_region_map_stays(factor):
    there = apply(Resize(factor, "lanczos"))[0]
    pixels, regions = apply(Resize(factor, "lanczos", "cv-area"))
    assert_array_equal(pixels, cv2.resize(there, (44, 30), interpolation=cv2.INTER_AREA))
    assert_array_equal(regions, REGIONS)


def test_up_by_nearest_and_back_by_area_changes_nothing():
    pixels, regions = apply(Resize(4, "cv-nearest", "cv-area"))
    assert_array_equal(pixels, PICTURE)
    assert_array_equal(regions, REGIONS)


@pytest.mark.parametrize(("limit", "size"), [(22, (15, 22)), (44, (30, 44)), (1000, (30, 44)), (1, (1, 1))])
def test_a_limit_shrinks_only_what_exceeds_it(limit, size):
    pixels, regions = apply(Limit(limit))
    assert pixels.shape == (*size, 3)
    assert regions.shape == size
    expected = Image.fromarray(PICTURE).resize(size[::-1], Image.Resampling.LANCZOS)
    assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize(
    ("y", "x", "rows", "columns"),
    [
        (0, 0, slice(0, 15), slice(0, 22)),
        (1, 1, slice(15, 30), slice(22, 44)),
        (0.2, 0.5, slice(3, 18), slice(11, 33)),
    ],
)
def test_a_crop_keeps_the_named_part(y, x, rows, columns):
    pixels, regions = apply(Crop(0.5, y, x))
    assert_array_equal(pixels, PICTURE[rows, columns])
    assert_array_equal(regions, REGIONS[rows, columns])


def test_a_cut_out_is_grey_and_void():
    pixels, regions = apply(CutOut(0.5, 1, 0, 7))
    inside = np.zeros((30, 44), bool)
    inside[15:, :15] = True
    assert_array_equal(pixels, np.where(inside[..., None], 7, PICTURE))
    assert_array_equal(regions, np.where(inside, 255, REGIONS))


shares = st.floats(0, 1)
steps = st.one_of(
    st.builds(Resize, st.floats(0.05, 3), st.sampled_from([*PILLOW, *OPENCV]), st.sampled_from(["no", *PILLOW])),
    st.builds(Limit, st.integers(1, 60)),
    st.builds(Crop, st.floats(0.01, 1), shares, shares),
    st.builds(CutOut, st.floats(0.001, 1), shares, shares, st.integers(0, 255)),
)


@given(steps, st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_any_step_keeps_pixels_and_regions_together(step, height, width):
    regions = np.random.default_rng(height * 41 + width).choice(np.array([0, 2], np.uint8), (height, width))
    pixels = np.dstack([regions * np.uint8(100)] * 3)
    before = pixels.copy(), regions.copy()
    new_pixels, new_regions = step.apply(pixels, regions, RNG)
    assert_array_equal(pixels, before[0])
    assert_array_equal(regions, before[1])
    assert new_pixels.shape == (*new_regions.shape, 3)
    assert new_pixels.dtype == new_regions.dtype == np.uint8
    assert min(new_regions.shape) >= 1
    assert set(np.unique(new_regions)) <= {*np.unique(regions), *([255] if isinstance(step, CutOut) else [])}
    if isinstance(step, Crop | CutOut):
        kept = new_regions != 255
        assert_array_equal(new_pixels[kept][:, 0], new_regions[kept] * 100)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Resize(0), "factor is 0"),
        (lambda: Resize(2, "cubic"), "no filter 'cubic'"),
        (lambda: Resize(2, back="yes"), "way back"),
        (lambda: Limit(0), "side_px is 0"),
        (lambda: Limit(9, "cubic"), "no filter 'cubic'"),
        (lambda: Crop(0), "keep_share is 0"),
        (lambda: Crop(1.1), "keep_share is 1.1"),
        (lambda: Crop(0.5, y_share=2), "y_share is 2"),
        (lambda: CutOut(0), "side_share is 0"),
        (lambda: CutOut(0.1, x_share=-1), "x_share is -1"),
        (lambda: CutOut(0.1, level=256), "level is 256"),
    ],
)
def test_values_out_of_range_are_refused(make, words):
    with pytest.raises(DataError, match=words):
        make()
