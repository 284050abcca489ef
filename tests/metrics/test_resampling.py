import numpy as np
import pytest
from scipy import stats

from dlprobe.errors import MetricError
from dlprobe.metrics import bootstrap_mean, jackknife_interval, median_interval, roc_auc, seed_spread

NAMES = [f"s{source:02}" for source in range(12)]


def test_jackknife_values_of_a_mean_are_the_values():
    values = np.random.default_rng(0).random(12)
    found = jackknife_interval(lambda kept: {"mean": values[kept].mean()}, NAMES)["mean"]
    assert found == pytest.approx(bootstrap_mean(values), rel=1e-9)


def test_the_unit_is_the_source():
    values = np.random.default_rng(0).random(12)
    twice, sources = np.repeat(values, 2), np.repeat(NAMES, 2)
    found = jackknife_interval(lambda kept: {"mean": twice[kept].mean()}, sources)["mean"]
    assert found == pytest.approx(bootstrap_mean(values), rel=1e-9)


def test_a_statistic_that_fails_without_one_source_has_no_interval():
    values, sources = np.ones(10), np.arange(10).astype(str)
    found = jackknife_interval(lambda kept: {"x": values[kept].mean() if 0 in kept else np.nan}, sources)["x"]
    assert found.estimate == 1.0
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize("n", [10, 20])
def test_intervals_of_an_image_auc_cover(n):
    """Each source gives a fake and an authentic score that share its level; coverage is a little above nominal."""
    rng, truth, covered = np.random.default_rng(n), np.repeat([True, False], n), 0
    exact = stats.norm.cdf(1 / np.sqrt(2 * (1 + 0.7**2)))
    sources = np.tile(np.arange(n), 2).astype(str)
    for seed in range(200):
        level = 0.7 * rng.normal(size=n)
        scores = np.concatenate([1 + level + rng.normal(size=n), level + rng.normal(size=n)])
        found = jackknife_interval(
            lambda kept, scores=scores: {"auc": roc_auc(scores[kept], truth[kept])}, sources, resamples=399, seed=seed
        )["auc"]
        covered += found.low <= exact <= found.high
    assert 0.92 <= covered / 200 <= 1.0


@pytest.mark.parametrize("n", [10, 20, 50])
@pytest.mark.parametrize("images", [1, 4])
def test_intervals_of_a_median_cover(n, images):
    rng, sources, covered = np.random.default_rng([n, images]), np.repeat(np.arange(n), images).astype(str), 0
    for _ in range(600):
        level = np.repeat(rng.normal(size=n), images)
        found = median_interval(np.exp(level + rng.normal(size=n * images)), sources)
        covered += found.low <= 1.0 <= found.high
    assert 0.93 <= covered / 600 <= 0.995


def test_median_interval_of_one_image_a_source_is_that_of_order_statistics():
    values = np.random.default_rng(3).random(20)
    found = median_interval(values, np.arange(20).astype(str))
    low, high = stats.quantile_test(values).confidence_interval(0.95)
    assert found.estimate == np.median(values)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_median_interval_drops_nan_and_needs_sources():
    found = median_interval([1.0, np.nan, 3.0], ["a", "b", "c"])
    assert (found.estimate, found.n, found.dropped) == (2.0, 2, 1)
    assert np.isnan(found.low)
    assert np.isnan(median_interval([np.nan], ["a"]).estimate)


def test_seed_and_sampling_spread_are_told_apart():
    rng = np.random.default_rng(1)
    sources, seeds = rng.normal(0, 0.3, size=400), rng.normal(0, 0.05, size=300)
    found = seed_spread(0.6 + seeds[:, None] + sources)
    assert found.seed_sd == pytest.approx(seeds.std(ddof=1))
    assert found.sampling_error == pytest.approx(stats.sem(sources))
    assert found.estimate == pytest.approx(0.6 + seeds.mean() + sources.mean())


def test_seed_spread_leaves_out_incomplete_sources_and_refuses_one_seed():
    assert seed_spread([[1.0, 2.0, np.nan], [1.0, 4.0, 5.0]]).sources == 2
    with pytest.raises(MetricError, match="fit with more seeds"):
        seed_spread([[1.0, 2.0, 3.0]])
