"""The common grid of pixels, against loops over single pixels and torch's enlargement."""

import numpy as np
import pytest
import torch

from dlprobe.backbones import load_backbone
from dlprobe.cache import open_cache
from dlprobe.data.provenance import Provenance
from dlprobe.data.tiling import Box, tile, working_size
from dlprobe.errors import CacheError
from dlprobe.extraction import extract
from dlprobe.studies import FitSettings, fit_caches
from dlprobe.studies.fitting.pool import CachePool, share_grid
from dlprobe.studies.pixels import PixelGrid, enlarge_logits, inpainted_windows, label_pixels, owned_pixels


@pytest.fixture(scope="module")
def wide_cache(tiny, tiny_manifest):
    """Return a cache of the tiny images with patches of 16 px and windows of 128."""
    backbone = load_backbone("timm:vit_tiny_patch16_224", weights="random:0", window_px=128)
    extract(tiny_manifest, backbone, tiny / "cache-16", stride_px=128, block_windows=16)
    return tiny / "cache-16"


def test_logits_are_enlarged_as_torch_does():
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None, None], size=(84, 80), mode="bicubic", align_corners=False
    )
    np.testing.assert_allclose(enlarge_logits(logits, 84, 80), expected[0, 0], atol=1e-4)


def test_every_common_pixel_counts_once_in_the_first_window_that_shows_it():
    boxes = [Box(0, 0, 4, 4), Box(0, 2, 4, 4), Box(2, 2, 4, 4)]
    common = np.random.default_rng(0).random((6, 6)) < 0.8
    owner = np.full((6, 6), -1)
    for number in reversed(range(3)):
        owner[boxes[number].slices] = number
    for number, own in enumerate(owned_pixels(boxes, common)):
        np.testing.assert_array_equal(own, (common & (owner == number))[boxes[number].slices])
    assert common.any()


def test_the_inpainted_share_of_a_window_counts_a_pixel_once_however_many_windows_show_it(toy_cache):
    cache = open_cache(toy_cache)
    side = cache.model_spec.window_px
    keys = set(zip(cache.windows["dataset"], cache.windows["path"], strict=True))
    found = inpainted_windows(cache, keys)
    regions = cache.regions() == Provenance.INPAINTED
    twice = 0
    for key, part in cache.windows.query("view == 0").groupby(["dataset", "path"]):
        canvas = np.zeros((part["y"].max() + side, part["x"].max() + side), bool)
        for number, row in part.iterrows():
            canvas[row["y"] : row["y"] + side, row["x"] : row["x"] + side] |= regions[number]
        assert found[key] == pytest.approx(canvas.sum() / side**2)
        twice += regions[part.index].sum() > canvas.sum()
    assert twice
    assert any(found.values())


def test_region_maps_of_images_that_are_not_asked_for_are_not_read(toy_cache, monkeypatch):
    cache = open_cache(toy_cache)
    windows = cache.windows.query("view == 0")
    read, regions = [], cache.regions
    monkeypatch.setattr(cache, "regions", lambda indices: read.extend(indices) or regions(indices))
    key = tuple(windows.iloc[-1][["dataset", "path"]])
    assert list(inpainted_windows(cache, {key})) == [key]
    assert set(read) == set(windows[windows["path"] == key[1]].index)
    assert len(read) < len(windows)


def test_pixels_are_labelled_as_patches_of_one_class():
    classes = np.array([0, 1, 2, 255, 2], np.uint8)
    assert label_pixels(classes).tolist() == [0, 0, 1, -1, 1]
    assert label_pixels(classes, "autoencoded-fake").tolist() == [0, 1, 1, -1, 1]
    assert label_pixels(classes, "autoencoded-ignored").tolist() == [0, -1, 1, -1, 1]


