"""A whole fit, checked against what can be computed again from its cache and its probes."""

import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, jaccard_score

from dlprobe.backbones import load_backbone
from dlprobe.cache import open_cache
from dlprobe.data import label_patches
from dlprobe.errors import CacheError, DataError, IdentityError, OutputError, RegistryError
from dlprobe.extraction import extract
from dlprobe.probes import Probe
from dlprobe.studies import FitSettings, fit_caches, read_run
from dlprobe.studies.fitting.pool import CachePool, minibatches, open_pools, steps_per_epoch

SCHEME = "autoencoded-pristine"
MODEL = "residual-srm"


def test_scores_agree_with_scikit_learn_on_the_saved_probes(tiny_fit, tiny_cache):
    """Load the probe of a fold, read the image's windows, and score them by somebody else's code."""
    cache = open_cache(tiny_cache)
    rows = tiny_fit.images[(tiny_fit.images["method"] == "dice") & (tiny_fit.images["scheme"] == SCHEME)]
    checked = 0
    for row in rows[rows["variant"] == "sp"].iloc[::7].itertuples():
        probe = Probe.load(tiny_fit.out / f"probes/{MODEL}/folds/dice-{SCHEME}-{row.fold}.safetensors")
        block = cache.read(np.flatnonzero(cache.windows["path"] == row.path))
        truth = label_patches(block.coverage, SCHEME).ravel()
        logits = probe.logits(block.embeddings.astype(np.float64))[..., 0].ravel()
        assert row.iou == pytest.approx(jaccard_score(truth == 1, logits >= 0, zero_division=0), abs=2e-3)
        assert row.ap == pytest.approx(average_precision_score(truth == 1, logits), abs=2e-3)
        assert row.share == pytest.approx((truth == 1).mean())
        checked += 1
    assert checked > 3


def test_no_probe_of_a_fold_has_seen_what_it_is_tested_on(tiny_fit, tiny_manifest):
    donors = tiny_manifest.frame[tiny_manifest.frame["donor_id"] != ""].groupby("source_id")["donor_id"].unique()
    for row in tiny_fit.images.drop_duplicates(["source_id", "fold"]).itertuples():
        probe = tiny_fit.probes[f"{MODEL}/folds/dice-{SCHEME}-{row.fold}"]
        data = probe.card["data"]
        seen = set(data["train_sources"]) | set(data["val_sources"])
        assert data["train_sources"]
        assert data["val_sources"]
        assert not set(data["train_sources"]) & set(data["val_sources"])
        assert row.source_id not in seen
        assert not seen & set(donors.get(row.source_id, []))
    assert tiny_fit.images.groupby("source_id")["fold"].nunique().max() == 1


def test_everything_stands_beside_every_score(tiny_fit):
    images = tiny_fit.images[tiny_fit.images["method"] == "everything"]
    np.testing.assert_allclose(images["iou"].where(images["share"] > 0), images["share"].where(images["share"] > 0))
    np.testing.assert_allclose(images["false_area"], 1)
    sp = tiny_fit.results.query("kind == 'sp' and metric == 'iou@patch' and method == 'dice'")
    expected = images[images["variant"] == "sp"].groupby("source_id")["iou"].mean().mean()
    np.testing.assert_allclose(sp["everything"], expected)


def test_results_are_means_over_sources(tiny_fit):
    rows = tiny_fit.images.query("variant == 'sp' and method == 'dice' and scheme == @SCHEME")
    cell = tiny_fit.results.query(
        "kind == 'sp' and metric == 'iou@patch' and method == 'dice' and scheme == @SCHEME"
    ).iloc[0]
    assert cell["value"] == pytest.approx(rows.groupby("source_id")["iou"].mean().mean())
    assert cell["low"] < cell["value"] < cell["high"]
    assert cell["n_sources"] == 8


def test_kinds_of_mask_sizes_stand_beside_marking_everything(tiny_fit):
    images = tiny_fit.images.query("variant == 'sp' and method == 'dice' and scheme == @SCHEME")
    assert images["mask_size"].nunique() > 2
    for size, part in images[images["share"] > 0].groupby("mask_size"):
        kind = f"sp {size}"
        rows = tiny_fit.results.query("kind == @kind and metric == 'iou@patch' and method == 'dice'")
        cell = rows[rows["scheme"] == SCHEME].iloc[0]
        assert cell["value"] == pytest.approx(part.groupby("source_id")["iou"].mean().mean())
        assert cell["everything"] == pytest.approx(part.groupby("source_id")["share"].mean().mean())
        assert kind in set(tiny_fit.comparisons.query("comparison == 'dice - everything'")["kind"])
    assert set(tiny_fit.images.query("variant == 'real'")["mask_size"]) == {""}


