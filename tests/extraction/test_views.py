"""Degraded views: seeded, of training images alone, and the same whoever computes them."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from dlprobe.cache import merge, open_cache, verify
from dlprobe.data import Manifest
from dlprobe.data.degrade import view_sample
from dlprobe.data.samples import read_sample
from dlprobe.errors import RegistryError
from dlprobe.extraction import extract, plan, recheck, repair

CHAIN = "crop:keep=0.8|noise:sigma=20"  # one that moves regions, and one that does not
SETTINGS = {"stride_px": 40, "block_windows": 4, "views": 3, "degrade": CHAIN, "seed": 5}


@pytest.fixture(scope="module")
def cache(manifest, backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("views") / "cache"
    extract(manifest, backbone, path, **SETTINGS)
    return open_cache(path)


def test_training_images_have_every_view_and_the_others_the_clean_one(cache):
    counts = cache.windows.groupby(["split", "path", "y", "x"])["view"].agg(["nunique", "max"])
    assert (counts.loc["train"] == [3, 2]).all(axis=None)
    assert (counts.loc[["val", "test"]] == [1, 0]).all(axis=None)


def test_without_a_split_every_image_has_every_view(manifest, backbone):
    unsplit = Manifest(manifest.frame.assign(split=""), manifest.root)
    windows = plan(unsplit, backbone.spec, **SETTINGS).windows
    clean = plan(unsplit, backbone.spec, stride_px=40).windows
    assert len(windows) == 3 * len(clean)


def test_each_window_is_a_crop_of_its_view(cache, manifest, backbone):
    regions, found = cache.regions(np.arange(len(cache))), cache.read(np.arange(len(cache))).embeddings
    for window, row in cache.windows.iterrows():
        sample = read_sample(manifest.root, manifest.frame.iloc[row["image"]], 56)
        if row["view"]:
            sample = view_sample(sample, CHAIN, 5, row["view"], row["path"])
        box = np.s_[row["y"] : row["y"] + 56, row["x"] : row["x"] + 56]
        assert_array_equal(regions[window], sample.regions[box])
        assert_allclose(found[window], backbone(sample.pixels[box][None]).numpy()[0], rtol=2e-3, atol=2e-3)


def test_views_differ_from_each_other(cache):
    table = cache.windows
    path = table["path"][table["view"] == 2].iloc[0]
    found = [cache.read(table.index[(table["path"] == path) & (table["view"] == view)]).embeddings for view in range(3)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[a].astype(np.float32) - found[b]).max() > 0.1


def test_views_of_one_image_are_spread_over_the_cache(cache):
    table = cache.windows
    blocks = table[table["view"] < 2].groupby(["path", "view"])["block"].min().unstack().dropna()
    assert (blocks[0] - blocks[1]).abs().max() > 2


def test_the_clean_windows_come_in_the_order_of_a_cache_without_views(manifest, backbone, cache):
    clean = cache.windows[cache.windows["view"] == 0]
    alone = plan(manifest, backbone.spec, stride_px=40, seed=5).windows
    assert_array_equal(clean[["image", "view", "y", "x", "h", "w"]], alone)


def test_the_seed_and_the_meaning_of_the_degradations_are_identity(manifest, backbone):
    spec = plan(manifest, backbone.spec, **SETTINGS).cache_spec
    assert spec.degrade.startswith("crop:keep=0.8,y=0.5,x=0.5|noise:sigma=20@")
    assert plan(manifest, backbone.spec, **{**SETTINGS, "degrade": spec.degrade}).cache_spec == spec
    for change in ({"seed": 6}, {"views": 2}, {"degrade": "dinolizer"}):
        assert plan(manifest, backbone.spec, **{**SETTINGS, **change}).cache_spec.fingerprint != spec.fingerprint


def test_a_name_that_is_no_preset(manifest, backbone):
    with pytest.raises(RegistryError, match="did you mean dinolizer"):
        plan(manifest, backbone.spec, views=2, degrade="dinoliser")


def test_a_second_run_merging_and_repair_give_the_same(cache, manifest, backbone, tmp_path, tree):
    extract(manifest, backbone, tmp_path / "again", **SETTINGS)
    assert tree(tmp_path / "again") == tree(cache.path)
    assert recheck(manifest, backbone, tmp_path / "again", 1000) == []
    (tmp_path / "again" / "records" / "000001.json").unlink()
    repair(manifest, backbone, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(cache.path)


def test_halves_merge_into_the_whole(cache, manifest, backbone, tmp_path):
    for number in (0, 1):
        half = manifest.select(manifest.frame.index % 2 == number)
        extract(half, backbone, tmp_path / str(number), **SETTINGS)
    found = merge([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    assert found.windows.equals(cache.windows)
    everything = np.arange(len(cache))
    assert_array_equal(found.regions(everything), cache.regions(everything))
    assert verify(tmp_path / "merged") == []


def test_an_image_is_decoded_once_per_block_that_it_touches(manifest, backbone, tmp_path, *, tree, monkeypatch, cache):
    read = []

    def counted(root, row, window_px, **options):
        read.append(row["path"])
        return read_sample(root, row, window_px, **options)

    monkeypatch.setattr("dlprobe.extraction.decoding.read_sample", counted)
    extract(manifest, backbone, tmp_path / "one", **{**SETTINGS, "block_windows": len(cache.windows)})
    assert sorted(read) == sorted(manifest.frame["path"])
    read.clear()
    extract(manifest, backbone, tmp_path / "many", **SETTINGS)
    assert sorted(read) == sorted(cache.windows.groupby("block")["path"].unique().explode())
    assert tree(tmp_path / "many") == tree(cache.path)


def test_rejects_of_views_come_in_the_order_of_windows(manifest, backbone, tmp_path):
    missing = manifest.frame["path"].iloc[[0, 1]]
    torn = Manifest(manifest.frame.replace({path: f"absent-{path}" for path in missing}), manifest.root)
    report = extract(torn, backbone, tmp_path / "cache", **{**SETTINGS, "block_windows": 1000})
    assert len(report.rejected) == 6  # three views of two images of training
    assert [reject.windows for reject in report.rejected] == sorted(reject.windows for reject in report.rejected)
