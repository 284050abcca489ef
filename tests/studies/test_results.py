"""The table of a run is what pandas and one interval at a time would make of the scores of its images."""

import numpy as np
import pandas as pd
import pytest

from dlprobe.metrics import bootstrap_mean, paired_difference, seed_spread, source_means
from dlprobe.studies.evaluation.subjects import SIZE_BINS
from dlprobe.studies.results import METHOD_KEY, compare, kinds, planned_comparisons, summarise

VARIANTS = {
    "sp": ("iou", "ap", "iou_val"),
    "fr": ("iou", "ap", "iou_val"),
    "real": ("false_area",),
    "ae": ("false_area",),
}


@pytest.fixture(scope="module")
def images():
    """Return scores of two models, three methods, two schemes and two seeds, some of them without a value."""
    rng = np.random.default_rng(0)
    rows = []
    for variant, metrics in VARIANTS.items():
        for photograph in range(12):
            for generator in ("", "sd")[: 1 + (variant == "sp" and photograph > 2)]:
                common = {
                    "variant": variant,
                    "source_id": f"p{photograph % 11}",  # two photographs are one source
                    "dataset": "d",
                    "path": f"{variant}-{photograph}-{generator}.png",
                    "generator": generator,
                    "mask_kind": "free" if photograph % 2 else "box",
                    "mask_size": "",
                    "grid": "patch",
                    "setting": "",
                }
                for model in ("b", "a"):
                    every = {**common, "model": model, "method": "everything", "scheme": "", "seed": 0}
                    rows.append({**every, **dict.fromkeys(metrics, float(rng.random()))})
                    for method in ("ridge", "dice"):
                        for scheme in ("autoencoded-pristine", "autoencoded-fake"):
                            for seed in (0, 1):
                                key = {"model": model, "method": method, "scheme": scheme, "seed": seed}
                                scores = {name: float(rng.random()) for name in metrics}
                                rows.append({**common, **key, **scores, "setting": f"lr {seed}"})
    frame = pd.DataFrame(rows)
    frame.loc[frame["path"].str.startswith("fr-3"), "ap"] = np.nan
    return frame.sample(frac=1, random_state=0)  # positions and labels of rows differ


def by_source(rows, metric):
    return source_means(rows[metric], rows["source_id"].to_numpy(dtype=str))


def test_every_number_is_that_of_its_rows_alone(images):
    table = summarise(images, seed=3)
    of_kind = dict(kinds(images))
    assert set(table["kind"]) == set(of_kind)
    assert {"sp sd", "sp (none)", "ae", "fr free"} <= set(of_kind)
    expected = [
        (kind, *key, f"{metric}@patch")
        for kind, rows in kinds(images)
        for metric in (("iou", "ap", "iou_val") if kind[:2] in {"sp", "fr"} else ("false_area",))
        for key, _ in rows.groupby(METHOD_KEY, sort=False)
    ]
    assert list(table[["kind", *METHOD_KEY, "metric"]].itertuples(index=False, name=None)) == expected
    for row in table.itertuples():
        metric = row.metric.removesuffix("@patch")
        rows = of_kind[row.kind]
        part = rows[(rows[METHOD_KEY] == [row.model, row.method, row.scheme]).all(axis=1)]
        interval = bootstrap_mean(by_source(part, metric), seed=3, bounds=(0, 1))
        assert row.value == pytest.approx(interval.estimate, rel=1e-12, nan_ok=True)
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high), rel=1e-9, nan_ok=True)
        assert row.n_sources == interval.n
        assert row.n_images == part.loc[part[metric].notna(), "path"].nunique()
        assert row.setting == ("" if row.method == "everything" else "lr 0; lr 1")
        everything = rows[rows["method"] == "everything"]
        everything = everything[everything["model"] == everything["model"].iloc[0]]
        assert row.everything == pytest.approx(np.nanmean(list(by_source(everything, metric).values())))
        seeds = [part[part["seed"] == seed] for seed in sorted(set(part["seed"]))]
        assert row.seeds == len(seeds)
        if len(seeds) > 1:
            scores = pd.DataFrame([by_source(rows, metric) for rows in seeds]).to_numpy()
            assert row.seed_sd == pytest.approx(seed_spread(scores).seed_sd)
            assert row.sampling_error == pytest.approx(seed_spread(scores).sampling_error)
        else:
            assert np.isnan(row.seed_sd)
            assert np.isnan(row.sampling_error)


def test_a_table_without_seeds_or_values_and_with_sizes_of_masks(images):
    sized = images[images["seed"] == 0].drop(columns="seed").assign(mask_size=SIZE_BINS[0][1])
    sized.loc[sized["path"].str.contains("-[0-4]-"), "mask_size"] = SIZE_BINS[1][1]
    sized.loc[sized["method"] == "ridge", "ap"] = np.nan
    table = summarise(sized)
    assert set(table["seeds"]) == {1}
    assert {f"sp {size}" for _, size in SIZE_BINS[:2]} <= set(table["kind"])
    nothing = table[(table["method"] == "ridge") & (table["metric"] == "ap@patch")]
    assert len(nothing)
    assert nothing[["value", "low", "high"]].isna().all(axis=None)
    assert (nothing[["n_sources", "n_images"]] == 0).all(axis=None)
    compared = compare(sized.drop(columns=["dataset", "path"]))
    pd.testing.assert_frame_equal(compared, compare(sized))
    undefined = compared["comparison"].str.contains("ridge") & (compared["metric"] == "ap@patch")
    assert undefined.any()
    assert compared.loc[undefined, "p"].isna().all()


def test_every_difference_is_that_of_its_two_sides_alone(images):
    table, plans = compare(images, seed=3), planned_comparisons(images)
    of_kind = dict(kinds(images))
    assert len(table) == len(plans) > 30
    for row, plan in zip(table.itertuples(), plans, strict=True):
        rows = of_kind[plan.kind]
        left, right = (
            by_source(rows[(rows[METHOD_KEY] == list(side)).all(axis=1)], plan.metric)
            for side in (plan.left, plan.right)
        )
        found = paired_difference(left, right, seed=3, bounds=(-1, 1))
        assert (row.model, row.comparison, row.kind) == (plan.right[0], plan.name, plan.kind)
        expected = (found.estimate, found.low, found.high, found.p)
        assert (row.difference, row.low, row.high, row.p) == pytest.approx(expected, rel=1e-9, nan_ok=True)
        assert row.n_sources == found.n
