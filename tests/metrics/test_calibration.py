import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from dlprobe.errors import MetricError
from dlprobe.metrics import expected_calibration_error, fit_temperature, negative_log_likelihood, sigmoid


def overconfident(seed, n=3000):
    """Logits three times too large for their truth."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=n)
    return 3 * honest, rng.random(n) < sigmoid(honest)


def test_ece_agrees_with_a_loop_over_bins():
    rng = np.random.default_rng(0)
    p, truth = np.append(rng.random(500), [0.0, 1.0]), np.append(rng.random(500) < 0.99, [True, False])
    expected = 0.0
    for b in range(15):
        inside = (p >= b / 15) & ((p < (b + 1) / 15) | (b == 14))
        expected += abs(truth[inside].mean() - p[inside].mean()) * inside.mean()
    assert expected_calibration_error(p, truth) == pytest.approx(expected)


def test_ece_of_honest_probabilities_is_small_and_of_wrong_ones_large():
    p = np.random.default_rng(1).random(200_000)
    truth = np.random.default_rng(2).random(200_000) < p
    assert expected_calibration_error(p, truth) < 0.01
    assert expected_calibration_error(1 - p, truth) > 0.4
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1.0


def test_nll_agrees_with_scikit_learn_and_is_finite_where_the_sigmoid_saturates():
    logits, truth = overconfident(0)
    assert negative_log_likelihood(logits, truth) == pytest.approx(log_loss(truth, sigmoid(logits)))
    assert negative_log_likelihood([1000.0, -1000.0], [False, False]) == pytest.approx(500.0)


def test_nll_of_three_classes_agrees_with_scikit_learn():
    rng = np.random.default_rng(3)
    logits, truth = 4 * rng.normal(size=(300, 3)), rng.integers(0, 3, 300)
    assert negative_log_likelihood(logits, truth) == pytest.approx(log_loss(truth, softmax(logits, axis=1)))


def test_temperature_is_the_reciprocal_of_an_unpenalised_logistic_coefficient():
    logits, truth = overconfident(4)
    model = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-10).fit(logits[:, None], truth)
    found = fit_temperature(logits, truth)
    assert found.value == pytest.approx(1 / model.coef_[0, 0], rel=1e-4)
    assert not found.at_edge
    assert expected_calibration_error(sigmoid(logits / found.value), truth) < expected_calibration_error(
        sigmoid(logits), truth
    )


def test_one_logit_and_two_classes_have_one_temperature():
    logits, truth = overconfident(5)
    two = np.stack([np.zeros_like(logits), logits], axis=1)
    assert fit_temperature(two, truth).value == pytest.approx(fit_temperature(logits, truth).value, rel=1e-5)


def test_separable_or_useless_logits_are_flagged():
    logits = np.linspace(-5, 5, 50)
    assert fit_temperature(logits, logits > 0).at_edge
    assert fit_temperature(logits, logits < 0).at_edge


def test_what_cannot_be_calibrated_is_refused_in_words():
    assert np.isnan(expected_calibration_error([], []))
    assert np.isnan(negative_log_likelihood([], []))
    with pytest.raises(MetricError, match="pass sigmoids, not logits"):
        expected_calibration_error([3.0], [True])
    with pytest.raises(MetricError, match="1 nan"):
        expected_calibration_error([np.nan], [True])
    with pytest.raises(MetricError, match="leave ignored rows out"):
        negative_log_likelihood([0.0, 1.0], [1, -1])
    with pytest.raises(MetricError, match="not finite"):
        negative_log_likelihood([np.inf], [True])
    with pytest.raises(MetricError, match="at least one"):
        fit_temperature([], [])
