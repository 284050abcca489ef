"""Objectives, schemes, seeds, layers, early stopping and baselines through a whole fit."""

import re
from dataclasses import replace
from importlib.metadata import entry_points

import numpy as np
import pandas as pd
import pytest
import typer
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from dlprobe.cache import open_cache
from dlprobe.data import label_patches
from dlprobe.data.labels import CLASSES, THREE_CLASS_SCHEME
from dlprobe.errors import ProbeError, RegistryError
from dlprobe.metrics import count, f1
from dlprobe.probes import Probe, fit_heads
from dlprobe.probes.heads import OBJECTIVES, THREE_CLASS
from dlprobe.studies import FitSettings, fit_caches
from dlprobe.studies.fitting.calibration import score_of
from dlprobe.studies.fitting.scoring import Column, Stack
from dlprobe.studies.fitting.settings import BASELINES

SCHEME, FAKE = "autoencoded-pristine", "autoencoded-fake"
MODEL = "statistics-colours"


@pytest.fixture(scope="module")
def everything(toy_cache, quick, tmp_path_factory):
    """Return a fit of all objectives, a scheme with two sides, three classes, and all baselines."""
    settings = replace(
        quick,
        schemes=(FAKE, THREE_CLASS_SCHEME),
        objectives=OBJECTIVES,
        learning_rates=(0.3,),
        baselines=BASELINES,
        baseline_c=(0.01, 1.0),
        baseline_patches=10_000,
    )
    return fit_caches([toy_cache], tmp_path_factory.mktemp("all") / "run", settings=settings)


@pytest.fixture(scope="module")
def several(toy_cache, quick, tmp_path_factory):
    """Return a fit of two seeds and each layer, with early stopping."""
    settings = replace(quick, seeds=2, layers="each", patience=1, epochs=5, learning_rates=(0.1, 1.0, 10.0))
    return fit_caches([toy_cache], tmp_path_factory.mktemp("several") / "run", settings=settings)


def training_rows(cache_path, probe):
    """Return patches and labels of a probe's training sources."""
    cache = open_cache(cache_path)
    chosen = cache.windows["source_id"].isin(probe.card["data"]["train_sources"]).to_numpy()
    block = cache.read(np.flatnonzero(chosen))
    X = block.embeddings.reshape(-1, cache.shape[-1]).astype(np.float64)
    return X, label_patches(block.coverage, probe.card["scheme"]).reshape(-1)


def test_every_objective_and_baseline_has_a_row_beside_the_others(everything):
    rows = everything.results.query("kind == 'sp' and metric == 'iou@patch'")
    found = set(zip(rows["method"], rows["scheme"], strict=True))
    heads = {("dice" if name == "dice-batch" else name, FAKE) for name in OBJECTIVES}
    classes = {("dice", THREE_CLASS_SCHEME), ("dice-window", THREE_CLASS_SCHEME)}
    assert found == heads | classes | {(name, FAKE) for name in BASELINES} | {("everything", "")}
    assert rows["value"].notna().all()
    assert (rows["n_sources"] == 9).all()
    assert any("three classes were learned by dice-batch and dice-window alone" in note for note in everything.notes)
    compared = set(everything.comparisons["comparison"])
    assert {f"dice - {name}" for name in (*BASELINES, "bce", "lovasz")} <= compared


def test_the_share_of_gradient_from_lone_windows_is_told(everything):
    rows = everything.results.query("kind == 'sp' and metric == 'iou@patch'").set_index(["method", "scheme"])
    assert "lone 0." in rows.loc[("dice-window", FAKE), "setting"]
    assert "lone" not in rows.loc[("dice", FAKE), "setting"]


