"""Each statistic against scikit-learn, SciPy, a float64 reference, or a case whose answer is known."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis as scipy_mahalanobis
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression, RidgeClassifier
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from dlprobe.data import SCHEMES
from dlprobe.errors import MetricError
from dlprobe.separability.kernels import KernelState, on_common_grid, overlap
from dlprobe.separability.results import Replicates, paired_differences
from dlprobe.separability.states import Gaussian, MomentsState
from dlprobe.separability.statistics.directions import (
    Direction,
    angle_deg,
    logit_correlation,
    ridge_direction,
    total_covariance,
)
from dlprobe.separability.statistics.gaussians import (
    bhattacharyya,
    cohens_d,
    discriminant,
    effective_rank,
    fisher_ratio,
    mahalanobis,
    pair_of,
    shrunk,
)
from dlprobe.separability.statistics.neighbours import allowed_pairs, distances, knn_purity, silhouette, two_nn

RNG = np.random.default_rng(1)
WIDTH = 6
MIX = RNG.normal(size=(WIDTH, WIDTH)) * 10.0 ** np.arange(-3, 3)
FIRST = RNG.normal(size=(400, WIDTH)) @ MIX + 5
SECOND = (RNG.normal(size=(150, WIDTH)) * 1.4 + 0.6) @ MIX + 5
BOTH, Y = np.concatenate([FIRST, SECOND]), np.repeat([0, 1], [400, 150])


def test_two_features_that_are_both_never_wrong_are_not_equal_for_certain():
    def made(features):
        row = {"features": features, "statistic": "lda_accuracy", "classes": "a / b", "value": 1.0}
        return Replicates({**row, "n_sources": 8, "n_patches": 800}, np.ones(8), 7)

    [row] = paired_differences([made("one"), made("two")], [("one", "two")], 8)
    assert row["value"] == 0
    assert row["low"] < -0.2
    assert row["high"] > 0.2


def test_a_difference_is_that_of_the_second_and_its_interval_of_both_as_skewed_as_the_larger():
    spread = np.array([-0.4, -0.2, -0.1, 0, 0.05, 0.1, 0.2, 0.35])

    def made(features, value):
        row = {"features": features, "statistic": "total_variance", "classes": "a", "value": value}
        return Replicates({**row, "n_sources": 16, "n_patches": 800}, value * np.exp(spread / 4), 7)

    [row] = paired_differences([made("one", 0.5), made("two", 10.0)], [("one", "two")], 8)
    assert row["features"] == "two - one"
    assert row["value"] == 9.5
    assert row["reason"] == ""
    assert 0 < row["low"] < 9.5 < row["high"]
    assert row["high"] - 9.5 > 1.3 * (9.5 - row["low"])


def gaussian(rows):
    return Gaussian(len(rows), rows.mean(axis=0), np.cov(rows.T, bias=True))


PAIR = pair_of(gaussian(FIRST), gaussian(SECOND))
#: The scales of the module's docstring, computed from rows: both classes weigh the same.
SCALE = np.sqrt((FIRST.var(0) + SECOND.var(0)) / 2 + (SECOND.mean(0) - FIRST.mean(0)) ** 2 / 4)


def test_mahalanobis_is_scipys_and_does_not_depend_on_scales():
    inverse = np.linalg.inv((np.cov(FIRST.T, bias=True) + np.cov(SECOND.T, bias=True)) / 2)
    expected = scipy_mahalanobis(FIRST.mean(0), SECOND.mean(0), inverse)
    assert mahalanobis(PAIR) == pytest.approx(expected, rel=1e-9)
    shrunken = (shrunk_covariance(np.cov((FIRST / SCALE).T, bias=True), 0.3)) / 2
    shrunken += shrunk_covariance(np.cov((SECOND / SCALE).T, bias=True), 0.3) / 2
    expected = scipy_mahalanobis(FIRST.mean(0) / SCALE, SECOND.mean(0) / SCALE, np.linalg.inv(shrunken))
    assert mahalanobis(PAIR, 0.3) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shrinkage", [0.0, 0.2])
def test_the_discriminant_is_scikit_learns_with_equal_priors(shrinkage):
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=[0.5, 0.5])
    reference.fit(BOTH / SCALE, Y)
    found = discriminant(PAIR, shrinkage)
    np.testing.assert_allclose(found.weights, reference.coef_[0] / SCALE, rtol=1e-6)
    assert found.bias == pytest.approx(reference.intercept_[0], rel=1e-6)


def test_bhattacharyya_of_normal_densities_on_a_line_is_its_integral():
    x = np.linspace(-40, 60, 400_001)
    a, b = (np.exp(-((x - m) ** 2) / (2 * s**2)) / (s * np.sqrt(2 * np.pi)) for m, s in ((1.0, 2.0), (4.0, 5.0)))
    expected = -np.log(np.trapezoid(np.sqrt(a * b), x))
    pair = pair_of(Gaussian(9, np.array([1.0]), np.array([[4.0]])), Gaussian(9, np.array([4.0]), np.array([[25.0]])))
    assert bhattacharyya(pair) == pytest.approx(expected, rel=1e-9)


def test_bhattacharyya_in_several_dimensions_follows_the_formula():
    one, two = np.cov((FIRST / SCALE).T, bias=True), np.cov((SECOND / SCALE).T, bias=True)
    one, two = shrunk_covariance(one, 0.1), shrunk_covariance(two, 0.1)
    mean, shift = (one + two) / 2, (SECOND.mean(0) - FIRST.mean(0)) / SCALE
    logs = [np.linalg.slogdet(matrix)[1] for matrix in (mean, one, two)]
    expected = shift @ np.linalg.solve(mean, shift) / 8 + (logs[0] - (logs[1] + logs[2]) / 2) / 2
    assert bhattacharyya(PAIR, 0.1) == pytest.approx(expected, rel=1e-9)
    assert bhattacharyya(pair_of(gaussian(FIRST), gaussian(FIRST))) == pytest.approx(0, abs=1e-12)


def test_the_fisher_ratio_is_between_over_within_scatter():
    rows = BOTH / SCALE
    means = np.stack([rows[k == Y].mean(0) for k in (0, 1)])
    between = sum(np.sum((m - means.mean(0)) ** 2) for m in means) / 2
    within = sum(np.sum((rows[k == Y] - means[k]) ** 2) / np.sum(k == Y) for k in (0, 1)) / 2
    assert fisher_ratio(PAIR) == pytest.approx(between / within, rel=1e-9)


def test_cohens_d_of_normal_classes_and_of_constants():
    first, second = FIRST.copy(), SECOND.copy()
    first[:, 2], second[:, 2] = 3.0, 3.0
    found = cohens_d(gaussian(first), gaussian(second))
    expected = (second.mean(0) - first.mean(0))[0] / np.sqrt((first[:, 0].var() + second[:, 0].var()) / 2)
    assert found[0] == pytest.approx(expected)
    assert np.isnan(found[2])


def test_shrinking_is_scikit_learns():
    covariance = np.cov(FIRST.T)
    np.testing.assert_allclose(shrunk(covariance, 0.25), shrunk_covariance(covariance, 0.25), rtol=1e-12)


def test_a_constant_feature_changes_nothing_and_a_singular_covariance_is_said():
    with_constant = [np.column_stack([rows, np.full(len(rows), 7.0)]) for rows in (FIRST, SECOND)]
    pair = pair_of(*map(gaussian, with_constant))
    assert mahalanobis(pair) == pytest.approx(mahalanobis(PAIR), rel=1e-9)
    assert discriminant(pair).weights[-1] == 0
    doubled = pair_of(*(gaussian(np.column_stack([rows, rows[:, 0]])) for rows in (FIRST, SECOND)))
    with pytest.raises(MetricError, match="singular"):
        mahalanobis(doubled._replace(first=doubled.first * 0, second=doubled.second * 0))
    with pytest.raises(MetricError, match="constant"):
        pair_of(*(gaussian(np.full((9, 3), 2.0)) for _ in range(2)))


def test_the_effective_rank_counts_equal_eigenvalues():
    assert effective_rank(np.diag([2.0, 2, 2, 0, 0])) == pytest.approx(3)
    values = np.linalg.eigvalsh(np.cov(FIRST.T))
    shares = values / values.sum()
    assert effective_rank(np.cov(FIRST.T)) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert np.isnan(effective_rank(np.zeros((3, 3))))


def hand_two_nn(rows, discard=0.1):
    """As scikit-dimension computes it."""
    r = NearestNeighbors(n_neighbors=3).fit(rows).kneighbors(rows)[0]
    mu = np.sort(r[:, 2] / r[:, 1])
    kept = int(len(mu) * (1 - discard))
    y = -np.log(1 - np.arange(kept) / len(mu))
    return LinearRegression(fit_intercept=False).fit(np.log(mu[:kept])[:, None], y).coef_[0]


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_two_nn_finds_the_dimension_of_a_bent_manifold(dimension):
    rng = np.random.default_rng(dimension)
    flat = rng.uniform(-1, 1, (1500, dimension))
    bent = np.concatenate([flat, np.sin(2 * flat), np.cos(flat)], axis=1) @ rng.normal(size=(3 * dimension, 12))
    matrix = distances(bent)
    found = two_nn(matrix, allowed_pairs(np.arange(1500), other_sources=False))
    assert found == pytest.approx(hand_two_nn(bent), rel=1e-9)
    assert found == pytest.approx(dimension, rel=0.15)


def test_two_nn_leaves_out_what_is_doubled_and_needs_ten_patches():
    rows = RNG.uniform(size=(300, 2))
    doubled = np.concatenate([rows, rows[:60]])
    allowed = allowed_pairs(np.arange(360), other_sources=False)
    assert np.isfinite(two_nn(distances(doubled), allowed))
    assert np.isnan(two_nn(distances(rows[:9]), allowed[:9, :9]))
    assert np.isnan(two_nn(np.zeros((30, 30)), allowed[:30, :30]))


@pytest.mark.parametrize("kinds", [2, 3])
def test_the_silhouette_is_scikit_learns(kinds):
    classes = RNG.integers(0, kinds, 200)
    classes[0] = kinds  # a class of one
    rows = RNG.normal(size=(200, 4)) + classes[:, None]
    found = silhouette(distances(rows), classes, allowed_pairs(np.arange(200), other_sources=False))
    assert found == pytest.approx(silhouette_score(rows, classes), rel=1e-9)


def test_the_silhouette_of_other_sources_leaves_the_own_source_out():
    sources, classes = np.arange(60) % 6, np.arange(60) // 30
    rows = RNG.normal(size=(60, 3)) + classes[:, None] + 8 * sources[:, None]
    matrix, values = distances(rows), []
    for i in range(60):
        others = sources != sources[i]
        own, other = (matrix[i, others & (classes == kind)].mean() for kind in (classes[i], 1 - classes[i]))
        values.append((other - own) / max(other, own))
    found = silhouette(matrix, classes, allowed_pairs(sources, other_sources=True))
    assert found == pytest.approx(np.mean(values))
    assert np.isnan(silhouette(matrix, np.zeros(60, int), allowed_pairs(sources, other_sources=True)))


def test_purity_is_the_share_of_nearest_neighbours_of_the_own_class():
    classes = np.repeat([0, 1], [80, 40])
    rows = RNG.normal(size=(120, 3)) + 0.8 * classes[:, None]
    nearest = NearestNeighbors(n_neighbors=6).fit(rows).kneighbors(rows, return_distance=False)[:, 1:]
    same = (classes[nearest] == classes[:, None]).mean(axis=1)
    expected = (same[:80].mean() + same[80:].mean()) / 2
    everyone = allowed_pairs(np.arange(120), other_sources=False)
    assert knn_purity(distances(rows), classes, everyone, 5) == pytest.approx(expected)
    assert np.isnan(knn_purity(distances(rows), classes, everyone, 120))


def test_twins_of_one_source_make_purity_look_perfect_unless_they_are_left_out():
    photographs = RNG.normal(size=(100, 5))
    rows = np.repeat(photographs, 3, axis=0) + 1e-3 * RNG.normal(size=(300, 5))
    sources = np.repeat(np.arange(100), 3)
    classes = np.repeat(RNG.permutation(np.arange(100) % 2), 3)
    matrix = distances(rows)
    assert knn_purity(matrix, classes, allowed_pairs(sources, other_sources=False), 2) == 1
    assert knn_purity(matrix, classes, allowed_pairs(sources, other_sources=True), 2) == pytest.approx(0.5, abs=0.1)


def hand_cka(x, y):
    """As Kornblith et al. define it: from centred kernels."""
    centring = np.eye(len(x)) - 1 / len(x)
    k, m = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    return np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))


def kernel(x, y, parts=1, origin=0.0):
    groups = np.arange(len(x)) % 3
    state = KernelState((np.full(x.shape[1], origin), np.full(y.shape[1], origin)), 3)
    for part in np.array_split(np.arange(len(x)), parts):
        one = KernelState((np.full(x.shape[1], origin), np.full(y.shape[1], origin)), 3)
        state.merge(one.update(x[part], y[part], groups[part]))
    return state


def test_cka_is_that_of_the_centred_kernels_of_any_groups():
    x = RNG.normal(size=(90, 4)) + 3
    y = np.column_stack([x[:, :2] ** 2, RNG.normal(size=(90, 3))])
    assert kernel(x, y).cka(range(3)) == pytest.approx(hand_cka(x, y), rel=1e-9)
    assert kernel(x, y, parts=7, origin=2.0).cka(range(3)) == pytest.approx(hand_cka(x, y), rel=1e-9)
    kept = np.arange(90) % 3 != 1
    assert kernel(x, y).cka([0, 2]) == pytest.approx(hand_cka(x[kept], y[kept]), rel=1e-9)
    assert kernel(x, y).count([0, 2]) == 60


def test_cka_is_one_for_a_rotated_copy_and_undefined_for_a_constant():
    x = RNG.normal(size=(90, 4))
    turned = 3 * x @ np.linalg.qr(RNG.normal(size=(4, 4)))[0] + 1
    assert kernel(x, turned).cka(range(3)) == pytest.approx(1)
    assert np.isnan(kernel(x, np.ones((90, 2)), origin=1.0).cka(range(3)))


def test_streamed_kernels_of_whole_numbers_are_exact():
    x, y = (RNG.integers(-9, 9, (90, 4)).astype(float) for _ in range(2))
    assert kernel(x, y, parts=11).cka(range(3)) == kernel(x, y).cka(range(3))


@pytest.mark.parametrize(("patches", "cells"), [(6, 4), (9, 6), (4, 2), (5, 5), (7, 3)])
def test_the_common_grid_is_the_mean_over_pixels(patches, cells):
    side = patches * cells
    embeddings = RNG.normal(size=(2, patches, patches, 3)).astype(np.float32)
    pixels = embeddings.repeat(cells, axis=1).repeat(cells, axis=2).astype(np.float64)
    expected = pixels.reshape(2, cells, side // cells, cells, side // cells, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(on_common_grid(embeddings, cells), expected, atol=1e-6)
    np.testing.assert_allclose(overlap(cells, patches).sum(axis=1), 1)


def scheme_state():
    rows = RNG.normal(size=(900, 4)) + np.repeat([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]], 300, axis=0) + 5
    classes = np.repeat([0, 1, 2], 300)
    return rows, classes, MomentsState(np.full(4, 5.0), 1).update(rows, classes, np.zeros(900, int))


@pytest.mark.parametrize("scheme", ["autoencoded-pristine", "autoencoded-fake", "autoencoded-ignored"])
def test_directions_are_scikit_learns_ridge_classifiers(scheme):
    rows, classes, state = scheme_state()
    found = ridge_direction(state, scheme, SCHEMES[scheme], [0], 0.05)
    positive = np.isin(classes, [k for k, kind in enumerate((0, 1, 2)) if kind in SCHEMES[scheme].positive])
    known = np.isin(classes, [*SCHEMES[scheme].positive, *SCHEMES[scheme].negative])
    scale = rows[known].std(axis=0)
    ridge = RidgeClassifier(alpha=0.05 * known.sum()).fit(rows[known] / scale, positive[known])
    np.testing.assert_allclose(found.weights, np.ravel(ridge.coef_) / scale, rtol=1e-4, atol=1e-6)


def test_angles_and_correlations_are_those_of_scaled_weights_and_of_logits():
    rows, _, state = scheme_state()
    one, other = (Direction(name, RNG.normal(size=4)) for name in "ab")
    covariance = total_covariance(state, [0])
    np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True), rtol=1e-9, atol=1e-12)
    u, v = (d.weights * rows.std(axis=0) for d in (one, other))
    expected = np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))
    assert angle_deg(one, other, covariance) == pytest.approx(expected)
    expected = np.corrcoef(rows @ one.weights, rows @ other.weights)[0, 1]
    assert logit_correlation(one, other, covariance) == pytest.approx(expected)
    assert angle_deg(one, one, covariance) == 0
    assert np.isnan(angle_deg(one, Direction("0", np.zeros(4)), covariance))
