"""Questions asked of caches: fits, comparisons, tables."""

from dlprobe.studies.fit import FitResult, fit_caches
from dlprobe.studies.fitting.settings import FitSettings
from dlprobe.studies.parity import CacheComparison, compare_caches
from dlprobe.studies.runs import Run, read_run

__all__ = ["CacheComparison", "FitResult", "FitSettings", "Run", "compare_caches", "fit_caches", "read_run"]
