"""Questions asked of caches and images: fits, comparisons, evaluations, tables."""

from dlprobe.studies.adaptation.finetuning import FinetuneResult, estimate_finetune, finetune
from dlprobe.studies.evaluating import Evaluation, evaluate, evaluate_files, read_evaluation
from dlprobe.studies.evaluation.settings import EvaluateSettings
from dlprobe.studies.fit import FitResult, fit_caches
from dlprobe.studies.fitting.settings import FitSettings
from dlprobe.studies.parity import CacheComparison, compare_caches
from dlprobe.studies.runs import Run, read_run

__all__ = [
    "CacheComparison",
    "EvaluateSettings",
    "Evaluation",
    "FinetuneResult",
    "FitResult",
    "FitSettings",
    "Run",
    "compare_caches",
    "estimate_finetune",
    "evaluate",
    "evaluate_files",
    "finetune",
    "fit_caches",
    "read_evaluation",
    "read_run",
]
