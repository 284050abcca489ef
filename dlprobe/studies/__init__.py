"""Questions asked of caches: fits, comparisons, tables."""

from dlprobe.studies.fit import FitResult, fit_caches
from dlprobe.studies.fitting.settings import FitSettings
from dlprobe.studies.runs import Run, read_run

__all__ = ["FitResult", "FitSettings", "Run", "fit_caches", "read_run"]
