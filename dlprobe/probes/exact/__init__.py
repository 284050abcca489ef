"""Baselines that have one right answer, streamed: memory does not grow with the number of patches."""

from dlprobe.probes.exact.newton import LogisticSolution, Rows, stream_logistic
from dlprobe.probes.exact.second_moments import ClassMoments, LinearFit, SecondMoments, lda, lda_path, ridge_path

__all__ = [
    "ClassMoments",
    "LinearFit",
    "LogisticSolution",
    "Rows",
    "SecondMoments",
    "lda",
    "lda_path",
    "ridge_path",
    "stream_logistic",
]
