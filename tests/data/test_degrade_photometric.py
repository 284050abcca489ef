"""Noise, blur, gamma and colour: sigma and factors mean what they say, against NumPy, SciPy, scikit-image, colorsys."""

import colorsys

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.ndimage import correlate1d, gaussian_filter
from skimage.exposure import adjust_gamma

from dlprobe.data.degrade import Blur, ColourJitter, Gamma, Noise
from dlprobe.errors import DataError

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (33, 47, 3), np.uint8)
FLAT = np.full((200, 200, 3), 128, np.uint8)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 4.7958, 23.0])
def test_noise_has_the_standard_deviation_it_names(sigma):
    noise = Noise(sigma).change(FLAT, np.random.default_rng(1)).astype(float) - 128
    expected = np.sqrt(sigma**2 + 1 / 12)  # rounding adds a twelfth
    assert noise.std() == pytest.approx(expected, rel=0.01)
    assert noise.mean() == pytest.approx(0, abs=4 * expected / np.sqrt(noise.size))
    assert abs(np.mean(noise[..., 0] * noise[..., 1])) < 4 * sigma**2 / 200  # channels are independent
    assert abs(np.mean(noise[:-1] * noise[1:])) < 4 * sigma**2 / 200  # so are neighbours
    assert np.mean((noise / expected) ** 4) == pytest.approx(3, rel=0.05)


def test_noise_is_rounded_and_clipped_not_wrapped():
    found = Noise(40).change(PICTURE, np.random.default_rng(2))
    exact = PICTURE + 40 * np.random.default_rng(2).standard_normal(PICTURE.shape)
    assert_array_equal(found, np.round(exact).clip(0, 255))


def test_no_noise_is_no_change():
    assert_array_equal(Noise(0).change(PICTURE, RNG), PICTURE)


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.5, 3.0])
def test_blur_by_sigma_against_scipy(sigma):
    expected = np.dstack(
        [gaussian_filter(PICTURE[..., c].astype(float), sigma, mode="mirror", truncate=5) for c in range(3)]
    )
    difference = np.abs(Blur(sigma).change(PICTURE, RNG) - expected)
    assert difference.max() <= 1.6
    assert difference.mean() < 0.5


#: For short kernels OpenCV has these weights, whatever the formula gives.
FIXED = {3: np.array([1, 2, 1]) / 4, 5: np.array([1, 4, 6, 4, 1]) / 16, 7: np.array([2, 7, 14, 18, 14, 7, 2]) / 64}


@pytest.mark.parametrize("kernel", [3, 5, 7, 11, 23])
def test_blur_by_kernel_uses_opencvs_sigma(kernel):
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    assert sigma == pytest.approx(0.15 * kernel + 0.35)
    offsets = np.arange(kernel) - kernel // 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    weights = FIXED.get(kernel, weights)
    expected = PICTURE.astype(float)
    for axis in (0, 1):
        expected = correlate1d(expected, weights, axis=axis, mode="mirror")
    difference = np.abs(Blur(kernel_px=kernel).change(PICTURE, RNG) - expected)
    assert difference.max() <= 1.6
    assert_array_equal(Blur(kernel_px=kernel).change(PICTURE, RNG), cv2.GaussianBlur(PICTURE, (kernel, kernel), 0))


def test_no_blur_is_no_change():
    assert_array_equal(Blur(kernel_px=1).change(PICTURE, RNG), PICTURE)
    assert_array_equal(Blur(sigma_px=0).change(PICTURE, RNG), PICTURE)


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.3])
def test_gamma_against_scikit_image(exponent):
    found = Gamma(exponent).change(PICTURE, RNG)
    assert np.abs(found.astype(int) - adjust_gamma(PICTURE, exponent)).max() <= 1
    assert_array_equal(found, np.rint(255 * (PICTURE / 255.0) ** exponent))


LUMA = np.array([0.299, 0.587, 0.114])


def luma(pixels):
    return np.floor(pixels @ LUMA + 0.5)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize(
    ("name", "anchor"),
    [
        ("brightness", lambda pixels: np.zeros(pixels.shape)),
        ("contrast", lambda pixels: np.full(pixels.shape, np.floor(luma(pixels).mean() + 0.5))),
        ("saturation", lambda pixels: np.dstack([luma(pixels)] * 3)),
    ],
)
def test_factors_are_distances_from_an_anchor(name, anchor, factor):
    found = ColourJitter(**{name: factor}).change(PICTURE, RNG)
    expected = anchor(PICTURE) + factor * (PICTURE - anchor(PICTURE))
    assert np.abs(found - expected.clip(0, 255)).max() <= 1.5


@pytest.mark.parametrize("turns", [0.0, 0.1, -0.25, 0.5])
def test_hue_turns_against_colorsys(turns):
    pixels = RNG.integers(0, 256, (12, 12, 3), np.uint8)
    found = ColourJitter(hue_turns=turns).change(pixels, RNG)
    for index in np.ndindex(12, 12):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[index] / 255.0))
        expected = np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)) * 255
        assert np.abs(found[index] - expected).max() <= 8  # Pillow keeps hue in 256 steps


def test_colours_change_in_the_order_brightness_contrast_saturation():
    step = ColourJitter(1.2, 0.7, 1.3)
    expected = PICTURE
    for part in (ColourJitter(brightness=1.2), ColourJitter(contrast=0.7), ColourJitter(saturation=1.3)):
        expected = part.change(expected, RNG)
    assert_array_equal(step.change(PICTURE, RNG), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Noise(-1), "sigma_levels is -1"),
        (lambda: Noise(float("nan")), "sigma_levels is nan"),
        (Blur, "either a sigma or a kernel"),
        (lambda: Blur(1.0, 3), "either a sigma or a kernel"),
        (lambda: Blur(kernel_px=4), "must be odd"),
        (lambda: Blur(kernel_px=0), "kernel_px is 0"),
        (lambda: Blur(-0.1), "sigma_px is -0.1"),
        (lambda: Gamma(0), "exponent is 0"),
        (lambda: ColourJitter(brightness=-1), "brightness is -1"),
        (lambda: ColourJitter(hue_turns=0.6), "hue_turns is 0.6"),
    ],
)
def test_values_out_of_range_are_refused(make, words):
    with pytest.raises(DataError, match=words):
        make()
