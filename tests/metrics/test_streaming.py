import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score

from dlprobe.errors import MetricError
from dlprobe.metrics import (
    LogitHistogram,
    ap_bounds,
    auc_bounds,
    best_f1,
    best_f1_bounds,
    best_f1_thresholds,
    count,
    f1,
    fit_temperature,
)
from dlprobe.metrics.streaming import logit_codes


def histogram(logits, truth):
    counted = LogitHistogram(1)
    counted.add(logits, truth)
    return counted


def holds(bounds, value):
    return bounds.low[0] <= value <= bounds.high[0]


def check(logits, truth):
    counted = histogram(logits, truth)
    assert holds(auc_bounds(counted), roc_auc_score(truth, logits))
    assert holds(ap_bounds(counted), average_precision_score(truth, logits))
    assert holds(best_f1_bounds(counted), best_f1(logits, truth).f1)


def smooth(rng, n):
    truth = rng.random(n) < 0.2
    return (rng.normal(size=n) * 4 + 3 * truth).astype(np.float32), truth


def saturated(rng, n):
    """Logits under Dice: nearly all far out, and so close together that float16 cannot tell many of them."""
    truth = rng.random(n) < 0.2
    return (np.where(truth ^ (rng.random(n) < 0.05), 300.0, -300.0) + 0.2 * rng.normal(size=n)).astype(
        np.float32
    ), truth


def tied(rng, n):
    logits, truth = smooth(rng, n)
    return np.round(logits), truth


def one_bin(rng, n):
    truth = rng.random(n) < 0.3
    return 1000.0 + 0.1 * rng.random(n), truth


def sigmoid(rng, n):
    logits, truth = saturated(rng, n)
    return 1 / (1 + np.exp(-logits.astype(np.float64))), truth


def signed_zeros(rng, n):
    truth = rng.random(n) < 0.3
    return rng.choice(np.array([-0.0, 0.0, 1e-9, -1e-9, 1e-7]), n), truth


def huge(rng, n):
    truth = rng.random(n) < 0.3
    return rng.choice(np.array([-np.float64(1e300), -70_000, 65_504, 65_519, 65_520, 1e300]), n), truth


@pytest.mark.parametrize("kind", [smooth, saturated, tied, one_bin, sigmoid, signed_zeros, huge])
@pytest.mark.parametrize("n", [2, 3, 10, 300, 5000])
def test_bounds_hold_the_exact_value(kind, n):
    for seed in range(6):
        logits, truth = kind(np.random.default_rng([seed, n]), n)
        truth[:2] = True, False
        check(logits, truth)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_bounds_hold_the_exact_value_of_tiny_inputs(data):
    n = data.draw(st.integers(2, 9))
    close = st.sampled_from([0.0, -0.0, 1.0, 1.0001, 1.0002, 1.0004, 1.001, 7.0, 7.001, -7.0])
    logits = data.draw(hnp.arrays(np.float64, n, elements=close))
    truth = data.draw(hnp.arrays(np.bool_, n))
    truth[:2] = True, False
    check(logits, truth)


def test_logits_that_float16_tells_apart_have_bounds_that_meet():
    rng = np.random.default_rng(0)
    logits = rng.permutation(np.arange(-2000, 2000)).astype(np.float16)
    truth = rng.random(4000) < 0.3
    counted = histogram(logits, truth)
    exact = (roc_auc_score(truth, logits), average_precision_score(truth, logits), best_f1(logits, truth).f1)
    for bounds, value in zip((auc_bounds(counted), ap_bounds(counted), best_f1_bounds(counted)), exact, strict=True):
        assert bounds.low[0] == pytest.approx(value, abs=1e-9)
        assert bounds.high[0] == pytest.approx(value, abs=1e-9)


def test_bounds_are_narrow_for_a_hundred_thousand_logits():
    counted = histogram(*smooth(np.random.default_rng(1), 100_000))
    for bounds in (auc_bounds(counted), ap_bounds(counted), best_f1_bounds(counted)):
        assert bounds.high[0] - bounds.low[0] < 5e-4


def test_bounds_of_one_bin_are_reached_by_the_worst_and_the_best_order():
    ranks = 1000 + np.arange(5) * 1e-3
    assert np.unique(logit_codes(ranks)).size == 1
    for truth in np.array([[1, 1, 0, 0, 0], [0, 0, 0, 1, 1]], bool):
        counted = histogram(ranks, truth)
        end = 1 if truth[-1] else 0
        assert auc_bounds(counted)[end][0] == pytest.approx(roc_auc_score(truth, ranks), abs=1e-9)
    assert ap_bounds(counted).high[0] == pytest.approx(1.0)
    worst = np.array([1, 1, 0, 0, 0], bool)
    assert ap_bounds(counted).low[0] == pytest.approx(average_precision_score(worst, ranks), abs=1e-9)


def test_codes_rise_with_the_logit_and_equal_logits_share_one():
    values = np.sort(np.concatenate([np.random.default_rng(0).normal(size=5000) * 10.0**p for p in range(-9, 9, 2)]))
    codes = logit_codes(np.concatenate(([-np.inf], values, [np.inf]))).astype(int)
    assert (np.diff(codes) >= 0).all()
    assert logit_codes(-0.0) == logit_codes(0.0)
    assert logit_codes(-1e-12) < logit_codes(0.0)


def test_the_best_threshold_reaches_the_lower_bound():
    for kind in (smooth, saturated, tied):
        logits, truth = kind(np.random.default_rng(5), 4000)
        counted = histogram(logits, truth)
        threshold = best_f1_thresholds(counted)[0]
        reached = count(logits >= threshold, truth)
        assert f1(reached) == pytest.approx(best_f1_bounds(counted).low[0], abs=1e-9)
        assert counted.counts_at(threshold) == [reached]


