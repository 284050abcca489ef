"""Both promises, in simulation: authentic sources have a level of their own that their images share."""

import numpy as np
import pytest

from dlprobe.errors import MetricError
from dlprobe.metrics import (
    area_at,
    conformal_image_threshold,
    risk_controlled_threshold,
    sources_needed,
    worst_by_source,
)

LEVELS = np.linspace(0, 1.01, 102)


def image_scores(rng, sources, images):
    return (0.8 * rng.normal(size=(sources, 1)) + 0.6 * rng.normal(size=(sources, images))).astype(np.float32)


def areas(rng, sources):
    """False areas of maps whose scores are uniform up to a level of the source: falling, from 1 to 0."""
    top = rng.beta(2, 4, size=(sources, 1))
    return np.clip(1 - LEVELS / np.maximum(top, 1e-9), 0, 1)


@pytest.mark.parametrize(("n", "alpha"), [(9, 0.1), (25, 0.1), (40, 0.05)])
def test_a_new_source_is_flagged_at_most_as_often_as_promised(n, alpha):
    rng, flagged = np.random.default_rng(n), []
    for _ in range(1500):
        calibration = image_scores(rng, n, 3)
        found = conformal_image_threshold(calibration.max(axis=1), alpha)
        flagged.append((image_scores(rng, 60, 3).max(axis=1) >= found.threshold).mean())
    exact = np.floor((n + 1) * alpha + 1e-9) / (n + 1)
    assert np.mean(flagged) <= alpha + 0.006
    assert np.mean(flagged) == pytest.approx(exact, abs=0.008)


def test_pooling_images_of_a_source_breaks_the_promise_that_its_maximum_keeps():
    rng, pooled, by_source = np.random.default_rng(1), [], []
    for _ in range(1000):
        calibration, new = image_scores(rng, 20, 8), image_scores(rng, 60, 8).max(axis=1)
        pooled.append((new >= conformal_image_threshold(calibration.ravel(), 0.1).threshold).mean())
        by_source.append((new >= conformal_image_threshold(calibration.max(axis=1), 0.1).threshold).mean())
    assert np.mean(by_source) <= 0.106
    assert np.mean(pooled) > 0.2


def test_selection_among_100_heads_is_harmless_only_on_sources_of_its_own():
    """The head that looks best has thresholds that are too low on the sources that made it look best."""
    rng, own, same = np.random.default_rng(2), [], []
    for _ in range(500):
        chosen_on, fresh, new = rng.normal(size=(3, 100, 30))
        best = int(np.argmin(np.sort(chosen_on, axis=1)[:, -3]))
        same.append((new[best] >= conformal_image_threshold(chosen_on[best], 0.1).threshold).mean())
        own.append((new[best] >= conformal_image_threshold(fresh[best], 0.1).threshold).mean())
    assert np.mean(own) <= 0.106
    assert np.mean(same) > 0.2


@pytest.mark.parametrize(("n", "alpha"), [(20, 0.05), (50, 0.05), (50, 0.02)])
def test_the_expected_false_area_stays_below_what_was_promised(n, alpha):
    rng, found = np.random.default_rng(n), []
    for _ in range(1500):
        threshold = risk_controlled_threshold(areas(rng, n), LEVELS, alpha).threshold
        found.append(areas(rng, 40)[:, np.searchsorted(LEVELS, threshold)].mean())
    assert np.mean(found) <= alpha
    assert np.mean(found) >= alpha - 1.5 / (n + 1)


def test_false_area_holds_after_selection_among_100_heads_on_other_sources():
    rng, own, same = np.random.default_rng(3), [], []
    for _ in range(150):
        chosen_on, fresh, new = (np.array([areas(rng, 40) for _ in range(100)]) for _ in range(3))
        risks = (chosen_on.sum(axis=1) + 1) / 41
        best = int(np.argmin([np.flatnonzero(risk <= 0.05)[0] for risk in risks]))
        for rates, calibration in ((own, fresh), (same, chosen_on)):
            threshold = risk_controlled_threshold(calibration[best], LEVELS, 0.05).threshold
            rates.append(new[best][:, np.searchsorted(LEVELS, threshold)].mean())
    assert np.mean(own) <= 0.05
    assert np.mean(same) > np.mean(own) + 0.01


