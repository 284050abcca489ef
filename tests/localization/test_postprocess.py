"""Each step after the threshold against SciPy, scikit-image or the definition in float64."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label, regionprops

from dlprobe.errors import DataError
from dlprobe.localization import PostProcessing, masks_by_step, postprocess
from dlprobe.localization.postprocess import fill_holes, guided_filter, label_regions, remove_small, smooth


def blobs(seed, shape=(90, 130), share=0.5):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5)
    return noise > np.quantile(noise, 1 - share)


CASES = [blobs(0), blobs(1, (130, 90), 0.3), blobs(2, share=0.8), np.zeros((20, 30), bool), np.ones((20, 30), bool)]


@pytest.mark.parametrize("mask", CASES)
def test_holes_as_scipy_fills_them(mask):
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_a_hole_that_touches_a_corner_only_is_filled():
    mask = np.ones((5, 5), bool)
    mask[2, 2] = mask[1, 1] = False
    assert fill_holes(mask).all()
    mask[0, 0] = False  # reaches the border, but only by corners
    assert fill_holes(mask).sum() == 24


@pytest.mark.parametrize("mask", CASES)
@pytest.mark.parametrize("area", [1, 30, 31, 400])
def test_small_regions_are_those_that_scipy_finds(mask, area):
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    np.testing.assert_array_equal(remove_small(mask, area), mask & (np.bincount(labels.ravel())[labels] >= area))


@pytest.mark.parametrize("mask", CASES)
def test_regions_have_the_boxes_of_scikit_image(mask):
    _, stats = label_regions(mask)
    expected = {
        (p.bbox[0], p.bbox[1], p.bbox[2] - p.bbox[0], p.bbox[3] - p.bbox[1], int(p.area))
        for p in regionprops(label(mask, connectivity=2))
    }
    assert {tuple(map(int, row)) for row in stats[1:]} == expected


@pytest.mark.parametrize("mask", CASES)
@pytest.mark.parametrize("radius", [1, 2, 5])
def test_smoothing_is_opening_then_closing_by_a_disk(mask, radius):
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = x * x + y * y <= radius * radius

    def eroded(m):
        return ndimage.binary_erosion(m, disk, border_value=1)

    def dilated(m):
        return ndimage.binary_dilation(m, disk, border_value=0)

    np.testing.assert_array_equal(smooth(mask, radius), eroded(dilated(dilated(eroded(mask)))))


def guided_by_definition(guide, values, radius, epsilon):
    """Fit a line in every window, then average, at each pixel, the lines of the windows that hold it."""
    height, width = guide.shape

    def window(y, x):
        return slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1)

    slope, offset = np.empty((2, height, width))
    for y, x in np.ndindex(height, width):
        i, p = guide[window(y, x)], values[window(y, x)]
        slope[y, x] = ((i * p).mean() - i.mean() * p.mean()) / (i.var() + epsilon)
        offset[y, x] = p.mean() - slope[y, x] * i.mean()
    found = np.empty((height, width))
    for y, x in np.ndindex(height, width):
        found[y, x] = slope[window(y, x)].mean() * guide[y, x] + offset[window(y, x)].mean()
    return found


@pytest.mark.parametrize("radius", [1, 4, 40])
def test_the_guided_filter_is_its_definition(radius):
    rng = np.random.default_rng(0)
    guide, values = rng.random((31, 23)), rng.random((31, 23))
    np.testing.assert_allclose(
        guided_filter(guide, values, radius, 1e-3), guided_by_definition(guide, values, radius, 1e-3), atol=1e-10
    )


def test_guided_refinement_in_strips_is_that_of_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (120, 50, 3), np.uint8)
    scores = rng.random((120, 50), np.float32)
    settings = PostProcessing(guided_radius_px=3)
    whole = masks_by_step(scores, image, 0.5, settings)["guided"]
    monkeypatch.setattr(postprocess, "STRIP_PX", 50)
    np.testing.assert_array_equal(masks_by_step(scores, image, 0.5, settings)["guided"], whole)
    grey = image @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_array_equal(whole, guided_filter(grey, scores, 3, 1e-3) >= 0.5)


def test_guided_refinement_moves_a_border_to_the_edge_of_the_image():
    image = np.zeros((60, 60, 3), np.uint8)
    image[:, 30:] = 200
    scores = np.clip((np.arange(60) - 20) / 14, 0, 1).astype(np.float32)[None].repeat(60, axis=0)  # blurred, too early
    found = masks_by_step(scores, image, 0.5, PostProcessing(guided_radius_px=8, guided_epsilon=1e-4))
    assert found["threshold"][30].argmax() == 27
    assert found["guided"][30].argmax() == 30


def test_steps_come_in_their_order_and_only_when_asked_for():
    rng = np.random.default_rng(3)
    scores = ndimage.gaussian_filter(rng.random((80, 80)), 1.5).astype(np.float32)
    image = rng.integers(0, 256, (80, 80, 3), np.uint8)
    assert list(masks_by_step(scores, image, 0.5)) == ["threshold"]
    settings = PostProcessing(
        guided_radius_px=1, guided_epsilon=0.1, fill_holes=True, min_area_share=0.01, min_area_px=10, smooth_radius_px=2
    )
    found = masks_by_step(scores, image, 0.5, settings)
    assert tuple(found) == settings.steps == postprocess.STEPS
    np.testing.assert_array_equal(found["threshold"], scores >= 0.5)
    np.testing.assert_array_equal(found["holes"], ndimage.binary_fill_holes(found["guided"]))
    np.testing.assert_array_equal(found["small"], remove_small(found["holes"], 64))
    np.testing.assert_array_equal(found["smooth"], smooth(found["small"], 2))
    assert len({mask.tobytes() for mask in found.values()}) == 5


@pytest.mark.parametrize(
    "values",
    [{"guided_radius_px": -1}, {"guided_epsilon": 0}, {"min_area_px": -1}, {"min_area_share": 1}],
    ids=str,
)
def test_settings_are_checked_at_the_door(values):
    with pytest.raises(DataError, match=next(iter(values))):
        PostProcessing(**values)


def test_scores_of_another_image_are_refused():
    with pytest.raises(DataError, match="do not belong"):
        masks_by_step(np.zeros((4, 5), np.float32), np.zeros((5, 4, 3), np.uint8), 0.5)