def test_three_classes_are_scored_by_the_probability_of_inpainted(everything, toy_cache):
    probe = everything.probes[f"{MODEL}/folds/dice-{THREE_CLASS_SCHEME}-0"]
    assert probe.card["classes"] == [kind.name for kind in CLASSES] == ["PRISTINE", "AUTOENCODED", "INPAINTED"]
    assert THREE_CLASS == THREE_CLASS_SCHEME
    cache = open_cache(toy_cache)
    rows = everything.images.query("method == 'dice' and scheme == 'three-class' and fold == 0 and variant == 'sp'")
    for row in rows.itertuples():
        block = cache.read(np.flatnonzero(cache.windows["path"] == row.path))
        logits = probe.logits(block.embeddings.astype(np.float64))
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        marked = (odds[..., 2] / odds.sum(axis=-1)) >= 0.5
        truth = label_patches(block.coverage, SCHEME) == 1
        assert row.iou == pytest.approx((marked & truth).sum() / (marked | truth).sum())
        assert row.iou_own == pytest.approx(row.iou)


def test_one_stack_of_unlike_columns_gives_each_its_own_logit():
    rng = np.random.default_rng(0)
    classes, plain = rng.normal(size=(3, 4)), rng.normal(size=4)
    columns = [
        Column("dice", THREE_CLASS_SCHEME, 0, classes, np.array([0.1, 0.2, 0.3])),
        Column("dice", SCHEME, 0, plain, 0.5),
    ]
    X = rng.normal(size=(5, 2, 4)).astype(np.float32)
    found = Stack(columns)(X)
    assert found.shape == (5, 2, 2)
    np.testing.assert_allclose(found[..., 1], X @ plain + 0.5, rtol=1e-4, atol=1e-5)
    p = np.exp(X @ classes.T + [0.1, 0.2, 0.3])
    p = p[..., 2] / p.sum(axis=-1)
    np.testing.assert_allclose(1 / (1 + np.exp(-found[..., 0])), p, rtol=1e-4)


@pytest.mark.parametrize("scheme", [SCHEME, THREE_CLASS_SCHEME])
def test_what_a_card_claims_is_reached_by_the_threshold_on_it(make_cache, quick, tmp_path, scheme):
    """Also by heads whose logits lie far beyond what float32 scores tell apart, as high rates make them."""
    cache_path = make_cache(lift=12)
    rates = (1000.0,) if scheme == SCHEME else (100.0,)
    settings = replace(quick, learning_rates=rates, schemes=(scheme,), patience=2, epochs=4)
    found = fit_caches([cache_path], tmp_path / "run", settings=settings)
    cache = open_cache(cache_path)
    for fold in range(3):
        probe = Probe.load(tmp_path / f"run/probes/{MODEL}/folds/dice-{scheme}-{fold}.safetensors")
        chose = cache.windows["source_id"].isin(probe.card["data"]["val_sources"]).to_numpy()
        block = cache.read(np.flatnonzero(chose))
        truth = label_patches(block.coverage, SCHEME)
        logits = probe.logits(block.embeddings.astype(np.float64))
        scores = softmax(logits, axis=-1)[..., -1] if scheme == THREE_CLASS_SCHEME else expit(logits[..., 0])
        marked = scores.astype(np.float32) >= probe.card["threshold"]
        reached = f1(count(marked[truth >= 0], truth[truth >= 0] == 1))
        assert reached == pytest.approx(probe.card["metrics"]["validation_best_f1@patch"], abs=1e-12)
        assert 0 < probe.card["threshold"] < 1
    settings = found.results["setting"].str.cat()
    assert ("logits / " in settings) == (scheme == SCHEME)


def test_a_map_on_another_scale_marks_the_same_patches_to_the_bit():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(5000, 16)).astype(np.float16)
    column = Column("dice", SCHEME, 0, 90 * rng.normal(size=16), 7.3, threshold=211.7, setting="lr 100", promised=-40.0)
    scaled = column.within_scores()
    assert (scaled.threshold, scaled.divisor, scaled.setting) == (211.7 / 32, 32, "lr 100, logits / 32")
    before, after = Stack([column])(X), Stack([scaled])(X)
    np.testing.assert_array_equal(before, 32 * after)
    for name in ("threshold", "promised"):
        marked = before >= getattr(column, name)
        np.testing.assert_array_equal(after >= getattr(scaled, name), marked)
        np.testing.assert_array_equal(expit(after) >= score_of(getattr(scaled, name)), marked)
    again = replace(scaled, promised=20.0).within_scores()
    assert (again.divisor, again.setting) == (128, "lr 100, logits / 128")
    near = replace(column, threshold=7.9, promised=np.inf)
    assert near.within_scores() is near
    classes = replace(column, weights=np.ones((3, 16)))
    assert classes.within_scores() is classes


