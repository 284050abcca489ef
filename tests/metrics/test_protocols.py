"""Every protocol against a naive transcription of its published formula (NumPy, scikit-learn, SciPy, torch)."""

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter, minimum_filter
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from dlprobe.errors import MetricError, RegistryError
from dlprobe.metrics import PROTOCOLS, evaluate_map

TINY = 1e-32


def unit(score):
    return score / 255.0 if score.dtype == np.uint8 else score.astype(np.float64) if score.dtype == bool else score


def table(prediction, truth):
    """tp, fp, fn, tn by definition."""
    return (
        float((prediction & truth).sum()),
        float((prediction & ~truth).sum()),
        float((~prediction & truth).sum()),
        float((~prediction & ~truth).sum()),
    )


def one_class(truth):
    return truth.all() or not truth.any()


def default(score, mask, threshold):
    s = unit(score)
    tp, fp, fn, _ = table(s >= threshold, mask)
    nan = float("nan")
    candidates = [table(s >= level, mask) for level in np.unique(s)]
    return {
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else nan,
        "iou": tp / (tp + fp + fn) if tp + fp + fn else nan,
        "precision": tp / (tp + fp) if tp + fp else nan,
        "recall": tp / (tp + fn) if tp + fn else nan,
        "auc": nan if one_class(mask) else roc_auc_score(mask.ravel(), s.ravel()),
        "ap": average_precision_score(mask.ravel(), s.ravel()) if mask.any() else nan,
        "oracle_best_f1": max(2 * a / (2 * a + b + c) for a, b, c, _ in candidates) if mask.any() else nan,
        "predict_everything_f1": 2 * mask.mean() / (1 + mask.mean()),
        "predict_everything_iou": mask.mean(),
        "image_score": np.percentile(s, 99),
        "marked_share": (s >= threshold).mean(),
        "mask_share": mask.mean(),
    }


def tgif(score, mask, threshold):
    s = unit(score)
    prediction = s > threshold
    auc = float("nan") if one_class(mask) else roc_auc_score(mask.ravel(), s.ravel())
    if not prediction.any() and not mask.any():
        names = ("f1", "iou", "precision", "recall", "specificity", "accuracy", "balanced_accuracy")
        return dict.fromkeys(names, 1.0) | {"auc": auc}
    tn, fp, fn, tp = confusion_matrix(mask.ravel(), prediction.ravel(), labels=[False, True]).ravel()
    recall, specificity = tp / max(tp + fn, TINY), tn / max(tn + fp, TINY)
    return {
        "f1": 2 * tp / max(2 * tp + fn + fp, TINY),
        "iou": tp / max(tp + fp + fn, TINY),
        "precision": tp / max(tp + fp, TINY),
        "recall": recall,
        "specificity": specificity,
        "accuracy": (tp + tn) / max(tp + tn + fp + fn, TINY),
        "balanced_accuracy": (recall + specificity) / 2,
        "auc": auc,
    }


def ring(mask):
    inside = minimum_filter(mask, 15)
    outside = np.logical_not(maximum_filter(mask, 11))
    return inside | outside


def f1_either_way(tn, fp, fn, tp):
    return max(2 * tp / max(2 * tp + fp + fn, TINY), 2 * fn / max(2 * fn + tn + tp, TINY))


def best_either_way(s, truth):
    """Marked are scores above each occurring level, in float32; the empty set of levels fails in the original."""
    s = s.astype(np.float32)
    if not s.size:
        return float("nan")
    best = []
    for level in np.unique(s):
        tp, fp, fn, tn = table(s > level, truth)
        best.append(f1_either_way(tn, fp, fn, tp))
    return max(best)


def trufor(score, mask, threshold):
    """With one label in truth and prediction together the published matrix has one row, and indexing it fails."""
    scored = ring(mask)
    s, truth = unit(score)[scored], mask[scored]
    prediction = s > threshold
    two = np.unique(np.concatenate([truth, prediction])).size == 2
    fixed = f1_either_way(*confusion_matrix(truth, prediction).ravel()) if two else float("nan")
    return {"f1": fixed, "best_f1": best_either_way(s, truth)}