def test_models_share_the_pixels_that_windows_of_both_show(tiny_cache, wide_cache, tiny_manifest):
    pools = [CachePool([open_cache(path)]) for path in (tiny_cache, wide_cache)]
    grid = PixelGrid(pools)
    assert len(grid.images) == len(tiny_manifest)
    assert grid.n_left_out == 0
    for row in tiny_manifest.frame.itertuples():
        common = grid.common(row.dataset, row.path)
        expected = np.ones(working_size(row.height, row.width, 112), bool)
        for window_px in (112, 128):
            seen = np.zeros_like(expected)
            for box in tile(*expected.shape, window_px, window_px, "spread"):
                seen[box.slices] = True
            expected &= seen
        np.testing.assert_array_equal(common, expected)
        assert 0 < common.mean() <= 1


def test_an_image_that_one_model_lacks_is_left_out(tiny_cache, wide_cache):
    pools = [CachePool([open_cache(path)]) for path in (tiny_cache, wide_cache)]
    first = pools[1].windows["path"].iloc[0]
    pools[1].kept &= (pools[1].windows["path"] != first).to_numpy()
    grid = PixelGrid(pools)
    assert first not in {path for _, path in grid.images}
    assert grid.n_left_out == 1


def test_models_of_different_patches_are_scored_on_the_same_pixels(tiny_cache, wide_cache, tiny_manifest, tmp_path):
    settings = FitSettings(
        schemes=("autoencoded-pristine",),
        learning_rates=(0.3,),
        weight_decays=(1e-3,),
        epochs=1,
        n_folds=4,
        baselines=(),
    )
    run = fit_caches([tiny_cache, wide_cache], tmp_path / "run", settings=settings)
    images = run.images
    assert set(images["grid"]) == {"px"}
    assert set(run.results["metric"].str.partition("@")[2]) == {"px"}
    everything = images[images["method"] == "everything"].pivot_table(
        index="path", columns="model", values=["iou", "n_units"]
    )
    assert (everything.nunique(axis=1) <= 2).all()
    for name in ("iou", "n_units"):  # the same truth on the same pixels for both
        np.testing.assert_array_equal(everything[name].iloc[:, 0], everything[name].iloc[:, 1])
    assert any(" - " in name and "residual" in name for name in run.comparisons["comparison"])

    model = "residual:srm"  # one image from its file, pixel by pixel
    row = images[(images["model"] == model) & (images["method"] == "dice") & (images["variant"] == "sp")].iloc[0]
    probe = run.probes[f"residual-srm/folds/dice-autoencoded-pristine-{row['fold']}"]
    cache = open_cache(tiny_cache)
    windows = cache.windows.query("path == @row.path").index.to_numpy()
    block = cache.read(windows)
    logits = block.embeddings.astype(np.float64) @ probe.weights[0] + probe.bias[0]
    canvas = np.full(PixelGrid([CachePool([cache])]).common(row["dataset"], row["path"]).shape, np.nan)
    truth = np.zeros(canvas.shape, np.uint8)
    for window, grid, regions in zip(windows, logits, cache.regions(windows), strict=True):
        place = Box(*cache.windows.loc[window, ["y", "x", "h", "w"]]).slices
        pixels = torch.nn.functional.interpolate(
            torch.from_numpy(grid)[None, None], size=regions.shape, mode="bicubic", align_corners=False
        )[0, 0].numpy()
        new = np.isnan(canvas[place])
        canvas[place] = np.where(new, pixels, canvas[place])
        truth[place] = regions
    common = PixelGrid([CachePool([open_cache(path)]) for path in (tiny_cache, wide_cache)]).common(
        row["dataset"], row["path"]
    )
    marked, painted = canvas[common] >= 0, truth[common] == 2
    assert row["n_units"] == common.sum()
    assert row["iou"] == pytest.approx((marked & painted).sum() / (marked | painted).sum(), abs=2e-3)


def test_models_without_a_common_image_are_refused(tiny_cache, wide_cache, monkeypatch):
    pools = [CachePool([open_cache(path)]) for path in (tiny_cache, wide_cache)]
    pools[1].kept[:] = False
    with pytest.raises(CacheError, match="have no image in common"):
        share_grid(pools)
