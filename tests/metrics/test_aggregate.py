import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from dlprobe.errors import MetricError
from dlprobe.metrics import PROTOCOLS, aggregate, aggregate_intervals, bootstrap_mean, evaluate_map

SHAPE = (24, 30)


def images(sources=10, seed=0):
    """Two fakes and an authentic image a source: maps that know a little."""
    rng = np.random.default_rng(seed)
    found = []
    for source in range(sources):
        for kind in range(3):
            mask = np.zeros(SHAPE, bool)
            if kind:
                mask[2 : 2 + rng.integers(16, 20), 3 : 3 + rng.integers(16, 24)] = True
            score = np.clip(0.45 * rng.random(SHAPE) + 0.3 * mask * rng.random() + 0.2 * rng.random(), 0, 1)
            found.append((f"s{source}", mask, score))
    return found


def table(protocol, **options):
    data = images(**options)
    return [name for name, _, _ in data], data, [evaluate_map(score, mask, protocol) for _, mask, score in data]


def test_dlprobe_averages_agree_with_scikit_learn():
    _, data, rows = table("dlprobe")
    found = aggregate(rows)
    fakes = [(mask.ravel(), score.ravel() >= 0.5) for _, mask, score in data if mask.any()]
    f1s, ious = [f1_score(*fake) for fake in fakes], [jaccard_score(*fake) for fake in fakes]
    assert (found["n_fake"], found["n_authentic"]) == (20, 10)
    assert found["f1_macro"] == pytest.approx(np.mean(f1s))
    assert found["f1_median"] == pytest.approx(np.median(f1s))
    assert found["iou_macro"] == pytest.approx(np.mean(ious))
    assert found["iou_median"] == pytest.approx(np.median(ious))
    pooled = [np.concatenate(part) for part in zip(*fakes, strict=True)]
    assert found["f1_micro"] == pytest.approx(f1_score(*pooled))
    assert found["iou_micro"] == pytest.approx(jaccard_score(*pooled))
    share = pooled[0].mean()
    assert found["predict_everything_f1_micro"] == pytest.approx(2 * share / (1 + share))
    assert found["predict_everything_iou_micro"] == pytest.approx(share)


def test_dlprobe_says_what_happens_on_authentic_images():
    _, data, rows = table("dlprobe")
    found = aggregate(rows)
    maps = [score for _, mask, score in data if not mask.any()]
    tops = [np.percentile(score, 99) for _, _, score in data]
    assert found["false_area"] == pytest.approx(np.mean([(score >= 0.5).mean() for score in maps]))
    assert found["image_fpr"] == pytest.approx(np.mean([np.percentile(score, 99) >= 0.5 for score in maps]))
    assert found["image_auc"] == pytest.approx(roc_auc_score([mask.any() for _, mask, _ in data], tops))
    assert 0 < found["image_fpr"] < 1


def test_empty_predictions_on_fakes_are_counted():
    _, data, rows = table("dlprobe")
    silent = [evaluate_map(score * 0, mask) for _, mask, score in data]
    assert aggregate(rows)["empty_predictions"] < 1.0
    assert aggregate(silent)["empty_predictions"] == 1.0
    assert aggregate(silent)["f1_macro"] == 0.0
    assert np.isnan(aggregate(silent)["precision_macro"])


def test_tgif_keeps_fakes_and_authentic_images_apart():
    _, data, rows = table("tgif")
    found = aggregate(rows, "tgif")
    fake = [mask.any() for _, mask, _ in data]
    assert found["f1"] == pytest.approx(
        np.mean([row["f1"] for row, is_fake in zip(rows, fake, strict=True) if is_fake])
    )
    clean = [float(not (score > 0.5).any()) for _, mask, score in data if not mask.any()]
    assert found["f1_real"] == pytest.approx(np.mean(clean))


def test_imdlbenco_averages_all_images_and_its_auc_counts_authentic_ones_as_zero():
    _, data, rows = table("imdlbenco")
    found = aggregate(rows, "imdlbenco")
    assert found["f1"] == pytest.approx(np.mean([row["f1"] for row in rows]))
    aucs = [roc_auc_score(mask.ravel(), score.ravel()) if mask.any() else 0.0 for _, mask, score in data]
    assert found["auc"] == pytest.approx(np.mean(aucs), abs=1e-6)
    whole = [*rows, evaluate_map(np.zeros(SHAPE), np.ones(SHAPE, bool), "imdlbenco")]
    assert np.isnan(aggregate(whole, "imdlbenco")["auc"])


@pytest.mark.parametrize("protocol", ["trufor", "safire"])
def test_ring_protocols_average_fakes_that_are_not_nan_and_count_the_others(protocol):
    _, data, rows = table(protocol)
    everything_is_ring = np.zeros(SHAPE, bool)
    everything_is_ring[::4, ::4] = True
    skipped = evaluate_map(np.ones(SHAPE), everything_is_ring, protocol)
    found = aggregate([*rows, skipped], protocol)
    kept = [row["f1"] for row, (_, mask, _) in zip(rows, data, strict=True) if mask.any()]
    assert found["f1"] == pytest.approx(np.nanmean(kept))
    assert found["skipped"] == np.isnan(kept).sum() + 1


