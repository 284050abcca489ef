"""How sure a score is over sources, and whether two scores differ: intervals and paired tests, on shared resamples."""

from dlprobe.metrics.intervals.resampling import (
    SeedSpread,
    jackknife_interval,
    leave_one_out_interval,
    median_interval,
    seed_spread,
)
from dlprobe.metrics.intervals.studentized import (
    MIN_SOURCES,
    Interval,
    PairedDifference,
    bootstrap_mean,
    bootstrap_means,
    holm,
    means_of,
    paired_difference,
    paired_differences,
    ratio_interval,
    sign_flip_p,
    source_means,
    studentized_intervals,
)

__all__ = [
    "MIN_SOURCES",
    "Interval",
    "PairedDifference",
    "SeedSpread",
    "bootstrap_mean",
    "bootstrap_means",
    "holm",
    "jackknife_interval",
    "leave_one_out_interval",
    "means_of",
    "median_interval",
    "paired_difference",
    "paired_differences",
    "ratio_interval",
    "seed_spread",
    "sign_flip_p",
    "source_means",
    "studentized_intervals",
]
