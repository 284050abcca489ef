"""Exact baselines against scikit-learn."""

import tracemalloc

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dlprobe.errors import ProbeError
from dlprobe.probes.exact import Rows, SecondMoments, lda, newton, ridge_path, second_moments, stream_logistic


def problem(n=1500, width=20, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) * 0.4 + rng.normal(size=width) * 2
    score = X @ rng.normal(size=width) * 0.3
    y = (score + rng.logistic(size=n) > np.quantile(score, 0.7)).astype(np.int8)
    return X.astype(np.float16), y


def portions(X, y, weight=None, size=400):
    def rows():
        for start in range(0, len(X), size):
            part = slice(start, start + size)
            yield Rows(X[part], y[part], None if weight is None else weight[part])

    return rows


@pytest.mark.parametrize("C", [1e-4, 0.1, 10.0, 1e4])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_regression_agrees_with_newton_cholesky(C, weighted, monkeypatch):
    monkeypatch.setattr(newton, "TILE_ROWS", 256)
    X, y = problem()
    weight = np.random.default_rng(1).integers(0, 4, len(y)).astype(float) if weighted else None
    found = stream_logistic(portions(X, y, weight), X.shape[1], C=C)
    solver = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10)
    expected = solver.fit(X.astype(float), y, sample_weight=weight)
    np.testing.assert_allclose(found.weights, expected.coef_[0], atol=1e-6)
    assert found.bias == pytest.approx(expected.intercept_[0], abs=1e-6)
    assert found.converged
    assert found.gradient <= 1e-9
    assert not found.separable
    assert found.hessian == ("float32" if C <= 100 else "float64")
    assert found.total_weight == (len(y) if weight is None else weight.sum())


def test_ignored_rows_are_left_out_and_each_iteration_reads_the_rows_once():
    X, y = problem()
    hidden = np.where(np.arange(len(y)) % 4 == 0, -1, y)
    known = hidden >= 0
    X[~known] = np.nan
    reads = []

    def rows():
        reads.append(1)
        return portions(X, hidden)()

    found = stream_logistic(rows, X.shape[1])
    expected = stream_logistic(portions(X[known], y[known]), X.shape[1])
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-12)
    assert found.passes == found.iterations + 1
    assert len(reads) == found.passes + 1  # one more to count and check


def test_separable_data_is_flagged_and_still_solved():
    X, y = problem()
    y = (X[:, 0].astype(float) > X[:, 0].mean()).astype(np.int8)
    y[np.abs(X[:, 0].astype(float) - X[:, 0].mean()) < 0.05] = -1
    found = stream_logistic(portions(X, y), X.shape[1], C=100.0)
    known = y >= 0
    expected = LogisticRegression(C=100.0, solver="newton-cholesky", tol=1e-12).fit(X[known].astype(float), y[known])
    assert found.separable
    assert found.converged
    np.testing.assert_allclose(found.weights, expected.coef_[0], rtol=1e-4, atol=1e-4)


def parted(gap=0.0, flips=0):
    """Rows whose first feature alone tells the class; rows within a gap are left out, some labels are turned."""
    X, _ = problem()
    first = X[:, 0].astype(float)
    y = (first > np.quantile(first, 0.9)).astype(np.int8)
    y[np.argsort(np.abs(first - np.quantile(first, 0.2)))[:flips]] ^= 1
    y[np.abs(first - np.quantile(first, 0.9)) < gap] = -1
    return X, y


