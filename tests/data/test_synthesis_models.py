"""Auto-encoders and inpainters of the demo data, against independent computations."""

import cv2
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from dlprobe.data.synthesis.autoencoders import (
    COMPONENTS,
    RIDGE,
    fit_pca,
    fit_super_resolution,
    pca_moments,
    super_resolution_moments,
)
from dlprobe.data.synthesis.demo import _tasks
from dlprobe.data.synthesis.families import through
from dlprobe.data.synthesis.inpainters import INPAINTERS
from dlprobe.data.synthesis.photographs import PAIRS, load_photograph
from dlprobe.errors import DataError


@pytest.fixture(scope="module")
def pairs():
    return [[load_photograph(name, 128) for name in pair] for pair in PAIRS[:4]]


def psnr_db(left: np.ndarray, right: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((left.astype(float) - right.astype(float)) ** 2)))


def blocks_of(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.array(
        [
            pixels[y : y + side, x : x + side].ravel()
            for y in range(0, pixels.shape[0], side)
            for x in range(0, pixels.shape[1], side)
        ]
    )


def test_pca_agrees_with_scikit_learn(pairs):
    first, second = (photograph.pixels for photograph in pairs[0])
    coder = fit_pca([pca_moments(first), pca_moments(second)])
    training = np.concatenate([blocks_of(pixels / 255.0, 8) for pixels in (first, second)])
    reference = PCA(COMPONENTS, svd_solver="full").fit(training)
    image = pairs[1][0].pixels
    decoded = reference.inverse_transform(reference.transform(blocks_of(image / 255.0, 8)))
    expected = np.clip(np.rint(decoded * 255), 0, 255)
    np.testing.assert_allclose(blocks_of(coder(image), 8), expected, atol=1)
    assert (blocks_of(coder(image), 8) == expected).mean() > 0.999


def test_super_resolution_agrees_with_scikit_learn(pairs):
    pixels = pairs[0][0].pixels[:126, :126]
    coder = fit_super_resolution([super_resolution_moments(pixels)])
    small = np.rint(cv2.resize(pixels.astype(np.float64), (42, 42), interpolation=cv2.INTER_AREA)) / 255
    framed = np.pad(small, ((2, 2), (2, 2), (0, 0)), mode="symmetric")
    inputs = np.array([framed[y : y + 5, x : x + 5].ravel() for y in range(42) for x in range(42)])
    outputs = blocks_of(pixels / 255.0, 3)
    penalised = inputs - inputs.mean(axis=0)
    reference = Ridge(alpha=RIDGE * len(inputs), solver="cholesky").fit(penalised, outputs)
    expected = np.clip(np.rint(reference.predict(penalised) * 255), 0, 255)
    np.testing.assert_allclose(blocks_of(coder(pixels), 3), expected, atol=1)


def test_autoencoders_lose_detail_but_beat_block_means(pairs):
    for pair in pairs:
        task = next(task for task in _tasks(pairs) if task.photograph is pair[0])
        pixels = pair[0].pixels
        means = pixels.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
        naive = np.repeat(np.repeat(np.rint(means), 8, axis=0), 8, axis=1)
        for coder in task.autoencoders.values():
            assert psnr_db(naive, pixels) + 1 < psnr_db(coder(pixels), pixels) < 50
        small = cv2.resize(pixels[:126, :126], (42, 42), interpolation=cv2.INTER_AREA)
        nearest = np.repeat(np.repeat(small, 3, axis=0), 3, axis=1)
        assert psnr_db(task.autoencoders["sr"](pixels[:126, :126]), pixels[:126, :126]) > psnr_db(
            nearest, pixels[:126, :126]
        )


def test_the_autoencoders_of_a_pair_never_saw_it(pairs):
    before = list(_tasks(pairs))
    left, right = pairs[1]
    other = right._replace(pixels=255 - right.pixels[::-1] // 2)
    changed = [pairs[0], [left, other], *pairs[2:]]
    for old, new in zip(before, _tasks(changed), strict=True):
        own = old.turn // 2 == 1
        image = pairs[0][0].pixels
        for name, coder in old.autoencoders.items():
            assert (coder(image) == new.autoencoders[name](image)).all() == own
    for old in before:
        assert {old.photograph.source_id, old.donor.source_id} == {p.source_id for p in pairs[old.turn // 2]}


def test_each_photograph_weighs_the_same_whatever_its_size(pairs):
    small, large = pairs[0][0].pixels[:16, :16], np.tile(pairs[0][1].pixels, (2, 2, 1))
    once = fit_pca([pca_moments(small), pca_moments(pairs[0][1].pixels)])
    tiled = fit_pca([pca_moments(small), pca_moments(large)])
    np.testing.assert_allclose(tiled.mean, once.mean)
    np.testing.assert_allclose(tiled.axes @ tiled.axes.T, once.axes @ once.axes.T, atol=1e-8)


@pytest.mark.parametrize("size", [(31, 50), (64, 64), (17, 8)])
def test_any_size_goes_through(pairs, size):
    task = next(iter(_tasks(pairs)))
    pixels = pairs[0][0].pixels[: size[0], : size[1]]
    for coder in task.autoencoders.values():
        decoded = coder(pixels)
        assert decoded.shape == pixels.shape
        assert decoded.dtype == np.uint8
        assert psnr_db(decoded, pixels) > 15


def test_nothing_to_fit_on_is_refused():
    for fit in (fit_pca, fit_super_resolution):
        with pytest.raises(DataError, match="at least one photograph"):
            fit([])


def test_a_grey_photograph_stays_grey(pairs):
    task = next(iter(_tasks(pairs)))
    grey = pairs[1][0]
    assert grey.grey
    assert not pairs[0][0].grey
    coder = task.autoencoders["pca"]
    assert not (coder(grey.pixels) == coder(grey.pixels)[..., :1]).all()
    assert (through(coder, grey.pixels, grey=True) == through(coder, grey.pixels, grey=True)[..., :1]).all()


@pytest.mark.parametrize("name", ["telea", "ns", "donor"])
def test_inpainters_fill_the_mask_and_nothing_else(pairs, name):
    receiver, donor = (photograph.pixels for photograph in pairs[0])
    mask = np.zeros(receiver.shape[:2], bool)
    mask[30:70, 20:90] = True
    filled = INPAINTERS[name](receiver, mask, donor, np.random.default_rng(0))
    np.testing.assert_array_equal(filled[~mask], receiver[~mask])
    assert (filled[mask] != receiver[mask]).any(axis=-1).mean() > 0.9


def test_opencv_fills_are_smoother_than_what_was_there(pairs):
    pixels = pairs[1][1].pixels  # grass
    mask = np.zeros(pixels.shape[:2], bool)
    mask[40:80, 40:80] = True
    inner = (slice(46, 74), slice(46, 74))
    for name in ("telea", "ns"):
        filled = INPAINTERS[name](pixels, mask, pixels, np.random.default_rng(0))
        assert (
            np.abs(np.diff(filled[inner].astype(float), axis=1)).mean()
            < 0.5 * np.abs(np.diff(pixels[inner].astype(float), axis=1)).mean()
        )


@pytest.mark.parametrize("size", [(40, 200), (300, 300), (64, 64)])
def test_donor_content_is_the_donors_unscaled_and_reflected_where_it_ends(size):
    rng = np.random.default_rng(3)
    donor = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.ones(size, bool)
    filled = INPAINTERS["donor"](np.zeros((*size, 3), np.uint8), mask, donor, rng)
    mirrored = np.pad(donor, ((0, 500), (0, 500), (0, 0)), mode="symmetric")
    places = [(y, x) for y in range(265) for x in range(265) if (mirrored[y, x] == filled[0, 0]).all()]
    height, width = min(40, size[0]), min(200, size[1])
    assert any((mirrored[y : y + height, x : x + width] == filled[:height, :width]).all() for y, x in places)