@pytest.mark.parametrize("fold", [0, 2])
def test_the_streamed_logistic_regression_is_that_of_scikit_learn_on_all_patches(everything, toy_cache, fold):
    probe = everything.probes[f"{MODEL}/folds/logistic-exact-{FAKE}-{fold}"]
    X, y = training_rows(toy_cache, probe)
    scaler = StandardScaler().fit(X)
    C = float(probe.card["setting"].split()[1].rstrip(","))
    reference = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10).fit(scaler.transform(X)[y >= 0], y[y >= 0])
    np.testing.assert_allclose(probe.logits(X)[:, 0], reference.decision_function(scaler.transform(X)), atol=2e-3)


def test_ridge_is_that_of_scikit_learn_on_all_patches(everything, toy_cache):
    probe = everything.probes[f"{MODEL}/folds/ridge-{FAKE}-1"]
    X, y = training_rows(toy_cache, probe)
    X, y = X[y >= 0], y[y >= 0]
    fits = [RidgeClassifier(alpha=share * len(X)).fit(StandardScaler().fit_transform(X), y) for share in alphas()]
    errors = [np.abs(probe.logits(X)[:, 0] - fit.decision_function(StandardScaler().fit_transform(X))) for fit in fits]
    assert min(error.max() for error in errors) < 5e-3


def alphas():
    from dlprobe.studies.fitting.methods.streamed import RIDGE_SHARES

    return RIDGE_SHARES


def test_nearest_neighbours_save_no_probe(everything):
    assert not any("knn" in name for name in everything.probes)
    assert {name.split("/")[-1] for name in everything.probes if "/folds/" not in name} >= {
        f"{name}-{FAKE}" for name in BASELINES if name != "knn"
    }


def test_seeds_resample_and_their_spread_stands_apart(several):
    rows = several.results.query("method == 'dice' and kind == 'sp' and metric == 'ap@patch'").iloc[0]
    images = several.images.query("method == 'dice' and variant == 'sp'")
    table = images.pivot_table(index="seed", columns="source_id", values="ap")
    assert rows["seeds"] == len(table) == 2
    assert rows["value"] == pytest.approx(table.mean(axis=0).mean())
    assert rows["seed_sd"] == pytest.approx(table.mean(axis=1).std(ddof=1))
    assert rows["sampling_error"] == pytest.approx(table.mean(axis=0).std(ddof=1) / 3)
    assert rows["n_images"] == 9
    assert several.results.query("method == 'everything'")["seed_sd"].isna().all()
    assert any("Poisson(1)" in note for note in several.notes)
    assert not np.array_equal(
        several.probes[f"{MODEL}/folds/dice-{SCHEME}-0"].weights,
        several.probes[f"{MODEL}/folds/dice-{SCHEME}-0-seed1"].weights,
    )


def spied(monkeypatch, spoil=lambda head: head):
    """Record with which weights of windows heads are fitted; spoil those that are fitted on all groups."""
    calls = []

    def spy(batches, heads, moments, **options):
        calls.append(options["window_weights"])
        fitted = fit_heads(batches, heads, moments, **options)
        return [spoil(head) for head in fitted] if len(heads[0].train_groups) == 3 else fitted

    monkeypatch.setattr("dlprobe.studies.fitting.methods.heads.fit_heads", spy)
    return calls


