"""The table of pooled scores, computed again from saved probes by somebody else's code."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    jaccard_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from dlprobe.cache import open_cache
from dlprobe.data import label_patches
from dlprobe.metrics import best_f1, expected_calibration_error, fit_temperature
from dlprobe.reports import report_folder
from dlprobe.studies import fit_caches, read_run
from dlprobe.studies.fitting.scoring import Column, Pooled, Stack
from dlprobe.studies.fitting.scoring.tallies import Units

SCHEME = "autoencoded-pristine"
MODEL = "statistics-colours"


@pytest.fixture(scope="module")
def fitted(make_cache, quick, tmp_path_factory):
    cache = make_cache(lift=15)
    settings = replace(quick, baselines=("ridge", "knn"), baseline_patches=2000)
    return cache, fit_caches([cache], tmp_path_factory.mktemp("pooled") / "run", settings=settings)


@pytest.fixture(scope="module")
def table(fitted):
    return read_run(fitted[1].out).tables["pooled"].set_index(["method", "variant"])


def patches(cache_path, probe, sources, variant=None):
    """Return logits and truth of the patches of some sources that count."""
    cache = open_cache(cache_path)
    chosen = cache.windows["source_id"].isin(sources)
    chosen &= cache.windows["variant"].eq(variant) if variant not in {None, "all"} else True
    block = cache.read(np.flatnonzero(chosen))
    truth = label_patches(block.coverage, SCHEME)
    return probe.logits(block.embeddings.astype(np.float64))[..., 0][truth >= 0], truth[truth >= 0] == 1


@pytest.mark.parametrize("variant", ["sp", "fr", "all"])
@pytest.mark.parametrize("method", ["dice", "ridge"])
def test_pooled_scores_are_those_of_scikit_learn(fitted, table, method, variant):
    cache, found = fitted
    row, ranks, folds, temperatures = table.loc[(method, variant)], [], [], []
    for fold in range(3):
        probe = found.probes[f"{MODEL}/folds/{method}-{SCHEME}-{fold}"]
        tested = found.images.loc[found.images["fold"] == fold, "source_id"].unique()
        z, y = patches(cache, probe, tested, variant)
        ranks.append((roc_auc_score(y, z), average_precision_score(y, z), best_f1(z, y).f1))
        temperatures.append(fit_temperature(*patches(cache, probe, probe.card["data"]["val_sources"])).value)
        folds.append((z, y, expit(z) >= probe.card["threshold"], z / temperatures[-1]))
    z, y, marked, tempered = (np.concatenate(parts) for parts in zip(*folds, strict=True))
    auc, ap, oracle = np.mean(ranks, axis=0)
    assert row["auc_low"] <= auc + 1e-6
    assert auc - 1e-6 <= row["auc_high"]
    assert row["ap_low"] <= ap + 1e-6
    assert ap - 1e-6 <= row["ap_high"]
    assert row["auc_high"] - row["auc_low"] < 0.01
    assert row["auc"] == pytest.approx(auc, abs=0.005)
    assert row["best_f1_oracle"] == pytest.approx(oracle, abs=0.01)
    assert row["best_f1_oracle"] >= row["f1_val"] - 0.02
    for name, score in (
        ("iou", jaccard_score),
        ("f1", f1_score),
        ("precision", precision_score),
        ("recall", recall_score),
    ):
        for suffix, decided in (("", z >= 0), ("_val", marked)):
            expected = score(y, decided, zero_division=np.nan if name == "precision" else 0)
            assert row[f"{name}{suffix}"] == pytest.approx(expected, abs=2e-3, nan_ok=True)
    assert (row["n"], row["share"]) == (len(y), pytest.approx(y.mean()))
    assert row["ece"] == pytest.approx(expected_calibration_error(expit(z), y), abs=2e-3)
    assert row["nll"] == pytest.approx(log_loss(y, expit(z)), rel=1e-3)
    assert row["temperature"] == pytest.approx(np.median(temperatures), rel=5e-3)
    assert row["nll_tempered"] == pytest.approx(log_loss(y, expit(tempered)), rel=2e-3)


def test_marking_everything_and_authentic_variants_stand_in_the_table(table):
    for variant in ("sp", "fr", "all"):
        row = table.loc[("everything", variant)]
        p = row["share"]
        assert row[["iou", "f1", "auc", "ap", "recall"]].tolist() == pytest.approx([p, 2 * p / (1 + p), 0.5, p, 1])
        assert row["n"] == table.loc[("knn", variant), "n"]
    for method in ("everything", "dice", "ridge", "knn"):
        assert table.loc[(method, "real"), ["iou", "f1", "auc", "ap", "best_f1_oracle"]].isna().all()
    assert table.loc[("dice", "real"), ["ece", "nll", "temperature"]].notna().all()
    assert list(table.loc["dice"].index) == ["real", "ae", "sp", "fr", "all"]
    assert set(table["model"]) == {"statistics:colours"}
    assert set(table["grid"]) == {"patch"}


def test_rankings_are_made_within_folds_and_decisions_add():
    """Two probes on scales of their own: pooled ranks would say that the second knows less than it does."""
    rng, tally = np.random.default_rng(0), Pooled()
    for fold, (scale, shift) in enumerate(((1.0, 0.0), (20.0, 300.0))):
        truth = rng.random(4000) < 0.3
        logits = (scale * (rng.normal(size=4000) + 2 * truth) + shift).astype(np.float32)
        column = Column("dice", SCHEME, fold, np.empty(1), 0.0, threshold=scale + shift, temperature=scale)
        for part in np.array_split(np.arange(4000), 5):
            tally.add(column, Units(logits[part], truth[part], "sp", "p:0"))
        tally.close()
    row = tally.frame().set_index(["method", "variant"]).loc[("dice", "sp")]
    assert row["auc"] == pytest.approx(0.921, abs=0.01)
    assert row["f1_val"] == pytest.approx(0.76, abs=0.02)
    assert row["n"] == 8000
    assert row["nll_tempered"] < row["nll"]


def test_a_head_on_another_scale_has_the_temperature_and_likelihood_of_its_own_logits():
    rng = np.random.default_rng(1)
    X, truth = rng.normal(size=(3000, 6)).astype(np.float32), rng.random(3000) < 0.4
    X[truth] += 0.4
    far = Column("dice", SCHEME, 0, np.full(6, 40.0), -3.0, threshold=150.0, temperature=37.0)
    scaled = far.within_scores()
    assert scaled.divisor == 32
    rows = []
    for column in (far, scaled):
        tally = Pooled()
        tally.add(column, Units(Stack([column])(X)[:, 0], truth, "sp", "p:0"))
        tally.close()
        rows.append(tally.frame().set_index(["method", "variant"]).loc[("dice", "sp")])
    before, after = rows
    assert before["temperature"] == after["temperature"] == 37.0
    assert after["nll_tempered"] == pytest.approx(before["nll_tempered"], rel=1e-6)
    assert after["f1_val"] == before["f1_val"] > 0
    logits = X @ np.full(6, 40.0) - 3.0
    expected = np.logaddexp(0, np.where(truth, -1, 1) * logits / 37.0).mean()
    assert after["nll_tempered"] == pytest.approx(expected, rel=1e-5)


def test_a_report_shows_pooled_scores(fitted, tmp_path):
    html = report_folder(fitted[1].out, tmp_path / "page.html").read_text()
    assert "All patches of a variant together" in html
    assert "best F1, oracle" in html


def test_pooled_scores_of_runs_are_files_of_theirs(fitted):
    run = fitted[1].out
    assert {"pooled.parquet", "pooled.csv"} <= set(read_run(run).record["files"])
    assert len(pd.read_csv(run / "pooled.csv")) == len(pd.read_parquet(run / "pooled.parquet"))
