"""The estimators: scikit-learn's contract, and what they minimise."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from dlprobe.errors import ProbeError
from dlprobe.probes import DiceProbe, RidgeProbe, StreamingLogisticRegression
from dlprobe.probes.losses import dice_loss

ESTIMATORS = [DiceProbe(), StreamingLogisticRegression(), RidgeProbe()]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def problem(n=300, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 5)) * [1, 10, 0.1, 3, 0] + [0, 20, 5, 0, 7]
    y = (X[:, 0] + 0.1 * X[:, 1] + 0.7 * rng.normal(size=n) > 3).astype(int)
    return X, y


def test_logistic_regression_agrees_with_scikit_learn():
    X, y = problem()
    for C in (0.01, 1.0, 1000.0):
        ours = StreamingLogisticRegression(C=C).fit(X, y)
        theirs = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10).fit(X, y)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
        np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-7)
        assert ours.converged_
        assert not ours.separable_


def test_ridge_agrees_with_scikit_learn():
    X, y = problem()
    weight = np.random.default_rng(1).uniform(0.5, 2, len(y))
    scaler = StandardScaler().fit(X, sample_weight=weight)
    for alpha in (1e-3, 1.0, 100.0):
        ours = RidgeProbe(alpha).fit(X, y, sample_weight=weight)
        theirs = RidgeClassifier(alpha).fit(scaler.transform(X), y, sample_weight=weight)
        np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(scaler.transform(X)), atol=1e-9)


@pytest.mark.parametrize("windows", [None, np.arange(300) // 60])
def test_dice_is_at_a_minimum_of_the_loss_that_the_trainer_uses(windows):
    import torch

    X, y = problem()
    alpha = 0.01
    found = DiceProbe(alpha).fit(X, y, windows=windows)
    varies = X.std(axis=0) > 0
    mean, deviation = X[:, varies].mean(axis=0), X[:, varies].std(axis=0)
    groups = np.zeros(300, int) if windows is None else windows

    def objective(point):
        logits = torch.from_numpy((X[:, varies] - mean) / deviation @ point[:-1] + point[-1])
        each = [
            dice_loss(logits[groups == g].sigmoid()[None, :, None], torch.from_numpy(y[groups == g])[None]).item()
            for g in np.unique(groups)
        ]
        return np.mean(each) + alpha / 2 * np.square(point[:-1]).sum()

    weights = found.coef_[0][varies]
    point = np.append(weights * deviation, found.intercept_ + weights @ mean)
    assert np.abs(approx_fprime(point, objective, 1e-6)).max() < 1e-5
    assert objective(point) < objective(0 * point) - 0.1
    assert found.loss_ == pytest.approx(objective(point) - alpha / 2 * np.square(point[:-1]).sum(), abs=1e-9)
    assert found.coef_[0, 4] == 0


def test_windows_make_another_loss():
    X, y = problem()
    y[:60] = 0
    whole, apart = DiceProbe().fit(X, y), DiceProbe().fit(X, y, windows=np.arange(300) // 60)
    assert not np.allclose(whole.coef_, apart.coef_, rtol=1e-2)
    with pytest.raises(ProbeError, match="windows have shape"):
        DiceProbe().fit(X, y, windows=np.arange(10))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_ignored_rows_do_not_matter(estimator):
    X, y = problem()
    labels = np.where(np.arange(300) % 3 == 0, -1, y)
    kept = labels >= 0
    made = clone(estimator).set_params(ignore_label=-1)
    with_them = clone(made).fit(np.where(kept[:, None], X, 1e3), labels)
    without = clone(estimator).fit(X[kept], y[kept])
    np.testing.assert_array_equal(with_them.coef_, without.coef_)
    assert with_them.classes_.tolist() == [0, 1]
    with pytest.raises(ProbeError, match="needs rows of two classes"):
        clone(made).fit(X, np.full(300, -1))
    with pytest.raises(ProbeError, match="needs rows of two classes"):
        clone(made).fit(X, np.minimum(labels, 0))


@pytest.mark.parametrize(("estimator", "name"), [(DiceProbe(), "alpha"), (StreamingLogisticRegression(), "C")])
def test_they_work_in_a_pipeline_under_a_grid_search_by_source(estimator, name):
    X, y = problem()
    sources = np.arange(300) // 20
    step = type(estimator).__name__.lower()
    search = GridSearchCV(
        make_pipeline(StandardScaler(), estimator), {f"{step}__{name}": [1e-3, 1.0]}, cv=GroupKFold(3), scoring="f1"
    )
    search.fit(X, y, groups=sources)
    assert search.best_score_ > 0.7