@pytest.mark.parametrize(
    ("alpha", "needed"), [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.03, 33), (1 / 3, 2), (1 / 49, 48)]
)
def test_an_alpha_that_n_sources_cannot_promise_is_refused_with_the_number_needed(alpha, needed):
    assert sources_needed(alpha) == needed
    assert conformal_image_threshold(np.arange(float(needed)), alpha).n == needed
    few = np.arange(float(needed - 1))
    with pytest.raises(MetricError, match=f"from {needed - 1} authentic sources: {needed} are needed"):
        conformal_image_threshold(few, alpha)
    with pytest.raises(MetricError, match=f"{needed} are needed"):
        risk_controlled_threshold(np.zeros((needed - 1, 2)), [0.5, 1.1], alpha)
    assert risk_controlled_threshold(np.zeros((needed, 2)), [0.5, 1.1], alpha).threshold == 0.5


def test_the_threshold_is_the_kth_smallest_score_and_flags_only_what_exceeds_it():
    scores = np.arange(19, dtype=np.float32)
    found = conformal_image_threshold(scores, 0.1)
    assert np.float32(17) < found.threshold < 17.001
    assert found.calibration == pytest.approx(1 / 19)
    assert not (np.float32(17) >= found.threshold)


def test_saturated_scores_flag_nothing():
    found = conformal_image_threshold(np.ones(20, np.float32), 0.05)
    assert not (np.ones(5, np.float32) >= found.threshold).any()
    assert found.calibration == 0.0


def test_risk_control_takes_the_least_threshold_that_is_good_enough():
    table = np.tile([0.4, 0.2, 0.05, 0.0], (20, 1))
    found = risk_controlled_threshold(table, [0.2, 0.4, 0.6, 0.8], 0.1)
    assert found.threshold == 0.6
    assert found.calibration == pytest.approx(0.05)
    assert found.kind == "false area"


def test_one_score_a_source_is_its_maximum():
    assert worst_by_source([1.0, 3.0, 2.0], ["b", "a", "b"]).tolist() == [3.0, 2.0]
    table = worst_by_source([[1.0, 0.5], [0.8, 0.7]], ["a", "a"])
    assert table.tolist() == [[1.0, 0.7]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_area_at_counts_pixels_at_or_above(dtype):
    score = np.random.default_rng(0).integers(0, 20, (13, 17)).astype(dtype) / 20
    levels = np.linspace(0, 1, 21)
    expected = [(score >= float(level)).mean() for level in levels]
    assert area_at(score, levels) == pytest.approx(expected)


def test_what_promises_nothing_is_refused_in_words():
    with pytest.raises(MetricError, match="no rate"):
        conformal_image_threshold(np.arange(50.0), 1.5)
    with pytest.raises(MetricError, match="not finite"):
        conformal_image_threshold([np.nan] * 50, 0.1)
    with pytest.raises(MetricError, match="do not rise"):
        risk_controlled_threshold(np.zeros((50, 2)), [0.5, 0.5], 0.1)
    with pytest.raises(MetricError, match="grow with the threshold"):
        risk_controlled_threshold(np.tile([0.1, 0.2], (50, 1)), [0.4, 0.5], 0.1)
    with pytest.raises(MetricError, match="up to one that marks nothing"):
        risk_controlled_threshold(np.full((50, 2), 0.5), [0.4, 0.5], 0.1)
    with pytest.raises(MetricError, match="one column of areas a threshold"):
        risk_controlled_threshold(np.zeros((50, 3)), [0.4, 0.5], 0.1)
    with pytest.raises(MetricError, match="one source_id an image"):
        worst_by_source([1.0], ["a", "b"])
    with pytest.raises(MetricError, match="type uint8"):
        area_at(np.zeros((2, 2), np.uint8), np.array([0.5]))