def test_comparisons_are_paired_by_source(tiny_fit):
    images = tiny_fit.images.query("variant == 'ae' and method == 'dice'")
    wide = images.pivot_table(index="source_id", columns="scheme", values="false_area")
    row = tiny_fit.comparisons.query("kind == 'ae'").iloc[0]
    assert row["comparison"] == "autoencoded-fake - autoencoded-pristine"
    assert row["difference"] == pytest.approx((wide["autoencoded-fake"] - wide[SCHEME]).mean())
    assert (tiny_fit.comparisons["p_holm"] >= tiny_fit.comparisons["p"]).all()


def test_a_run_can_be_read_again_and_says_how_it_was_made(tiny_fit):
    run = read_run(tiny_fit.out)
    pd.testing.assert_frame_equal(run.tables["results"], tiny_fit.results, check_dtype=False)
    assert run.record["settings"]["epochs"] == 2
    assert run.record["models"]["residual:srm"]["model_fingerprint"]
    assert "nested cross-validation, 4 folds" in run.record["notes"][0]
    assert (tiny_fit.out / "results.md").read_text().startswith("| kind |")
    card = tiny_fit.probes[f"{MODEL}/dice-{SCHEME}"].card
    assert 0 < card["threshold"] < 1
    assert card["data"]["held_out_generators"]
    assert json.dumps(card)


def test_the_same_fit_twice_gives_the_same_numbers(tiny_fit, tiny_cache, tmp_path):
    settings = FitSettings(**read_run(tiny_fit.out).record["settings"])
    settings = replace(settings, **{k: tuple(v) for k, v in vars_of(settings).items() if isinstance(v, list)})
    again = fit_caches([tiny_cache], tmp_path / "run", settings=settings)
    pd.testing.assert_frame_equal(again.results, tiny_fit.results)


def vars_of(settings):
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def test_pooled_halves_are_the_whole(tiny, tiny_manifest, tiny_backbone, tiny_cache, tmp_path):
    half = tiny_manifest.frame.index % 2 == 0
    paths = []
    for n, mask in enumerate((half, ~half)):
        extract(tiny_manifest.select(mask), tiny_backbone, tmp_path / f"half-{n}", stride_px=112, block_windows=16)
        paths.append(tmp_path / f"half-{n}")
    [(pool, is_test)] = open_pools(paths)
    [(whole, _)] = open_pools([tiny_cache])
    assert not is_test.any()
    assert pool.keys().sort_values().equals(whole.keys().sort_values())
    moments = [p.group_moments(np.zeros(len(p.windows), np.int64)) for p in (pool, whole)]
    np.testing.assert_allclose(moments[0].sum, moments[1].sum, rtol=1e-5)
    assert moments[0].count == moments[1].count
    with pytest.raises(CacheError, match="two of the pooled caches"):
        open_pools([paths[0], tiny_cache])


def test_one_epoch_shows_every_window_once_in_another_order_each_time(tiny_cache):
    pool = CachePool([open_cache(tiny_cache)])
    groups = np.arange(len(pool.windows)) % 3
    selected = groups != 1
    orders = []
    for seed in (1, 2):
        batches = list(minibatches(pool, groups, [SCHEME], selected, batch_windows=7, seed=seed))
        assert len(batches) == steps_per_epoch(pool, selected, 7)
        assert [len(b.windows) for b in batches[:-1]] == [7] * (len(batches) - 1)
        orders.append(np.concatenate([b.windows for b in batches]))
        batch = batches[2]
        block = pool.caches[0].read(batch.windows)
        np.testing.assert_array_equal(batch.embeddings, block.embeddings.reshape(batch.embeddings.shape))
        np.testing.assert_array_equal(
            batch.targets[SCHEME], label_patches(block.coverage, SCHEME).reshape(len(batch.windows), -1)
        )
        np.testing.assert_array_equal(batch.groups, groups[batch.windows])
    assert sorted(orders[0]) == sorted(orders[1]) == np.flatnonzero(selected).tolist()
    assert (orders[0] != orders[1]).any()


def test_models_are_compared_on_common_windows(tiny, tiny_manifest, tiny_cache, tmp_path):
    other = load_backbone("timm:vit_small_patch14_dinov2", weights="random:0", window_px=112, layers=(0,))
    frame = tiny_manifest.frame
    some = tiny_manifest.select(frame["generator"].isin(["", "pca", "telea+pca", "donor+pca"]))
    extract(some, other, tmp_path / "vit", stride_px=112)
    settings = FitSettings(
        schemes=(SCHEME,), learning_rates=(1.0,), weight_decays=(0.0,), epochs=1, n_folds=4, baseline_patches=500
    )
    found = fit_caches([tiny_cache, tmp_path / "vit"], tmp_path / "run", settings=settings)
    models = found.images.groupby("model")["path"].unique()
    assert set(models.iloc[0]) == set(models.iloc[1]) == set(some.frame["path"])
    names = set(found.comparisons["comparison"])
    assert "residual:srm - timm:vit_small_patch14_dinov2" in {n.split(".")[0] for n in names}