@pytest.mark.parametrize("C", [1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("shown", [1.0, 0.1])
def test_whether_a_plane_separates_is_asked_of_the_data_not_of_the_penalty(C, shown, monkeypatch):
    monkeypatch.setattr(newton, "_SAMPLE_ROWS", 40 * shown)  # all rows are in the sample, or a few
    for gap in (0.0, 0.05):
        assert stream_logistic(portions(*parted(gap)), 20, C=C).separable is True
    for flips in (1, 3, 300):
        found = stream_logistic(portions(*parted(flips=flips)), 20, C=C)
        assert found.separable is False
        assert found.converged


def test_classes_that_overlap_in_a_sample_cost_no_further_reading_and_the_sample_is_bounded(monkeypatch):
    X, y = problem()
    monkeypatch.setattr(newton, "_SAMPLE_ROWS", 4)
    found = stream_logistic(portions(X, y), 20)
    assert found.separable is False
    assert found.passes == found.iterations + 1
    sample = newton._Sample(50)
    for rows in portions(X, y, size=64)():
        sample.add(rows.X, rows.y)
    for side, rows in enumerate(sample.rows()):
        assert 25 <= len(rows.X) <= 50
        stride = 2 ** int(np.ceil(np.log2((y == side).sum() / 50)))
        np.testing.assert_array_equal(rows.X, X[y == side][::stride])


def test_whether_a_plane_separates_may_stay_unknown(monkeypatch):
    monkeypatch.setattr(newton, "SEPARATION_STEPS", 1)
    assert stream_logistic(portions(*parted()), 20, C=1e-4).separable is None


@pytest.mark.parametrize(
    ("change", "message"),
    [({"once": True}, "weigh 0 now and 1500 at first"), ({"late": 2.0}, "weigh 1501 now and 1500 at first")],
)
def test_rows_that_are_not_the_same_each_time_are_refused(change, message):
    X, y = problem()
    weight = np.ones(len(y))
    calls = []

    def rows():
        calls.append(1)
        weight[0] = change.get("late", 1) if len(calls) > 2 else 1
        return portions(X, y, weight)()

    iterator = rows()
    with pytest.raises(ProbeError, match=message) as caught:
        stream_logistic((lambda: iterator) if "once" in change else rows, 20)
    assert "\n" not in str(caught.value)


def test_steps_that_overshoot_are_shortened(monkeypatch):
    X, y = problem()
    expected = stream_logistic(portions(X, y), X.shape[1])
    plain = newton._Newton._direction
    monkeypatch.setattr(newton._Newton, "_direction", lambda self, point, gradient: 40 * plain(self, point, gradient))
    found = stream_logistic(portions(X, y), X.shape[1], tolerance=1e-5)
    assert found.converged
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-2)


def test_a_float32_hessian_that_cannot_be_factored_becomes_float64():
    X, y = problem()
    far = X.astype(np.float64) + 3e4
    found = stream_logistic(portions(far, y), X.shape[1], C=10.0)
    expected = stream_logistic(portions(X.astype(np.float64), y), X.shape[1], C=10.0)
    assert (found.hessian, expected.hessian) == ("float64", "float32")
    assert found.converged
    assert found.passes < 30
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-3, atol=1e-4)


def test_a_float32_hessian_that_does_not_help_becomes_float64(monkeypatch):
    X, y = problem()
    expected = stream_logistic(portions(X, y), X.shape[1])
    plain = newton._gram

    def too_steep(rows):
        return plain(rows) * (8 if rows.dtype == np.float32 else 1)

    monkeypatch.setattr(newton, "_gram", too_steep)
    found = stream_logistic(portions(X, y), X.shape[1])
    assert (found.hessian, expected.hessian) == ("float64", "float32")
    assert found.iterations < expected.iterations + 4
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-6)


def test_collinear_features_and_a_tiny_penalty_still_end_at_the_gradient_not_at_the_decrement():
    X, y = problem()
    X = np.concatenate([X, X[:, :3]], axis=1).astype(np.float64)
    found = stream_logistic(portions(X, y), X.shape[1], C=1e10)
    assert found.converged
    z = X @ found.weights + found.bias
    gradient = X.T @ (1 / (1 + np.exp(-z)) - y) / len(y) + found.weights / (1e10 * len(y))
    assert np.abs(gradient).max() < 2e-9


def test_whether_a_plane_separates_is_not_asked_where_it_is_known(monkeypatch):
    X, y = problem()
    asked = stream_logistic(portions(X, y), X.shape[1], C=0.1)
    monkeypatch.setattr(newton._Newton, "separates", None)  # cannot be called
    for known in (False, True):
        told = stream_logistic(portions(X, y), X.shape[1], C=0.1, separable=known)
        assert told.separable is known
        np.testing.assert_array_equal(told.weights, asked.weights)


