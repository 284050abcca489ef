"""The estimators: scikit-learn's contract, and what they minimise."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score, f1_score, get_scorer, make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from dlprobe.errors import ProbeError
from dlprobe.probes import DiceProbe, KnownRowsScorer, RidgeProbe, StreamingLogisticRegression
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


def of_one_source_each(seed=0):
    """Rows whose class can be known by heart from their source's own feature, and poorly from the one that is shared.

    A third of the labels is hidden; hidden rows would be far off.
    """
    rng = np.random.default_rng(seed)
    sources = np.repeat(np.arange(40), 12)
    y = rng.permutation(np.arange(40) % 2)[sources]
    own = 4.0 * (sources[:, None] == np.arange(40))
    X = np.column_stack([0.5 * y + rng.normal(size=len(y)), own + 0.1 * rng.normal(size=own.shape)])
    labels = np.where(rng.random(len(y)) < 0.3, -1, y)
    X[labels < 0, 0] += 50
    return X, labels, sources, rng.uniform(0.5, 2, len(y))


SEARCHED = [(DiceProbe(), "alpha"), (StreamingLogisticRegression(), "C"), (RidgeProbe(), "alpha")]


@pytest.mark.parametrize(("estimator", "name"), SEARCHED)
@pytest.mark.parametrize("scoring", ["f1", "roc_auc", "average_precision", None])
def test_a_grid_search_by_source_scores_known_rows_by_their_weights(estimator, name, scoring):
    X, labels, sources, weight = of_one_source_each()
    made = clone(estimator).set_params(ignore_label=-1)
    step = type(made).__name__.lower()
    grid = {f"{step}__{name}": [1e-2, 1.0]}
    scorer = None if scoring is None else KnownRowsScorer(scoring)
    by_source, by_row = (
        GridSearchCV(make_pipeline(StandardScaler(), made), grid, cv=cv, scoring=scorer, error_score="raise")
        for cv in (GroupKFold(4), KFold(4, shuffle=True, random_state=0))
    )
    options = {f"{step}__sample_weight": weight}
    assert by_row.fit(X, labels, **options).best_score_ > 0.95  # what searches by source must not see
    assert by_source.fit(X, labels, groups=sources, **options).best_score_ < 0.75

    chosen = by_source.best_estimator_
    split = by_source.cv.split(X, labels, sources)
    cell, scores = {f"{step}__{name}": by_source.best_params_[f"{step}__{name}"]}, []
    for train, test in split:
        fitted = clone(chosen).set_params(**cell)
        fitted.fit(X[train], labels[train], **{f"{step}__sample_weight": weight[train]})
        known = test[labels[test] >= 0]
        plain = get_scorer(scoring or "accuracy")
        scores.append(plain(fitted.set_params(**{f"{step}__ignore_label": None}), X[known], labels[known]))
    assert by_source.best_score_ == pytest.approx(np.mean(scores), abs=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scores_of_known_rows_take_weights_and_refuse_to_score_none(estimator):
    X, y = problem()
    labels = np.where(np.arange(300) % 3 == 0, -1, y)
    known = labels >= 0
    weight = np.random.default_rng(1).uniform(0, 3, 300)
    fitted = clone(estimator).set_params(ignore_label=-1).fit(X, labels, sample_weight=weight)
    right = fitted.predict(X[known]) == labels[known]
    assert fitted.score(X, labels) == pytest.approx(right.mean())
    assert fitted.score(X, labels, weight) == pytest.approx(np.average(right, weights=weight[known]))
    found = KnownRowsScorer("f1")(fitted, X, labels, sample_weight=weight)
    assert found == f1_score(labels[known], fitted.predict(X[known]), sample_weight=weight[known])
    for scorer in (fitted.score, lambda X, y: KnownRowsScorer("f1")(fitted, X, y)):
        with pytest.raises(ProbeError, match="all 300 rows to score have an ignored label"):
            scorer(X, np.full(300, -1))


def test_a_search_that_routes_weights_gives_them_to_the_scorer():
    X, labels, sources, weight = of_one_source_each()
    seen = []

    def accuracy(truth, predicted, sample_weight=None):
        seen.append(sample_weight)
        return accuracy_score(truth, predicted, sample_weight=sample_weight)

    with config_context(enable_metadata_routing=True):
        probe = DiceProbe(ignore_label=-1).set_fit_request(sample_weight=True)
        scorer = KnownRowsScorer(make_scorer(accuracy)).set_score_request(sample_weight=True)
        search = GridSearchCV(probe, {"alpha": [1e-2]}, cv=GroupKFold(4), scoring=scorer)
        search.fit(X, labels, groups=sources, sample_weight=weight)
    known = [test[labels[test] >= 0] for _, test in GroupKFold(4).split(X, labels, sources)]
    assert [each.tolist() for each in seen] == [weight[each].tolist() for each in known]


@pytest.mark.parametrize(
    ("estimator", "complaint"),
    [
        (DiceProbe(-1), "DiceProbe has alpha=-1; give a finite number from 0 up"),
        (DiceProbe(np.nan), "alpha=nan"),
        (DiceProbe(smooth=-1), "smooth=-1"),
        (DiceProbe(tol=0), "tol=0; give a finite number above 0"),
        (DiceProbe(max_iter=0), "max_iter=0; give a finite number from 1 up"),
        (RidgeProbe(-1), "RidgeProbe has alpha=-1"),
        (RidgeProbe("1"), "alpha='1'"),
        (StreamingLogisticRegression(0), "C=0; give a finite number above 0"),
        (StreamingLogisticRegression(np.nan), "C=nan"),
        (StreamingLogisticRegression(np.inf), "C=inf"),
        (StreamingLogisticRegression(tol=-1), "tol=-1"),
        (StreamingLogisticRegression(max_iter=0), "max_iter=0"),
    ],
)
def test_settings_out_of_their_range_are_refused_as_scikit_learn_expects(estimator, complaint):
    for kind in (ValueError, ProbeError):
        with pytest.raises(kind, match=complaint) as caught:
            estimator.fit(*problem())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("estimator", [DiceProbe(), StreamingLogisticRegression()])
def test_a_fit_that_stops_early_warns(estimator):
    X, y = problem()
    assert clone(estimator).fit(X, y).converged_
    with pytest.warns(ConvergenceWarning, match="stopped after 2 steps at a gradient of"):
        found = clone(estimator).set_params(max_iter=2).fit(X, y)
    assert (found.converged_, found.n_iter_) == (False, 2)
