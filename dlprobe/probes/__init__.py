"""Linear probes on embeddings given as arrays: heads fitted in one stream, exact baselines, and the saved result."""

from typing import TYPE_CHECKING, Any

from dlprobe.probes.heads import HeadSpec, default_grid, edge_of_grid
from dlprobe.probes.moments import GroupMoments
from dlprobe.probes.probe import Probe, make_card

if TYPE_CHECKING:
    from dlprobe.probes.baselines import LogisticFit, NearestPatches, fit_logistic, fit_nearest, fit_sgd
    from dlprobe.probes.estimators import DiceProbe, KnownRowsScorer, RidgeProbe, StreamingLogisticRegression
    from dlprobe.probes.exchange import export_onnx, pull, push
    from dlprobe.probes.multihead import FittedHead, HeadBatch, fit_heads

#: Names whose modules load torch or scikit-learn; they are imported when they are first asked for.
_LAZY = {
    "DiceProbe": "estimators",
    "FittedHead": "multihead",
    "HeadBatch": "multihead",
    "KnownRowsScorer": "estimators",
    "LogisticFit": "baselines",
    "NearestPatches": "baselines",
    "RidgeProbe": "estimators",
    "StreamingLogisticRegression": "estimators",
    "export_onnx": "exchange",
    "fit_heads": "multihead",
    "fit_logistic": "baselines",
    "fit_nearest": "baselines",
    "fit_sgd": "baselines",
    "pull": "exchange",
    "push": "exchange",
}

__all__ = [
    "DiceProbe",
    "FittedHead",
    "GroupMoments",
    "HeadBatch",
    "HeadSpec",
    "KnownRowsScorer",
    "LogisticFit",
    "NearestPatches",
    "Probe",
    "RidgeProbe",
    "StreamingLogisticRegression",
    "default_grid",
    "edge_of_grid",
    "export_onnx",
    "fit_heads",
    "fit_logistic",
    "fit_nearest",
    "fit_sgd",
    "make_card",
    "pull",
    "push",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
