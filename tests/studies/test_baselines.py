"""Baselines of many folds and sources, at the edge of their grid, and on data that they separate."""

from dataclasses import replace

import numpy as np
import pytest

from dlprobe.cache import open_cache
from dlprobe.errors import ProbeError
from dlprobe.studies import FitSettings, fit_caches
from dlprobe.studies.fitting.methods.base import Task, edge_of_path
from dlprobe.studies.fitting.methods.heads import HeadGrid
from dlprobe.studies.fitting.methods.streamed import Gathered, Ridge
from dlprobe.studies.fitting.pool import CachePool
from dlprobe.studies.fitting.splits import assign

SCHEME, FAKE = "autoencoded-pristine", "autoencoded-fake"
MODEL = "statistics-colours"


def task_of(cache, settings, **options):
    pool = CachePool([open_cache(cache)])
    assignment = assign(pool.windows, kept=pool.kept, n_folds=settings.n_folds, **options)
    return Task(pool, assignment, settings, pool.group_moments(assignment.groups))


@pytest.mark.parametrize(("folds", "streams"), [((5, 12), 1), ((25, None), 26)])
def test_moments_of_many_sources_and_folds_are_those_of_each_training_part(
    make_cache, quick, monkeypatch, folds, streams
):
    """Sources that are always together share sums; where patterns are too many, each part has its own stream."""
    settings = replace(quick, schemes=(SCHEME, FAKE), n_folds=folds[0])
    task = task_of(make_cache(sources=26), settings, train_sources=folds[1])
    assert task.assignment.groups.max() >= 24
    passes, stream = [], CachePool.blocks
    monkeypatch.setattr(CachePool, "blocks", lambda *a, **k: passes.append(1) or stream(*a, **k))
    gathered = Gathered(task)
    found = {
        (scheme, train): gathered.of(scheme, train)
        for train in (*task.trains, task.assignment.final)
        for scheme in (SCHEME, FAKE)
    }
    assert len(passes) == streams
    for (scheme, train), moments in found.items():
        alone = Gathered(replace(task, assignment=replace(task.assignment, folds=(), final=train))).of(scheme, train)
        np.testing.assert_array_equal(moments.count, alone.count)
        mean, expected = (each.sum / each.count[:, None] + each.origin for each in (moments, alone))
        np.testing.assert_allclose(mean, expected, rtol=1e-5)


@pytest.mark.parametrize("options", [{"n_folds": 5, "train_sources": 12}, {"n_folds": 22}])
def test_ridge_and_lda_are_fitted_on_whatever_heads_are(make_cache, quick, tmp_path, options):
    settings = replace(quick, baselines=("ridge", "lda"), learning_rates=(1.0,), **options)
    found = fit_caches([make_cache(sources=24)], tmp_path / "run", settings=settings)
    rows = found.results.query("kind == 'sp' and metric == 'iou@patch'").set_index("method")
    assert (rows["n_sources"] == 24).all()
    assert {"dice", "ridge", "lda"} <= set(rows.index)
    assert (found.results["flag"] == "").all()
    assert {f"{MODEL}/ridge-{SCHEME}", f"{MODEL}/lda-{SCHEME}"} <= found.probes.keys()


def test_a_scheme_that_fails_in_a_later_fold_is_left_out_of_the_next(toy_cache, quick, monkeypatch):
    task = task_of(toy_cache, replace(quick, schemes=(SCHEME, FAKE)))
    tried = []

    def fit(self, scheme, train, cells):
        tried.append((scheme, self.task.trains.index(train)))
        if tried[-1] == (SCHEME, 1):
            msg = "no positive patch"
            raise ProbeError(msg)
        return []

    monkeypatch.setattr(Ridge, "fit", fit)
    found = Ridge(task, Gathered(task)).candidates()
    assert found.flags == {("ridge", SCHEME): "no positive patch"}
    assert tried == [(SCHEME, 0), (FAKE, 0), (SCHEME, 1), (FAKE, 1), (FAKE, 2)]


def test_a_c_at_the_edge_of_its_grid_is_told(toy_cache, quick, tmp_path):
    settings = replace(
        quick, baselines=("logistic", "sgd", "logistic-exact"), baseline_c=(1e-9, 1e-8, 1e-7), baseline_patches=2000
    )
    found = fit_caches([toy_cache], tmp_path / "run", settings=settings)
    for name in settings.baselines:
        edges = [note for note in found.notes if f": {name} {SCHEME}: in " in note]
        assert any("of the grid (1e-09 to 1e-07); widen it" in note for note in edges), name


def test_edges_need_three_values():
    assert edge_of_path("C", 1.0, (0.1, 1.0)) == []
    assert edge_of_path("C", 0.1, (0.01, 0.1, 1.0)) == []
    assert edge_of_path("C", 0.01, (1.0, 0.1, 0.01)) == ["C 0.01 is the smallest of the grid (0.01 to 1); widen it"]
    assert len(FitSettings().baseline_c) >= 5


def test_a_positive_weight_at_the_edge_of_its_grid_is_told(toy_cache, quick):
    grid = HeadGrid(task_of(toy_cache, replace(quick, positive_weights=(1.0, 2.0, 4.0))))
    grid.fitted = []
    [cell, *_] = [spec for spec in grid._grid([(0,)], [0]) if spec.positive_weight == 4]
    assert grid.edges(cell) == ["positive_weight 4 is the largest of the grid (1 to 4); widen it"]
    assert grid.edges(replace(cell, positive_weight=2.0)) == []


def test_separable_data_are_flagged_and_keep_their_scores(make_cache, quick, tmp_path):
    cache = make_cache(lift=600, variants=("real", "sp"))
    settings = replace(quick, baselines=("logistic-exact",), baseline_c=(1.0, 10.0))
    found = fit_caches([cache], tmp_path / "run", settings=settings)
    rows = found.results.query("method == 'logistic-exact'")
    assert rows["flag"].str.fullmatch(r"the training patches are separable in \d of 3 fits").all()
    assert rows.query("metric == 'iou@patch'")["value"].notna().all()
    assert (found.results.query("method == 'dice'")["flag"] == "").all()
    assert any("the training patches are separable" in note for note in found.notes)
