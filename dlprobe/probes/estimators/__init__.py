"""scikit-learn estimators: full batch, float64, two classes; the larger label is the positive class."""

from dlprobe.probes.estimators.dice import DiceProbe
from dlprobe.probes.estimators.exact import RidgeProbe, StreamingLogisticRegression
from dlprobe.probes.estimators.scorers import EstimatorError, KnownRowsScorer

__all__ = ["DiceProbe", "EstimatorError", "KnownRowsScorer", "RidgeProbe", "StreamingLogisticRegression"]