@pytest.mark.parametrize("limit", [0.5, 13.0, 250.0, 65_504.0])
def test_the_best_threshold_within_limits_reaches_what_no_other_one_beats(limit):
    for kind in (smooth, saturated, tied, one_bin, huge):
        logits, truth = kind(np.random.default_rng(7), 3000)
        logits = np.clip(logits, -1e6, 1e6).astype(np.float32)
        counted = histogram(logits, truth)
        threshold = best_f1_thresholds(counted, limit)[0]
        assert -limit <= threshold <= limit
        reached = count(logits >= np.float32(threshold), truth)
        assert counted.counts_at(threshold) == [reached]
        tried = np.append(np.linspace(-limit, limit, 801), logits[np.abs(logits) <= limit])
        best = max(f1(count(logits >= np.float32(each), truth)) for each in tried[:: max(1, len(tried) // 400)])
        coarse = best_f1_bounds(counted).high[0] - best_f1_bounds(counted).low[0]
        assert best - coarse - 1e-9 <= f1(reached)


def test_a_temperature_of_counted_logits_is_that_of_the_logits():
    rng = np.random.default_rng(9)
    truth = rng.random(20_000) < 0.3
    logits = (7 * (rng.normal(size=20_000) + truth) - 3).astype(np.float32)
    values, labels, counts = histogram(logits, truth).points()
    assert len(values) < 20_000
    assert counts.sum() == 20_000
    assert counts[labels].sum() == truth.sum()
    assert fit_temperature(values, labels, counts).value == pytest.approx(
        fit_temperature(logits, truth).value, rel=1e-3
    )
    with pytest.raises(MetricError, match="do not belong together"):
        fit_temperature(values, labels, counts[1:])


def test_limits_are_each_heads_own():
    logits, truth = saturated(np.random.default_rng(8), 2000)
    counted = LogitHistogram(2)
    counted.add(np.stack([logits, logits], axis=1), truth)
    near, far = best_f1_thresholds(counted, [13.0, 65_504.0])
    assert near <= 13
    assert far == best_f1_thresholds(histogram(logits, truth))[0]


def test_least_logits_of_all_codes_fall_into_their_bin_and_what_precedes_does_not():
    from dlprobe.metrics.streaming import _least_logit

    codes = np.unique(
        np.concatenate([np.arange(1024, 64512, 97), logit_codes([-np.inf, -65504, -0.0, 0, 65504, np.inf])])
    )
    codes = np.append(codes, logit_codes(-1e-9))
    least = np.array([_least_logit(int(code)) for code in codes], np.float32)
    assert (logit_codes(least) == codes).all()
    inside = np.isfinite(least)
    assert (logit_codes(np.nextafter(least[inside], np.float32(-np.inf))) < codes[inside]).all()


def test_counts_at_zero_are_those_of_the_map_at_one_half():
    logits, truth = smooth(np.random.default_rng(3), 1000)
    logits[:3] = 0.0, -0.0, -1e-20
    assert histogram(logits, truth).counts_at() == [count(logits >= 0, truth)]


@pytest.mark.parametrize("parts", [1, 3, 10])
def test_blocks_and_workers_merge_to_the_whole(parts):
    logits, truth = smooth(np.random.default_rng(2), 1000)
    whole = histogram(logits, truth)
    merged = LogitHistogram(1)
    for some_logits, some_truth in zip(np.array_split(logits, parts), np.array_split(truth, parts), strict=True):
        merged = merged.merge(histogram(some_logits, some_truth))
    np.testing.assert_array_equal(merged.counts, whole.counts)


def test_many_heads_with_their_own_truth_and_ignored_rows():
    rng = np.random.default_rng(4)
    logits, truth, ignore = rng.normal(size=(500, 3)), rng.random((500, 3)) < 0.4, rng.random((500, 3)) < 0.2
    counted = LogitHistogram(3)
    counted.add(logits, truth, ignore)
    for head in range(3):
        kept = ~ignore[:, head]
        exact = roc_auc_score(truth[kept, head], logits[kept, head])
        assert auc_bounds(counted).low[head] <= exact <= auc_bounds(counted).high[head]
    shared = LogitHistogram(3)
    shared.add(logits, truth[:, 0], ignore[:, 0])
    np.testing.assert_array_equal(shared.counts[0], counted.counts[0])


def test_a_missing_class_gives_nan():
    only = histogram([1.0, 2.0], [False, False])
    for bounds in (auc_bounds(only), ap_bounds(only), best_f1_bounds(only)):
        assert np.isnan(bounds).all()
    assert np.isnan(best_f1_thresholds(only)).all()
    assert np.isnan(auc_bounds(histogram([1.0], [True]))).all()
    assert np.isnan(ap_bounds(LogitHistogram(2))).all()


def test_more_rows_than_32_bits_can_count_get_more_room():
    logits, truth = smooth(np.random.default_rng(2), 100)
    half = histogram(logits, truth)
    half._rows = 2**32 - 150
    half.counts = half.counts * np.uint32(40_000_000)
    merged = half.merge(half)
    assert merged.counts.dtype == np.uint64
    np.testing.assert_array_equal(merged.counts, half.counts.astype(np.uint64) * 2)


def test_what_cannot_be_counted_is_refused_in_words():
    counted = LogitHistogram(2)
    with pytest.raises(MetricError, match="1 logits are nan"):
        counted.add([[0.0, np.nan]], [True])
    with pytest.raises(MetricError, match="counts 2 heads"):
        counted.add([[0.0]], [True])
    with pytest.raises(MetricError, match="one row of truth a row"):
        counted.add([[0.0, 1.0]], [True, False])
    with pytest.raises(MetricError, match="cannot be merged"):
        counted.merge(LogitHistogram(3))