def safire(score, mask, threshold):
    s, scored = unit(score), ring(mask)
    a, b, c, d = table(s >= threshold, mask)
    found = {
        "f1": float("nan"),
        "mcc": float("nan"),
        "best_f1": best_either_way(s[scored], mask[scored]),
        "auc": float("nan") if one_class(mask) else roc_auc_score(mask.ravel(), s.ravel()),
        "ap": average_precision_score(mask.ravel(), s.ravel()) if mask.any() else float("nan"),
        "st_f1": max(2 * a / max(1.0, 2 * a + c + b), 2 * c / max(1.0, 2 * c + a + d)),
        "st_accuracy": max((a + d) / mask.size, (b + c) / mask.size),
    }
    if scored.any():
        matrix = confusion_matrix(mask[scored], (s > threshold)[scored], labels=[False, True])
        tn, fp, fn, tp = matrix.ravel().astype(float)
        root = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
        found |= {"f1": f1_either_way(tn, fp, fn, tp), "mcc": abs(tp * tn - fp * fn) / max(root, TINY)}
    return found


def imdlbenco_f1(tp, fp, fn):
    precision, recall = tp / (tp + fp + 1e-8), tp / (tp + fn + 1e-8)
    return 2 * precision * recall / (precision + recall + 1e-8)


def imdlbenco_iou(prediction, truth):
    both = (prediction & truth).sum()
    return both / (prediction.sum() + truth.sum() - both + 1e-8)


def imdlbenco_auc(s, truth):
    """A trapezoid over every pixel, in torch, its descending sort made stable."""
    if not truth.any():
        return 0.0
    order = torch.argsort(torch.from_numpy(s.ravel().astype(np.float64)), descending=True, stable=True)
    hits = torch.from_numpy(truth.ravel())[order].double()
    positives = hits.sum()
    return float(torch.trapz(hits.cumsum(0) / positives, (1 - hits).cumsum(0) / (len(hits) - positives)))


def imdlbenco(score, mask, threshold):
    s = unit(score)
    tp, fp, fn, tn = table(s > threshold, mask)
    return {
        "f1": imdlbenco_f1(tp, fp, fn),
        "iou": imdlbenco_iou(s > threshold, mask),
        "auc": imdlbenco_auc(s, mask),
        "accuracy": (tp + tn) / mask.size,
    }


def imdlbenco_double(score, mask, threshold):
    s = unit(score)
    tp, fp, fn, tn = table(s > threshold, mask)
    return {
        "f1": max(imdlbenco_f1(tp, fp, fn), imdlbenco_f1(fn, tn, tp)),
        "iou": max(imdlbenco_iou(s > threshold, mask), imdlbenco_iou(1 - s > threshold, mask)),
        "auc": max(imdlbenco_auc(s, mask), imdlbenco_auc(1 - s, mask)),
        "accuracy": max((tp + tn) / mask.size, (fp + fn) / mask.size),
    }


def mvss(score, mask, threshold):
    s = unit(score)
    tp, fp, fn, _ = table(s > threshold, mask)
    if not (s > threshold).any() and not mask.any():
        return {"f1": 1.0, "precision": 0.0, "recall": 0.0, "image_score": s.max()}
    return {
        "f1": 2 * tp / (2 * tp + fp + fn + 1e-6),
        "precision": tp / (tp + fp + 1e-6),
        "recall": tp / (tp + fn + 1e-6),
        "image_score": s.max(),
    }


REFERENCES = {
    "dlprobe": default,
    "tgif": tgif,
    "trufor": trufor,
    "safire": safire,
    "imdlbenco": imdlbenco,
    "imdlbenco-double": imdlbenco_double,
    "mvss": mvss,
}

SHAPE = (34, 41)


def masks(rng):
    """Masks by name; thin ones are narrower than the 15 px that TruFor erodes."""
    empty = np.zeros(SHAPE, bool)
    yield "empty", empty
    yield "full", ~empty
    yield "noise", rng.random(SHAPE) < 0.3
    y, x = rng.integers(0, 6, 2)
    for name, height, width in (("large", 18, 22), ("thin", 25, int(rng.integers(1, 15))), ("border", 40, 17)):
        mask = empty.copy()
        mask[y : y + height, x : x + width] = True
        yield name, mask
    yield "nearly full", np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) > 2


