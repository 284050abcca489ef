import numpy as np
import pytest
from sklearn import metrics as sk

from dlprobe.errors import MetricError
from dlprobe.metrics import average_precision, best_f1, count, f1, rank, roc_auc, threshold_for_best_f1


def data(kind, seed, n=300):
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.2
    truth[:2] = True, False
    scores = rng.normal(size=n) + truth
    if kind == "tied":
        scores = np.round(scores)
    if kind == "saturated":
        scores = (1 / (1 + np.exp(-80 * scores))).astype(np.float32)
    if kind == "constant":
        scores[:] = 0.5
    return scores, truth


KINDS = ["smooth", "tied", "saturated", "constant"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighted", [False, True])
def test_ap_and_auc_agree_with_scikit_learn(kind, seed, weighted):
    scores, truth = data(kind, seed)
    weights = np.random.default_rng(seed).integers(0, 4, truth.size) if weighted else None
    assert average_precision(scores, truth, weights) == pytest.approx(
        sk.average_precision_score(truth, scores, sample_weight=weights), abs=1e-12
    )
    assert roc_auc(scores, truth, weights) == pytest.approx(
        sk.roc_auc_score(truth, scores, sample_weight=weights), abs=1e-12
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_best_f1_is_the_best_over_all_observed_thresholds(kind, seed):
    scores, truth = data(kind, seed)
    naive = max((f1(count(scores >= threshold, truth)), threshold) for threshold in np.unique(scores))
    assert best_f1(scores, truth) == pytest.approx(naive)
    assert f1(count(scores >= threshold_for_best_f1(scores, truth), truth)) == pytest.approx(naive[0])


def test_a_class_that_is_absent_gives_nan():
    scores = np.arange(4.0)
    assert np.isnan(average_precision(scores, np.zeros(4, bool)))
    assert np.isnan(best_f1(scores, np.zeros(4, bool)).f1)
    assert np.isnan(roc_auc(scores, np.zeros(4, bool)))
    assert np.isnan(roc_auc(scores, np.ones(4, bool)))
    assert np.isnan(roc_auc([], []))
    assert average_precision(scores, np.ones(4, bool)) == 1.0


def test_nan_scores_and_odd_lengths_are_refused():
    with pytest.raises(MetricError, match="1 of 2 scores are nan"):
        roc_auc([0.1, np.nan], [True, False])
    with pytest.raises(MetricError, match="2 scores and 3 labels"):
        average_precision([0.1, 0.2], [True, False, True])


def test_infinite_logits_rank_like_any_number():
    assert roc_auc([-np.inf, 0.0, np.inf, np.inf], [False, False, True, True]) == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_one_sort_gives_what_three_give(kind):
    scores, truth = data(kind, 9)
    expected = (average_precision(scores, truth), roc_auc(scores, truth), *best_f1(scores, truth))
    assert rank(scores, truth) == expected
