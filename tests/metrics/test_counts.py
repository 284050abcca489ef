import numpy as np
import pytest
from sklearn import metrics as sk

from dlprobe.errors import MetricError
from dlprobe.metrics import (
    Counts,
    balanced_accuracy,
    count,
    f1,
    false_positive_rate,
    iou,
    matthews,
    precision,
    predict_everything_f1,
    predict_everything_iou,
    recall,
    total,
)


def random_pair(seed, shape=(17, 23)):
    rng = np.random.default_rng(seed)
    return rng.random(shape) < 0.4, rng.random(shape) < 0.3


@pytest.mark.parametrize("seed", range(5))
def test_scores_agree_with_scikit_learn(seed):
    prediction, truth = random_pair(seed)
    counts, arrays = count(prediction, truth), (truth.ravel(), prediction.ravel())
    assert f1(counts) == pytest.approx(sk.f1_score(*arrays))
    assert iou(counts) == pytest.approx(sk.jaccard_score(*arrays))
    assert precision(counts) == pytest.approx(sk.precision_score(*arrays))
    assert recall(counts) == pytest.approx(sk.recall_score(*arrays))
    assert matthews(counts) == pytest.approx(sk.matthews_corrcoef(*arrays))
    assert balanced_accuracy(counts) == pytest.approx(sk.balanced_accuracy_score(*arrays))
    assert false_positive_rate(counts) == pytest.approx(1 - sk.recall_score(*arrays, pos_label=0))


@pytest.mark.parametrize("parts", [1, 2, 7, 17])
def test_counts_of_parts_add_to_the_counts_of_the_whole(parts):
    prediction, truth = random_pair(3)
    pieces = zip(np.array_split(prediction, parts), np.array_split(truth, parts), strict=True)
    assert total(count(*piece) for piece in pieces) == count(prediction, truth)


def test_ignored_pixels_count_nowhere():
    prediction, truth = random_pair(4)
    ignore = np.zeros_like(truth)
    ignore[:, :10] = True
    assert count(prediction, truth, ignore) == count(prediction[:, 10:], truth[:, 10:])
    assert count(prediction, truth, ignore).size == 17 * 13


@pytest.mark.parametrize("score", [f1, iou, precision, recall, balanced_accuracy, matthews])
def test_nothing_to_find_and_nothing_found_is_nan(score):
    assert np.isnan(score(Counts(tn=9)))


@pytest.mark.parametrize("score", [f1, iou])
def test_a_false_alarm_on_an_empty_truth_is_zero(score):
    assert score(Counts(fp=1, tn=8)) == 0.0


def test_rates_without_a_denominator_are_nan():
    assert np.isnan(precision(Counts(fn=3)))
    assert np.isnan(recall(Counts(fp=3)))
    assert np.isnan(false_positive_rate(Counts(tp=3)))


def test_predict_everything_is_what_a_full_map_scores():
    truth = np.zeros((10, 10), bool)
    truth[:3] = True
    counts = count(np.ones_like(truth), truth)
    assert predict_everything_f1(0.3) == pytest.approx(f1(counts))
    assert predict_everything_iou(0.3) == pytest.approx(iou(counts))


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(MetricError, match=r"shape \(2, 2\).*\(4,\)"):
        count(np.ones((2, 2), bool), np.ones(4, bool))
    with pytest.raises(MetricError, match="truth has type uint8"):
        count(np.ones(4, bool), np.full(4, 255, np.uint8))