def test_what_cannot_be_fitted_is_refused_in_one_line():
    X, y = problem()
    for C in (0, -1, np.nan, np.inf):
        with pytest.raises(ProbeError, match=f"C is {C}"):
            stream_logistic(portions(X, y), 20, C=C)
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ProbeError, match="weights that are negative or not finite"):
            stream_logistic(portions(X, y, np.where(np.arange(len(y)) == 700, wrong, 1.0)), 20)
    with pytest.raises(ProbeError, match="only negative"):
        stream_logistic(portions(X, 0 * y), 20)
    with pytest.raises(ProbeError, match="none"):
        stream_logistic(portions(X, 0 * y - 1), 20)
    with pytest.raises(ProbeError, match="not finite or of another width"):
        stream_logistic(portions(X, y), 21)
    X[3, 3] = np.inf
    with pytest.raises(ProbeError, match="not finite or of another width"):
        stream_logistic(portions(X, y), 20)


def test_memory_does_not_grow_with_the_rows():
    width, direction = 24, np.random.default_rng(5).normal(size=24)

    def peak_bytes(portions_of_4096):
        def rows():
            for i in range(portions_of_4096):
                rng = np.random.default_rng(i)
                X = rng.normal(size=(4096, width)).astype(np.float32)
                yield Rows(X, (X @ direction + rng.logistic(size=4096) > 2).astype(np.int8))

        tracemalloc.start()
        assert stream_logistic(rows, width).total_weight == 4096 * portions_of_4096
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak_bytes(4), peak_bytes(32)
    assert many < few + 1_000_000  # how many tiles are at work at the same moment differs by chance
    assert many < 32 * 4096 * width * 4 / 2  # the rows themselves


WINDOWS, PATCHES, WIDTH = 24, 60, 8


class Gathered:
    """Windows of three groups under two schemes, one of which ignores what the other counts as positive."""

    def __init__(self):
        rng = np.random.default_rng(2)
        shape = (WINDOWS, PATCHES)
        kind = rng.choice(4, shape, p=[0.5, 0.2, 0.2, 0.1])
        noise = rng.normal(size=(*shape, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH))
        self.embeddings = (noise + kind[..., None] * rng.normal(size=WIDTH) + 5).astype(np.float16)
        self.targets = {
            "a": np.array([0, 0, 1, -1], np.int8)[kind],
            "b": np.array([0, -1, 1, -1], np.int8)[kind],
        }
        self.groups = np.arange(WINDOWS) % 4 - 1
        self.moments = SecondMoments(self.embeddings.mean(axis=(0, 1), dtype=float), 3, ["a", "b"])
        for start in range(0, WINDOWS, 10):
            part = slice(start, start + 10)
            targets = {scheme: each[part] for scheme, each in self.targets.items()}
            self.moments.add(self.embeddings[part], targets, self.groups[part])

    def rows(self, scheme, groups):
        chosen = np.isin(self.groups, groups)[:, None] & (self.targets[scheme] >= 0)
        return self.embeddings[chosen].astype(float), self.targets[scheme][chosen]


@pytest.fixture(scope="module")
def gathered():
    return Gathered()


@pytest.mark.parametrize("scheme", ["a", "b"])
@pytest.mark.parametrize("groups", [(0, 1, 2), (0, 2), (1,)])
def test_one_pass_gives_ridge_for_every_scheme_fold_and_penalty(gathered, scheme, groups):
    X, y = gathered.rows(scheme, groups)
    alphas = np.geomspace(1e-2, 1e4, 20)
    for alpha, found in zip(alphas, ridge_path(gathered.moments.of(scheme, groups), alphas), strict=True):
        expected = make_pipeline(StandardScaler(), RidgeClassifier(alpha)).fit(X, y)
        np.testing.assert_allclose(X @ found.weights + found.bias, expected.decision_function(X), atol=1e-4)
        assert found.penalty == alpha


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("standardise", [False, True])
def test_one_pass_gives_linear_discriminants(gathered, shrinkage, standardise):
    X, y = gathered.rows("b", (0, 1))
    found = lda(gathered.moments.of("b", (0, 1)), shrinkage, standardise=standardise)
    steps = [StandardScaler()] if standardise else []
    expected = make_pipeline(*steps, LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)).fit(X, y)
    np.testing.assert_allclose(X @ found.weights + found.bias, expected.decision_function(X), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("common", [1.0, 30.0])
def test_an_ill_conditioned_covariance_costs_no_more_than_float64_does(common, monkeypatch):
    """Features that share all but a thousandth: the condition of their correlations is above 1e6."""
    monkeypatch.setattr(second_moments, "TILE_ROWS", 700)
    rng = np.random.default_rng(3)
    X = (common + rng.normal(size=(5000, 1)) + 2e-3 * rng.normal(size=(5000, 6))).astype(np.float32)
    wide = X.astype(np.float64)
    y = (wide[:, 0] - wide[:, 1] + 2e-3 * rng.normal(size=5000) > 0.003).astype(np.int8)
    scaled = StandardScaler().fit_transform(wide)
    assert np.linalg.cond(np.corrcoef(wide.T)) > 1e6
    moments = SecondMoments(wide.mean(axis=0), 1, ["a"])
    for part in np.split(np.arange(5000), 5):
        moments.add(X[part].reshape(1, -1, 6), {"a": y[part].reshape(1, -1)}, np.zeros(1, np.int64))
    (found,) = ridge_path(moments.of("a", (0,)), [1e-4])
    expected = RidgeClassifier(1e-4, solver="svd").fit(scaled, y).coef_.reshape(-1) / wide.std(axis=0)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-6)
    discriminant = lda(moments.of("a", (0,)), standardise=False)
    expected = LinearDiscriminantAnalysis(solver="lsqr").fit(wide, y).coef_[0]
    np.testing.assert_allclose(discriminant.weights, expected, rtol=1e-6)