def test_bad_input_is_refused_before_anything_is_written(tiny_cache, tiny_manifest, tiny_backbone, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RegistryError, match="autoencoded-pristine"):
        fit_caches([tiny_cache], out, settings=FitSettings(schemes=("autoencoded-prstine",)))
    with pytest.raises(DataError, match="no cache given"):
        fit_caches([], out)
    with pytest.raises(CacheError, match="nothing"):
        fit_caches([tmp_path / "nothing"], out)
    other = load_backbone("residual:srm", window_px=126)
    extract(tiny_manifest.select(tiny_manifest.frame.index < 4), other, tmp_path / "other", stride_px=112)
    with pytest.raises(IdentityError, match="window_px: 112 != 126"):
        fit_caches([tiny_cache], out, test=[tmp_path / "other"])
    assert not out.exists()
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no run"):
        fit_caches([tiny_cache], out)
    with pytest.raises(OutputError, match="is no run"):
        read_run(out)
    assert (out / "diary.txt").read_text() == "mine"


def test_degraded_views_neither_choose_nor_are_tested(tiny_manifest, tiny_backbone, tmp_path):
    frame = tiny_manifest.frame
    some = tiny_manifest.select(frame["generator"].isin(["", "telea+pca"]))
    extract(some, tiny_backbone, tmp_path / "views", stride_px=112, views=2, degrade="jpeg:quality=60")
    table = open_cache(tmp_path / "views").windows
    assert (table["view"] == 1).any()
    settings = FitSettings(
        schemes=(SCHEME,), learning_rates=(1.0,), weight_decays=(0.01,), epochs=1, n_folds=4, baseline_patches=500
    )
    found = fit_caches([tmp_path / "views"], tmp_path / "run", settings=settings)
    rows = found.images.query("method == 'dice'")
    assert len(rows) == rows["path"].nunique() == len(some)
    clean = table[table["view"] == 0].groupby("path").size() * 64
    np.testing.assert_array_equal(rows.set_index("path")["n_units"].sort_index(), clean.sort_index())


def test_pooled_caches_are_mixed_within_an_epoch(tiny_manifest, tiny_backbone, tmp_path):
    frame = tiny_manifest.frame
    for name, mask in (("real", frame["variant"] == "real"), ("fake", frame["variant"] == "sp")):
        extract(tiny_manifest.select(mask), tiny_backbone, tmp_path / name, stride_px=112, block_windows=4)
    [(pool, _)] = open_pools([tmp_path / "real", tmp_path / "fake"])
    everything = np.ones(len(pool.windows), bool)
    seen = [block.windows for block in pool.blocks(everything, seed=3)]
    assert sorted(np.concatenate(seen)) == list(range(len(pool.windows)))
    cache = pool.windows["cache"].to_numpy()[np.concatenate(seen)]
    halves = [cache[: len(cache) // 2].mean(), cache[len(cache) // 2 :].mean()]
    assert halves[0] == pytest.approx(halves[1], abs=0.2)
    batches = minibatches(pool, np.zeros(len(pool.windows), np.int64), [SCHEME], everything, batch_windows=16, seed=3)
    assert all(len(set(pool.windows["cache"].to_numpy()[batch.windows])) == 2 for batch in list(batches)[:-1])


def test_an_image_without_an_inpainted_patch_has_no_iou_for_any_method():
    from dlprobe.studies.fitting.scoring.images import _measures

    nothing, marked = np.zeros(9, bool), np.arange(9) < 2
    for prediction in (nothing, marked, ~nothing):
        assert np.isnan(_measures(prediction, nothing)["iou"])
    assert _measures(marked, marked)["iou"] == 1


def test_an_unwritable_or_unsuitable_output_is_refused_before_the_fit(tiny_cache, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is no folder"):
        fit_caches([tiny_cache], tmp_path / "file" / "run")


def test_a_terminal_is_shown_every_method_once_and_every_scheme_of_the_main_one(tiny_fit, capsys):
    import_module("dlprobe_cli.output").emit_run(tiny_fit.short(), tiny_fit.out)
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 100
    model, head, *rows = out.splitlines()
    assert (model, head.split()) == ("residual:srm", ["kind", "metric", "probe", "value", "everything"])
    probes = ["dice autoencoded-pristine", "dice autoencoded-fake", "logistic autoencoded-pristine"]
    found = tiny_fit.results.set_index(["kind", "metric", "method", "scheme"])
    for kind, metric in (("sp", "iou@patch"), ("real", "false_area@patch")):
        for probe in probes:
            method, scheme = probe.split()
            value = found.loc[(kind, metric, method, scheme), "value"]
            [row] = [row for row in rows if row.split()[:3] == [kind, metric, method] and scheme in row]
            assert f"{value:.3f}" in row
    assert len(rows) == 4 * len(probes)
    assert f"dlprobe report {tiny_fit.out}" in err