@pytest.mark.parametrize("n_folds", [0, 3])
def test_the_probe_for_new_images_sees_every_window_once_whatever_seeds_draw(
    toy_cache, quick, tmp_path, monkeypatch, n_folds
):
    calls = spied(monkeypatch)
    settings = replace(quick, n_folds=n_folds, seeds=2)
    found = fit_caches([toy_cache], tmp_path / "run", settings=settings)
    assert calls == ["poisson", "ones"]
    if n_folds == 0:  # the heads of the fold were fitted on the very groups of the last fit
        first = found.probes[f"{MODEL}/folds/dice-{SCHEME}-0"]
        assert not np.array_equal(first.weights, found.probes[f"{MODEL}/dice-{SCHEME}"].weights)


def test_a_setting_that_fails_on_all_folds_gives_way_to_the_next_best(toy_cache, quick, tmp_path, monkeypatch):
    tried = []

    def first_fails(head):
        tried.append(head.spec.learning_rate)
        return replace(head, flag="its weights are not finite") if len(tried) == 1 else head

    spied(monkeypatch, first_fails)
    found = fit_caches([toy_cache], tmp_path / "run", settings=quick)
    assert sorted(tried) == sorted(quick.learning_rates)
    setting = found.probes[f"{MODEL}/dice-{SCHEME}"].card["setting"]
    assert setting.startswith(f"lr {tried[1]:g}")
    assert any(
        "has the setting of rank 2; fitted on all folds, the best one failed: its weig" in n for n in found.notes
    )
    assert (found.results["flag"] == "").all()


def test_a_method_without_a_sound_last_fit_keeps_its_scores_and_is_flagged(toy_cache, quick, tmp_path, monkeypatch):
    spied(monkeypatch, lambda head: replace(head, flag="its weights are not finite"))
    settings = replace(quick, baselines=("ridge",))
    found = fit_caches([toy_cache], tmp_path / "run", settings=settings)
    rows = found.results.query("method == 'dice'")
    expected = "no probe for new images: its weights are not finite; lower the learning rates"
    assert (rows["flag"] == expected).all()
    assert rows.query("kind == 'sp' and metric == 'iou@patch'")["value"].notna().all()
    assert (found.results.query("method == 'ridge'")["flag"] == "").all()
    assert f"{MODEL}/dice-{SCHEME}" not in found.probes
    assert {f"{MODEL}/folds/dice-{SCHEME}-0", f"{MODEL}/ridge-{SCHEME}"} <= found.probes.keys()


def test_heads_of_one_layer_see_no_other(several):
    halves = {0: slice(0, 6), 1: slice(6, 12)}
    for layer, own in halves.items():
        weights = several.probes[f"{MODEL}/dice@{layer}-{SCHEME}"].weights[0]
        assert np.abs(weights[own]).max() > 0
        assert not np.delete(weights, np.r_[own]).any()
    assert np.all(several.probes[f"{MODEL}/dice-{SCHEME}"].weights != 0)
    assert {"dice - dice@0", "dice - dice@1"} <= set(several.comparisons["comparison"])


def test_heads_stop_at_their_best_epoch_and_the_last_fit_takes_the_median(several):
    folds = [p.card["setting"] for name, p in several.probes.items() if "/folds/dice-" in name]
    assert all(" of 5" in text for text in folds)
    assert any("epoch 5 of 5" not in text for text in folds)
    assert any("learning_rate" in note and "widen it" in note for note in several.notes)


