"""How long the table of a run takes, beside one call of pandas and SciPy for each of its numbers.

Run as ``python benchmarks/tables.py --photographs 3000``. Scores are drawn at random: five variants of each photograph,
two generators and two kinds of mask of the fakes, three methods under two schemes beside marking everything. The
baseline takes the mean over images of each photograph from a pandas groupby, and the interval from
``scipy.stats.bootstrap`` (method basic, 9,999 resamples), for some rows of the same table that are spread over it. Both
arms use one thread.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
from scipy.stats import bootstrap
from threadpoolctl import threadpool_limits

from dlprobe.studies.results import FAKE_VARIANTS, METHOD_KEY, kinds, summarise

VARIANTS = ("sp", "fr", "real", "ae", "aesp")
FAKES, OTHERS = ("iou", "f1", "ap", "iou_val", "f1_val"), ("false_area", "flagged", "false_area_val")
METHODS = [("everything", ""), *((name, scheme) for name in ("dice", "logistic", "ridge") for scheme in ("a", "b"))]


def scores(photographs: int) -> pd.DataFrame:
    """Return scores of images as `dlprobe.studies.fitting.scoring.score_images` does, with a column ``model``."""
    rng = np.random.default_rng(0)
    parts = []
    for variant in VARIANTS:
        fake = variant in FAKE_VARIANTS
        for generator in ("one", "two") if fake else ("",):
            number = np.arange(photographs)
            images = {
                "model": "model",
                "dataset": "data",
                "path": np.char.add(f"{variant}/{generator}/", number.astype(str)),
                "source_id": np.char.add("photograph-", number.astype(str)),
                "variant": variant,
                "generator": generator,
                "mask_kind": np.where(number % 2, "box", "free") if fake else "",
                "mask_size": "",
                "grid": "patch",
                "seed": 0,
                "setting": "",
            }
            for method, scheme in METHODS:
                values = {name: rng.random(photographs) for name in (FAKES if fake else OTHERS)}
                parts.append(pd.DataFrame({**images, "method": method, "scheme": scheme, **values}))
    return pd.concat(parts, ignore_index=True)


def one_at_a_time(images: pd.DataFrame, rows: pd.DataFrame) -> list[tuple[float, float, float]]:
    """Return value and interval of some rows of the table, each from the scores on its own."""
    of_kind = dict(kinds(images))
    found = []
    for row in rows.itertuples():
        part = of_kind[row.kind]
        part = part[(part[METHOD_KEY] == [row.model, row.method, row.scheme]).all(axis=1)]
        means = part.groupby("source_id")[row.metric.partition("@")[0]].mean().dropna().to_numpy()
        drawn = bootstrap((means,), np.mean, n_resamples=9999, method="basic", batch=100, rng=0)
        found.append((means.mean(), *drawn.confidence_interval))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=20, help="Of the table that the baseline makes.")
    given = parser.parse_args()
    images = scores(given.photographs)
    with threadpool_limits(1):
        start = time.perf_counter()
        table = summarise(images)
        ours = (time.perf_counter() - start) / len(table)
        rows = table.iloc[np.linspace(0, len(table) - 1, given.rows).astype(int)]
        start = time.perf_counter()
        expected = one_at_a_time(images, rows)
        theirs = (time.perf_counter() - start) / len(rows)
    worst = max(abs(row.value - value) for row, (value, _, _) in zip(rows.itertuples(), expected, strict=True))
    width = max(
        abs(row.high - row.low - (high - low)) / (high - low)
        for row, (_, low, high) in zip(rows.itertuples(), expected, strict=True)
    )
    print(f"{len(images):,} scores of {given.photographs:,} photographs, {len(table)} numbers in the table; one thread")
    print("| arm | ms a number | of the baseline |\n|---|---|---|")
    print(f"| pandas and scipy.stats.bootstrap, a number at a time (baseline) | {theirs * 1e3:.1f} | 1.00 |")
    print(f"| the table of `dlprobe fit` | {ours * 1e3:.1f} | {theirs / ours:.1f} times as fast |")
    print(f"values at most {worst:.1e} apart, widths of intervals at most {width:.1%} (of two kinds of interval)")


if __name__ == "__main__":
    main()