def scores(rng, mask):
    """Score maps by name."""
    noise = rng.random(SHAPE)
    for level in (0.0, 0.5, 1.0):
        yield f"constant {level}", np.full(SHAPE, level, np.float32)
    for level in (127, 128):
        yield f"constant {level}", np.full(SHAPE, level, np.uint8)
    yield "127 or 128", rng.integers(127, 129, SHAPE).astype(np.uint8)
    yield "float32", np.round(noise, 2).astype(np.float32)
    yield "informed", np.clip(np.round(0.6 * noise + 0.5 * mask, 2), 0, 1)
    yield "inverse", np.clip(np.round(0.9 - 0.5 * noise - 0.4 * mask, 2), 0, 1).astype(np.float32)
    yield "on the threshold", rng.choice([0.25, 0.5, 0.75], SHAPE)
    yield "8 bit", rng.integers(0, 256, SHAPE).astype(np.uint8)
    yield "hard", noise < 0.4
    yield "float16", np.round(noise, 1).astype(np.float16)
    yield "right", mask.copy()


def check(protocol, seed, threshold):
    rng = np.random.default_rng(seed)
    for mask_name, mask in masks(rng):
        for score_name, score in scores(rng, mask):
            found = evaluate_map(score, mask, protocol, threshold)
            wide = score.astype(np.float32) if score.dtype == np.float16 else score
            expected = REFERENCES[protocol](wide, mask, threshold)
            shown = {name: found[name] for name in expected}
            assert shown == pytest.approx(expected, abs=1e-6, nan_ok=True), (mask_name, score_name)


@pytest.mark.parametrize("protocol", sorted(REFERENCES))
@pytest.mark.parametrize(("seed", "threshold"), [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.5), (4, 0.25)])
def test_protocols_agree_with_naive_transcriptions(protocol, seed, threshold):
    check(protocol, seed, threshold)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", sorted(REFERENCES))
def test_protocols_agree_with_naive_transcriptions_on_thousands_of_pairs(protocol):
    for seed in range(100, 120):
        check(protocol, seed, 0.5)


def tiny_pair(rng):
    """A pair of 1 to 20 px a side, mostly degenerate: empty, full or thin masks, few levels, ties, one half itself."""
    shape = tuple(rng.integers(1, 21, 2))
    line = np.zeros(shape, bool)
    line[rng.integers(shape[0])] = True
    mask = [np.zeros(shape, bool), np.ones(shape, bool), line, ~line, rng.random(shape) < rng.random()][rng.integers(5)]
    levels = [
        np.array([0, 127, 128, 255], np.uint8),
        np.array([127, 128], np.uint8),
        np.array([0.0, 0.5, 1.0]),
        np.array([0.25, 0.5, 0.75], np.float32),
        rng.random(2),
        np.array([False, True]),
    ][rng.integers(6)]
    score = rng.choice(levels, shape) if rng.random() < 0.8 else np.full(shape, rng.choice(levels))
    return score, mask


@pytest.mark.parametrize("protocol", sorted(REFERENCES))
def test_protocols_agree_on_hundreds_of_degenerate_pairs(protocol):
    rng = np.random.default_rng(11)
    for number in range(300):
        score, mask = tiny_pair(rng)
        found = evaluate_map(score, mask, protocol)
        expected = REFERENCES[protocol](score, mask, 0.5)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6, nan_ok=True), number


def test_every_protocol_has_a_reference_and_says_what_it_does():
    assert set(PROTOCOLS) == set(REFERENCES)
    for name in PROTOCOLS:
        protocol = PROTOCOLS[name]
        assert protocol.name == name
        assert protocol.column("f1") == f"{name}.{protocol.grid}.f1"
        assert all((protocol.images, protocol.average, protocol.permutation, protocol.border, protocol.all_pristine))


