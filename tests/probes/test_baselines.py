"""The logistic baseline against scikit-learn's own pipeline."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dlprobe.errors import ProbeError
from dlprobe.probes import fit_logistic, fit_nearest, fit_sgd


def problem(n=400):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(n, 6)) * [1, 10, 0.1, 2, 1, 0] + [0, 5, 1, 0, -3, 2.5]).astype(np.float32)
    y = (X[:, 0] + 0.2 * X[:, 1] + rng.normal(size=n) > 1).astype(np.int8)
    y[::9] = -1
    return X, y


def test_raw_weights_give_the_same_logits_as_scaler_and_regression():
    X, y = problem()
    found = fit_logistic(X, y, C=0.3)
    known = y >= 0
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, tol=1e-8, max_iter=1000))
    expected = pipeline.fit(X[known].astype(np.float64), y[known]).decision_function(X.astype(np.float64))
    np.testing.assert_allclose(X.astype(np.float64) @ found.weights + found.bias, expected, atol=2e-3)
    assert found.weights[5] == 0
    assert found.converged
    assert found.n_patches == found.n_available == known.sum()


def test_the_subsample_is_stated_seeded_and_leaves_ignored_patches_out():
    X, y = problem()
    X[y < 0] = np.nan
    first, again, other = (fit_logistic(X, y, seed=seed, max_patches=100) for seed in (0, 0, 1))
    assert (first.n_patches, first.n_available) == (100, (y >= 0).sum())
    np.testing.assert_array_equal(first.weights, again.weights)
    assert not np.allclose(first.weights, other.weights)


def test_a_fit_that_stops_early_says_so():
    X, y = problem()
    assert not fit_logistic(X, y, C=1e6, max_iterations=1).converged


def test_stochastic_gradient_descent_comes_near_the_regression_it_stands_for():
    X, y = problem(3000)
    exact, found = fit_logistic(X, y, C=0.1), fit_sgd(X, y, C=0.1)
    logits = [X.astype(np.float64) @ fit.weights + fit.bias for fit in (exact, found)]
    assert np.corrcoef(*logits)[0, 1] > 0.99
    assert found.weights[5] == 0
    assert (found.n_patches, found.C) == (exact.n_patches, 0.1)


def test_nearest_patches_agree_with_a_look_at_all_distances():
    X, y = problem()
    found = fit_nearest(X, y, neighbours=7)
    known = y >= 0
    scaled = StandardScaler().fit(X[known].astype(np.float64)).transform(X.astype(np.float64))
    distances = np.square(scaled[:20, None] - scaled[None, known]).sum(axis=-1)
    nearest = np.argsort(distances, axis=1)[:, :7]
    np.testing.assert_allclose(found.scores(X[:20]), y[known][nearest].mean(axis=1))
    with pytest.raises(ProbeError, match="400 neighbours were asked for among 355"):
        fit_nearest(X, y, neighbours=400)


def test_a_missing_class_and_bad_numbers_are_refused():
    X, y = problem()
    with pytest.raises(ProbeError, match="both classes, 0 and 1; among 355 there are: 0"):
        fit_logistic(X, np.minimum(y, 0))
    with pytest.raises(ProbeError, match="among 0 there are: none"):
        fit_logistic(X, np.full_like(y, -1))
    with pytest.raises(ProbeError, match="give \\(n, width\\)"):
        fit_logistic(X, y[:3])
    X[1, 1] = np.inf
    with pytest.raises(ProbeError, match="not finite"):
        fit_logistic(X, y)