def test_a_setting_that_stands_for_nothing_is_refused_with_the_nearest():
    for wrong, words in (
        ({"baselines": ("rigde",)}, "did you mean ridge"),
        ({"objectives": ("dice",)}, "no objective 'dice'; did you mean dice"),
        ({"layers": "all"}, "write one of together, each"),
        ({"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({"learning_rates": ()}, "learning_rates are"),
        ({"schemes": (THREE_CLASS_SCHEME,), "objectives": ("bce",)}, "add the objective dice-batch or dice-window"),
    ):
        with pytest.raises(ProbeError, match=words):
            FitSettings(**wrong)
    with pytest.raises(RegistryError, match="three-class"):
        FitSettings(schemes=("three-classes",))


def test_the_default_grid_is_13_rates_3_decays_and_3_schemes():
    settings = FitSettings()
    assert [len(set(grid)) for grid in (settings.learning_rates, settings.weight_decays, settings.schemes)] == [
        13,
        3,
        3,
    ]


def test_cards_carry_their_own_numbers(everything):
    folds = [everything.probes[f"{MODEL}/folds/ridge-{FAKE}-{fold}"].card for fold in range(3)]
    own = [card["metrics"]["validation_best_f1@patch"] for card in folds]
    assert len(set(own)) > 1
    card = everything.probes[f"{MODEL}/dice-{FAKE}"].card
    row = everything.results.query(
        "method == 'dice' and scheme == @FAKE and kind == 'sp' and metric == 'iou@patch'"
    ).iloc[0]
    assert card["metrics"]["sp iou@patch"] == {
        "value": row["value"],
        "low": row["low"],
        "high": row["high"],
        "sources": 9,
    }
    assert len(card["data"]["data_fingerprint"]) == 64
    assert card["data"]["manifest_sha256"][0] == row["manifest_sha256"]
    assert card["model_fingerprint"] == row["model_fingerprint"]
    assert card["notes"][0].startswith("licence of the backbone")
    saved = Probe.load(everything.out / f"probes/{MODEL}/dice-{FAKE}.safetensors").card
    assert (saved["metrics"], saved["data"]) == (card["metrics"], card["data"])


def test_tables_are_written_in_four_forms_with_what_determined_them(everything):
    for name in ("results", "comparisons"):
        table = pd.read_parquet(everything.out / f"{name}.parquet")
        assert len(pd.read_csv(everything.out / f"{name}.csv")) == len(table)
        assert {"model_fingerprint", "cache_fingerprint", "manifest_sha256", "settings"} <= set(table)
        assert '"epochs":2' in table["settings"].iloc[0]
        markdown = (everything.out / f"{name}.md").read_text()
        assert table["cache_fingerprint"].iloc[0] in markdown
        tex = (everything.out / f"{name}.tex").read_text()
        assert tex.startswith(r"\begin{tabular}")
        assert "\\_" in tex.split(r"\bottomrule")[0]
        assert "% settings: {" in tex


def test_methods_are_compared_at_their_own_thresholds_too(everything):
    rows = everything.comparisons.query("comparison == 'dice - ridge' and kind == 'sp'").set_index("metric")
    assert list(rows.index) == ["iou@patch", "iou_val@patch", "ap@patch"]
    wide = everything.images.query("variant == 'sp' and scheme == @FAKE").pivot_table(
        index="source_id", columns="method", values="iou_val"
    )
    assert rows.loc["iou_val@patch", "difference"] == pytest.approx((wide["dice"] - wide["ridge"]).mean())
    assert any("(iou_val) and the average precision (ap) beside it" in note for note in everything.notes)
    shown = everything.summary().query("kind == 'sp'")["metric"].tolist()
    assert shown == ["iou@patch", "ap@patch", "iou_val@patch"]
    assert "iou_val@patch" in (everything.out / "results.md").read_text()


def test_too_few_steps_name_the_options_that_mend_it_as_the_command_has_them(everything, several):
    (script,) = entry_points(group="console_scripts", name="dlprobe")
    options = {name for each in typer.main.get_command(script.load()).commands["fit"].params for name in each.opts}
    for fit, names in ((everything, ["--epochs", "--batch-windows"]), (several, ["--patience"])):
        [note] = [note for note in fit.notes if "took only" in note]
        assert [name for name in names if name in note] == names
        assert set(re.findall(r"--[a-z-]+", note)) <= options
    [note] = [note for note in everything.notes if "took only" in note]
    assert "--epochs, now 2" in note
    assert "--batch-windows, now 8" in note
    assert "--patience" not in note