def test_mvss_joins_pixel_and_image_scores():
    _, data, rows = table("mvss")
    found = aggregate(rows, "mvss")
    flagged = np.array([score.max() > 0.5 for _, _, score in data])
    fake = np.array([mask.any() for _, mask, _ in data])
    sensitivity, specificity = flagged[fake].mean(), (~flagged[~fake]).mean()
    image_f1 = 2 * sensitivity * specificity / (sensitivity + specificity)
    f1 = np.mean([row["f1"] for row, is_fake in zip(rows, fake, strict=True) if is_fake])
    assert 0 < image_f1 < 1
    assert found["image_f1"] == pytest.approx(image_f1, abs=1e-5)
    assert found["image_auc"] == pytest.approx(roc_auc_score(fake, [score.max() for _, _, score in data]))
    assert found["combined_f1"] == pytest.approx(2 * f1 * image_f1 / (f1 + image_f1), abs=1e-5)
    only_fakes = [row for row, is_fake in zip(rows, fake, strict=True) if is_fake]
    assert aggregate(only_fakes, "mvss")["image_auc"] == 0.0


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_intervals_hold_the_aggregate_and_skip_tallies(protocol):
    sources, _, rows = table(protocol)
    values = aggregate(rows, protocol)
    intervals = aggregate_intervals(rows, sources, protocol, resamples=999)
    assert set(values) - set(intervals) <= {"n_fake", "n_authentic", "skipped"}
    for name, interval in intervals.items():
        assert interval.estimate == pytest.approx(values[name], nan_ok=True), name
        if not np.isnan(interval.estimate):
            assert 0 <= interval.low <= interval.estimate <= interval.high <= 1, name
            assert interval.n == 10


def test_intervals_are_by_source_and_not_by_image():
    sources, data, rows = table("dlprobe")
    found = aggregate_intervals(rows, sources)["f1_macro"]
    f1s = np.array([row["f1"] for row, (_, mask, _) in zip(rows, data, strict=True) if mask.any()])
    by_source = f1s.reshape(10, 2).mean(axis=1)
    assert found == pytest.approx(bootstrap_mean(by_source, resamples=1999, bounds=(0, 1)))


def test_too_few_sources_have_no_interval():
    sources, _, rows = table("dlprobe", sources=5)
    for interval in aggregate_intervals(rows, sources).values():
        assert np.isnan([interval.low, interval.high]).all()


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@pytest.mark.parametrize("kind", ["fakes", "authentic"])
def test_one_kind_of_image_alone_is_no_error(protocol, kind):
    sources, data, rows = table(protocol)
    chosen = [at for at, (_, mask, _) in enumerate(data) if mask.any() == (kind == "fakes")]
    some, names = [rows[at] for at in chosen], [sources[at] for at in chosen]
    values = aggregate(some, protocol)
    intervals = aggregate_intervals(some, names, protocol, resamples=99)
    assert all(np.isnan(values[name]) or np.isfinite(interval.estimate) for name, interval in intervals.items())


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_images_may_come_by_column(protocol):
    sources, _, rows = table(protocol)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    np.testing.assert_equal(aggregate(columns, protocol), aggregate(rows, protocol))
    np.testing.assert_equal(aggregate(pd.DataFrame(rows), protocol), aggregate(rows, protocol))
    options = {"resamples": 99}
    found = aggregate_intervals(columns, sources, protocol, **options)
    np.testing.assert_equal(found, aggregate_intervals(rows, sources, protocol, **options))


def test_columns_of_unequal_length_are_refused():
    _, _, rows = table("dlprobe")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    with pytest.raises(MetricError, match="the columns tp have another shape than one number an image"):
        aggregate({**columns, "tp": columns["tp"][1:]})
    with pytest.raises(MetricError, match="another shape than one number an image"):
        aggregate(rows[0])  # one image, and no list around it
    with pytest.raises(MetricError, match="another shape than one number an image"):
        aggregate({name: [values] for name, values in columns.items()})
    with pytest.raises(MetricError, match="no column mask_share"):
        aggregate({"tp": columns["tp"]})
    with pytest.raises(MetricError, match="no rows"):
        aggregate({name: [] for name in columns})


def test_rows_that_do_not_belong_together_are_refused():
    _, _, rows = table("dlprobe")
    other = table("tgif")[2]
    with pytest.raises(MetricError, match="do not share the columns"):
        aggregate([rows[0], other[0]])
    with pytest.raises(MetricError, match="no rows"):
        aggregate([])
    with pytest.raises(MetricError, match="one source_id a row"):
        aggregate_intervals(rows, ["a"])
