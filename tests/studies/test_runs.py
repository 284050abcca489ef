"""A run: interrupted and resumed, made again beside a user's files, with promised thresholds, and what cannot be."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import zarr

from dlprobe.cache import open_cache
from dlprobe.errors import CacheError, DataError, DlprobeError, MetricError, ProbeError
from dlprobe.metrics import conformal_image_threshold
from dlprobe.studies import fit_caches, read_run
from dlprobe.studies.fitting.calibration import LEVELS, parse_policy, score_of
from dlprobe.studies.fitting.methods.base import Baseline
from dlprobe.studies.fitting.pool import open_pools
from dlprobe.studies.fitting.scoring import Column, score_images
from dlprobe.studies.fitting.splits import CALIBRATION, assign
from dlprobe.studies.runs import DESK_NAME

SCHEME, FAKE = "autoencoded-pristine", "autoencoded-fake"
MODEL = "statistics-colours"


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("stage", ["epoch", "baseline"])
def test_an_interrupted_fit_goes_on_to_the_same_bytes(toy_cache, quick, tmp_path, monkeypatch, stage):
    settings = replace(quick, epochs=4, patience=2, baselines=("ridge", "logistic-exact"), baseline_c=(0.1,))
    whole = fit_caches([toy_cache], tmp_path / "whole", settings=settings)
    if stage == "epoch":

        def progress(done, planned):
            if done > planned // 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit_caches([toy_cache], tmp_path / "cut", settings=settings, progress=progress)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(Baseline, "final", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                fit_caches([toy_cache], tmp_path / "cut", settings=settings)
    left = files(tmp_path / "cut")
    assert left
    assert all(name.startswith(DESK_NAME) for name in left)
    steps = []
    again = fit_caches([toy_cache], tmp_path / "cut", settings=settings, progress=lambda done, _: steps.append(done))
    assert steps == [] or steps[0] > 1
    pd.testing.assert_frame_equal(again.results, whole.results)
    kept, expected = files(tmp_path / "cut"), files(tmp_path / "whole")
    assert {name for name in kept if kept[name] != expected.get(name)} == set()
    assert kept.keys() == expected.keys()


def test_a_checkpoint_of_other_settings_is_thrown_away(toy_cache, quick, tmp_path):
    def progress(done, planned):
        if done == planned:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_caches([toy_cache], tmp_path / "run", settings=quick, progress=progress)
    other = fit_caches([toy_cache], tmp_path / "run", settings=replace(quick, learning_rates=(0.5,)))
    assert "lr 0.5" in other.results["setting"].max()
    assert not (tmp_path / "run" / DESK_NAME).exists()


def test_a_rerun_replaces_what_it_wrote_and_leaves_the_rest(toy_cache, quick, tmp_path):
    out = tmp_path / "run"
    fit_caches([toy_cache], out, settings=replace(quick, baselines=("ridge",)))
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("mine")
    (out / "probes" / MODEL / "mine.safetensors").write_text("mine")
    (out / "report.html").write_text("of the run before")
    (out / "notes" / "link").symlink_to("mine.txt")
    fit_caches([toy_cache], out, settings=quick)
    assert (out / "notes" / "mine.txt").read_text() == "mine"
    assert (out / "notes" / "link").is_symlink()
    assert (out / "probes" / MODEL / "mine.safetensors").read_text() == "mine"
    assert not (out / "report.html").exists()
    assert not list((out / "probes").rglob("ridge*"))
    assert (out / "probes" / MODEL / f"dice-{SCHEME}.safetensors").is_file()
    recorded = set(read_run(out).record["files"])
    assert files(out).keys() - recorded == {"notes/mine.txt", "notes/link", f"probes/{MODEL}/mine.safetensors"}


def test_a_fit_that_fails_leaves_the_run_before_as_it_was(toy_cache, make_cache, quick, tmp_path):
    out = tmp_path / "run"
    fit_caches([toy_cache], out, settings=quick)
    before = files(out)
    with pytest.raises(DataError):
        fit_caches([make_cache(variants=("real", "ae"))], out, settings=quick)
    assert files(out) == before
    with pytest.raises(DataError):
        fit_caches([make_cache(variants=("real", "ae"))], tmp_path / "new", settings=quick)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"variants": ("real", "ae")}, "no patch is inpainted"), ({"sources": 1}, "there is one source")],
)
def test_a_cache_that_cannot_be_fitted_is_one_clear_line(make_cache, quick, tmp_path, options, words):
    with pytest.raises(DataError, match=words) as caught:
        fit_caches([make_cache(**options)], tmp_path / "run", settings=quick)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def damaged(source, target, name, windows, value):
    """Copy a cache and overwrite part of one of its arrays on disk."""
    shutil.copytree(source, target)
    array = zarr.open_group(target / "features.zarr", mode="r+")[name]
    array[windows] = np.broadcast_to(value, array[windows].shape)
    return target


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("name", ["moments", "embeddings"])
def test_embeddings_that_are_not_finite_are_named(toy_cache, quick, tmp_path, name, split):
    """In moments as in embeddings alone, of whichever window: never a silent 0."""
    windows = open_cache(toy_cache).windows
    found = assign(windows, n_folds=3)
    group = dict(zip(("test", "val", "train"), range(3), strict=True))[split]
    broken = np.flatnonzero((found.groups == group) & (windows["variant"] == "sp"))[-1:]
    cache = damaged(toy_cache, tmp_path / "cache", name, broken, np.nan)
    with pytest.raises(DlprobeError, match="not finite") as caught:
        fit_caches([cache], tmp_path / "run", settings=quick)
    assert "\n" not in str(caught.value)
    if name == "moments":
        assert windows["path"][broken[0]] in str(caught.value)
        assert isinstance(caught.value, CacheError)
    assert not (tmp_path / "run").exists()


def test_a_tested_window_without_numbers_is_named(toy_cache, quick, tmp_path):
    """Whatever no head ever saw must be told by its scores."""
    broken = np.flatnonzero(open_cache(toy_cache).windows["variant"] == "sp")[-1:]
    [(pool, _)] = open_pools([damaged(toy_cache, tmp_path / "cache", "embeddings", broken, np.nan)])
    assignment = assign(pool.windows, n_folds=3)
    columns = [Column("dice", SCHEME, fold, np.ones(12), 0.0, threshold=0.0) for fold in range(3)]
    with pytest.raises(
        CacheError, match=rf"not finite \(first: {pool.windows['path'][broken[0]]} .*dlprobe cache verify"
    ):
        score_images(pool, assignment, columns)
    sound = [Column("dice", SCHEME, 0, np.full(12, np.nan), 0.0, threshold=0.0)]
    [(pool, _)] = open_pools([toy_cache])
    with pytest.raises(ProbeError, match="too large; lower the learning rates"):
        score_images(pool, assignment, sound)


def test_patches_that_are_all_ignored_are_one_line(toy_cache, quick, tmp_path):
    cache = damaged(toy_cache, tmp_path / "cache", "coverage", slice(None), [0, 0, 0, 255])
    with pytest.raises(DataError, match="every patch is ignored"):
        fit_caches([cache], tmp_path / "run", settings=quick)
    assert not (tmp_path / "run").exists()


def test_a_scheme_that_leaves_one_class_is_a_flagged_row(make_cache, quick, tmp_path):
    """Of fully regenerated images alone nothing is pristine."""
    cache = make_cache(variants=("fr",))
    settings = replace(quick, schemes=(SCHEME, FAKE), baselines=("ridge", "logistic", "logistic-exact", "lda"))
    found = fit_caches([cache], tmp_path / "run", settings=settings)
    flagged = found.results[found.results["flag"] != ""].set_index(["method", "scheme"])
    assert set(flagged.index) == {(name, FAKE) for name in ("dice", "ridge", "logistic", "logistic-exact", "lda")}
    assert flagged["value"].isna().all()
    assert flagged.loc[("dice", FAKE), "flag"] == "its training windows hold no negative patch"
    scored = found.results[found.results["flag"] == ""]
    assert set(scored["scheme"]) == {"", SCHEME}
    assert any(f"ridge {FAKE} is out" in note for note in found.notes)
    with pytest.raises(
        ProbeError, match=f"nothing can be fitted; dice under {FAKE}: its training windows hold no negat"
    ):
        fit_caches([cache], tmp_path / "other", settings=replace(quick, schemes=(FAKE,)))


@pytest.mark.parametrize("policy", ["image-fpr:0.25", "area:0.2"])
def test_a_promised_threshold_is_calibrated_on_sources_of_its_own(make_cache, quick, tmp_path, policy):
    cache = make_cache(sources=16)
    found = fit_caches(
        [cache], tmp_path / "run", settings=replace(quick, threshold_policy=policy, baselines=("ridge",))
    )
    table = open_cache(cache).windows
    for name, probe in found.probes.items():
        fold = name.split("-")[-1]
        tested = set(found.images.loc[found.images["fold"].astype(str) == fold, "source_id"])
        seen = set(probe.card["data"]["train_sources"])
        apart = set(table["source_id"]) - set(found.images["source_id"])
        assert len(apart) == probe.card["guarantee"]["n"] == max(3, parse_policy(policy).sources_needed)
        assert not seen & (apart | tested)
        assert "marginal, and for images like those of the calibration set" in probe.card["threshold_policy"]
        assert probe.card["threshold"] == probe.card["guarantee"]["threshold"]
        assert kept(policy, probe, cache, apart) <= float(policy.split(":")[1])
    metrics = set(found.results["metric"])
    assert {"iou_promised@patch", "false_area_promised@patch", "flagged_promised@patch"} <= metrics
    assert (found.results["threshold_policy"] == policy).all()


def kept(policy, probe, cache_path, sources):
    """Return the finite-sample bound on the calibration sources themselves, by an independent count."""
    cache = open_cache(cache_path)
    table = cache.windows
    worst = []
    for source in sorted(sources):
        rows = np.flatnonzero((table["source_id"] == source) & (table["variant"] == "real"))
        logits = probe.logits(cache.read(rows).embeddings.astype(np.float32).astype(np.float64))
        worst.append(float((1 / (1 + np.exp(-logits)) >= probe.card["threshold"]).mean()))
    worst = np.array(worst)
    losses = (worst > 0.01).astype(float) if policy.startswith("image") else worst
    return losses.sum() / (len(worst) + 1) if policy.startswith("image") else (losses.sum() + 1) / (len(worst) + 1)


def test_too_few_sources_for_a_promise_are_refused_with_the_number_needed(toy_cache, quick, tmp_path):
    with pytest.raises(DataError, match=r"needs 19 sources .* there are 9, of which half may be set apart"):
        fit_caches([toy_cache], tmp_path / "run", settings=replace(quick, threshold_policy="image-fpr:0.05"))
    assert not (tmp_path / "run").exists()


def test_the_manifests_calibration_split_is_obeyed():
    rows = [(f"p:{s}", "", "", "real", "calibration" if s < 5 else "") for s in range(20) for _ in range(2)]
    frame = pd.DataFrame(rows, columns=["source_id", "donor_id", "generator", "variant", "split"])
    found = assign(frame, calibration=4, n_folds=3)
    assert ((found.groups == CALIBRATION) == (frame["split"] == "calibration")).all()
    assert "5 sources set apart for calibration" in found.description
    unused = assign(frame, n_folds=3)
    assert (unused.groups[frame["split"] == "calibration"] < 0).all()
    with pytest.raises(DataError, match=r"needs 9 sources .* there are 5; add"):
        assign(frame, calibration=9, n_folds=3)
    frame.loc[0, "split"] = "train"
    with pytest.raises(DataError, match="cross the manifest's splits"):
        assign(frame, calibration=4)


def test_a_named_test_set_lends_no_source_to_calibration():
    rows = [(f"p:{s}", "", "", "real", ("train", "train", "val", "test")[s % 4]) for s in range(80)]
    frame = pd.DataFrame(rows, columns=["source_id", "donor_id", "generator", "variant", "split"])
    found = assign(frame, calibration=9)
    assert set(frame["split"][found.groups == CALIBRATION]) == {"train"}
    assert (found.groups == CALIBRATION).sum() == 9
    assert (found.groups[frame["split"] == "test"] == 2).all()


def test_policies_are_read_and_refused_in_words():
    assert parse_policy("area:0.01").alpha == 0.01
    assert parse_policy("image-fpr:0.05").sources_needed == 19
    assert parse_policy("best-f1").sources_needed == 0
    for text, words in (
        ("image-fp:0.1", "did you mean image-fpr:ALPHA"),
        ("best-f1:0.1", "no threshold policy"),
        ("area", "no threshold policy"),
        ("area:small", "promises no rate"),
        ("area:2", "is no rate"),
    ):
        with pytest.raises(MetricError, match=words):
            parse_policy(text)


def test_scores_that_saturate_mark_nothing():
    assert score_of(0.0) == 0.5
    assert np.float32(1.0) < score_of(np.inf)
    assert LEVELS[-1] > 60_000
    assert conformal_image_threshold(np.full(9, 40.0), 0.1).threshold > 13
    assert issubclass(MetricError, DlprobeError)