def test_products_are_kept_for_each_set_of_schemes_that_know_a_patch_not_for_each_pattern(gathered, monkeypatch):
    assert sorted(gathered.moments._products) == [(group, schemes) for group in range(3) for schemes in (1, 3)]
    assert {len(each) for each in gathered.moments._products.values()} == {WIDTH * (WIDTH + 1) // 2}
    monkeypatch.setattr(second_moments, "MAX_BYTES", 8 * 36 * 5)
    moments = SecondMoments(np.zeros(WIDTH), 3, ["a", "b"])
    with pytest.raises(ProbeError, match="8 features in 3 groups need 1728 bytes or more, above 1440; take") as caught:
        moments.add(gathered.embeddings, gathered.targets, gathered.groups)
    assert "\n" not in str(caught.value)


def test_adding_a_tile_makes_no_matrix():
    width = 512
    rng = np.random.default_rng(4)
    moments = SecondMoments(np.zeros(width), 1, ["a"])
    windows, targets, groups = rng.normal(size=(1, 64, width)), {"a": np.ones((1, 64), np.int8)}, np.zeros(1, np.int64)
    moments.add(windows, targets, groups)
    tracemalloc.start()
    moments.add(windows, targets, groups)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 8 * width * width / 2


def test_a_constant_feature_gets_no_weight(gathered):
    embeddings = gathered.embeddings.copy()
    embeddings[..., 3] = 2.5
    moments = SecondMoments(np.full(WIDTH, 2.0), 3, ["a"])
    moments.add(embeddings, {"a": gathered.targets["a"]}, gathered.groups)
    assert ridge_path(moments.of("a", (0,)), [0.0])[0].weights[3] == 0
    assert lda(moments.of("a", (0,)), 0.1).weights[3] == 0


def test_second_moments_refuse_what_they_cannot_hold(gathered):
    with pytest.raises(ProbeError, match="1 to 20 folds"):
        SecondMoments(np.zeros(3), 21, ["a"])
    with pytest.raises(ProbeError, match="no scheme 'c'; they hold a, b"):
        gathered.moments.of("c", (0,))
    with pytest.raises(ProbeError, match="neither class patch"):
        gathered.moments.of("a", ())
    moments = SecondMoments(np.zeros(WIDTH), 2, ["a"])
    with pytest.raises(ProbeError, match="a window has group 2"):
        moments.add(gathered.embeddings, gathered.targets, gathered.groups)
    with pytest.raises(ProbeError, match="no targets of that shape"):
        moments.add(gathered.embeddings, {}, gathered.groups * 0)
    moments.add(gathered.embeddings, {"a": np.minimum(gathered.targets["a"], 0)}, gathered.groups * 0)
    with pytest.raises(ProbeError, match="no positive patch under scheme 'a'"):
        moments.of("a", (0,))
    broken = gathered.embeddings.copy()
    broken[0] = np.nan
    with pytest.raises(ProbeError, match="not finite"):
        moments.add(broken, gathered.targets, gathered.groups * 0)