@pytest.mark.parametrize("protocol", sorted(REFERENCES))
@pytest.mark.parametrize("kind", ["large", "full", "border"])
def test_predict_everything_is_what_a_map_of_ones_scores(protocol, kind):
    mask = dict(masks(np.random.default_rng(4)))[kind]
    found = evaluate_map(np.full(SHAPE, 0.2), mask, protocol)
    ones = evaluate_map(np.ones(SHAPE), mask, protocol)
    for name in [name for name in found if name.startswith("predict_everything_")]:
        assert found[name] == pytest.approx(ones[name.removeprefix("predict_everything_")], nan_ok=True)


@pytest.mark.parametrize("protocol", sorted(REFERENCES))
def test_ignored_pixels_do_not_change_any_number(protocol):
    rng = np.random.default_rng(5)
    mask = np.zeros(SHAPE, bool)
    mask[:, :20] = True
    ignore = np.zeros(SHAPE, bool)
    ignore[25:] = True
    score = rng.random(SHAPE)
    other = np.where(ignore, rng.random(SHAPE), score)
    assert evaluate_map(score, mask, protocol, ignore=ignore) == evaluate_map(other, mask, protocol, ignore=ignore)


@pytest.mark.parametrize("protocol", ["dlprobe", "tgif", "imdlbenco", "imdlbenco-double", "mvss"])
def test_ignoring_rows_is_cutting_them_off_where_there_is_no_border_rule(protocol):
    rng = np.random.default_rng(6)
    score, mask = rng.random(SHAPE), rng.random(SHAPE) < 0.3
    ignore = np.zeros(SHAPE, bool)
    ignore[25:] = True
    assert evaluate_map(score, mask, protocol, ignore=ignore) == evaluate_map(score[:25], mask[:25], protocol)


def test_8_bit_levels_127_and_128_lie_on_either_side_of_one_half():
    mask = np.ones((20, 20), bool)
    for protocol in ("dlprobe", "tgif"):
        assert evaluate_map(np.full((20, 20), 127, np.uint8), mask, protocol)["recall"] == 0.0
        assert evaluate_map(np.full((20, 20), 128, np.uint8), mask, protocol)["recall"] == 1.0


def test_scores_on_the_threshold_are_marked_by_dlprobe_and_not_by_tgif():
    mask, half = np.ones((20, 20), bool), np.full((20, 20), 0.5)
    assert evaluate_map(half, mask, "dlprobe")["recall"] == 1.0
    assert evaluate_map(half, mask, "tgif")["recall"] == 0.0


def test_a_thin_object_vanishes_in_the_ring():
    mask = np.zeros((60, 60), bool)
    mask[20:40, 20:34] = True
    assert evaluate_map(mask, mask, "tgif")["f1"] == 1.0
    assert np.isnan(evaluate_map(mask, mask, "trufor")["f1"])
    assert evaluate_map(mask, mask, "trufor")["best_f1"] == 0.0
    assert evaluate_map(mask, mask, "safire")["f1"] == 0.0


@pytest.mark.parametrize(
    ("score", "mask", "words"),
    [
        (np.zeros((3, 4)), np.zeros((4, 3), bool), r"\(3, 4\) and mask \(4, 3\)"),
        (np.zeros((3, 3)), np.zeros((3, 3), np.uint8), "mask has type uint8"),
        (np.zeros((3, 3), np.int64), np.zeros((3, 3), bool), "type int64"),
        (np.full((3, 3), 3.2), np.zeros((3, 3), bool), "not logits"),
        (np.full((3, 3), np.nan), np.zeros((3, 3), bool), "not logits"),
        (np.zeros((0, 3)), np.zeros((0, 3), bool), "no pixel is left"),
    ],
)
def test_maps_that_cannot_be_scored_are_refused_in_words(score, mask, words):
    with pytest.raises(MetricError, match=words):
        evaluate_map(score, mask)


def test_everything_ignored_is_refused():
    with pytest.raises(MetricError, match="no pixel is left"):
        evaluate_map(np.zeros((3, 3)), np.zeros((3, 3), bool), ignore=np.ones((3, 3), bool))


def test_an_unknown_protocol_is_answered_with_its_neighbours():
    with pytest.raises(RegistryError, match="did you mean trufor"):
        evaluate_map(np.zeros((3, 3)), np.zeros((3, 3), bool), "trufo")
