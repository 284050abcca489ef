"""What determines a fit, beside the caches."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dlprobe.data.labels import SCHEMES, THREE_CLASS_SCHEME, TRUTH_SCHEME
from dlprobe.errors import ProbeError
from dlprobe.probes.heads import LEARNING_RATES, OBJECTIVES, THREE_CLASS_OBJECTIVES, WEIGHT_DECAYS
from dlprobe.studies.fitting.calibration import ThresholdPolicy, parse_policy

if TYPE_CHECKING:
    from collections.abc import Iterable

BASELINES = ("logistic", "logistic-exact", "ridge", "lda", "sgd", "knn")
_CHOICES = {"layers": ("together", "each"), "precision": ("float32", "bfloat16")}


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """Settings of `dlprobe.studies.fit_caches`.

    Parameters
    ----------
    schemes : tuple of str
        Labelling schemes.
    objectives : tuple of str
        What heads minimise, of `dlprobe.probes.heads.OBJECTIVES`. Three classes go with ``dice-batch`` and
        ``dice-window`` alone.
    learning_rates, weight_decays, positive_weights : tuple of float
        The grid: a head for each combination, objective, scheme, seed and fold.
    layers : {"together", "each"}
        Of caches with several layers: heads on all features, or beside these heads on each layer alone.
    epochs : int
        Streams over the caches, at most.
    patience : int, optional
        Epochs after which a head stops that got no better on validation; it keeps its best epoch. Without it, heads
        are fitted for all epochs and keep the last.
    batch_windows : int
        Windows in a mini-batch, over which ``dice-batch`` takes its Dice.
    n_folds : int, optional
        See `dlprobe.studies.fitting.splits.assign`.
    hold_out : tuple of str
        Generators whose images are tested but neither train nor choose.
    train_sources : int, optional
        Train on this many sources only; the same ones choose and are tested as without it.
    seeds : int
        Fits of each head; with more than one, each seed also draws Poisson weights of windows.
    baselines : tuple of str
        Of `BASELINES`; marking everything stands beside them always.
    baseline_patches : int
        Patches on which each of the sampled baselines is fitted, at most (a tenth of them for ``knn``).
    baseline_c : tuple of float
        Inverses of the L2 penalty of the logistic regressions, on standardised embeddings.
    threshold_policy : str
        ``best-f1``, ``image-fpr:ALPHA`` or ``area:ALPHA``: how the threshold on a probe's card is chosen.
    precision : {"float32", "bfloat16"}
        Of the matrix products of the fit.
    device : str
        Where heads are fitted.
    seed : int
        Deals sources, draws initial weights, orders windows, samples patches, resamples sources.

    Raises
    ------
    ProbeError, RegistryError, MetricError
        If a name stands for nothing, or a number is out of its range.
    """

    schemes: tuple[str, ...] = (TRUTH_SCHEME, "autoencoded-fake", "autoencoded-ignored")
    objectives: tuple[str, ...] = ("dice-batch",)
    learning_rates: tuple[float, ...] = LEARNING_RATES
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    positive_weights: tuple[float, ...] = (1.0,)
    layers: Literal["together", "each"] = "together"
    epochs: int = 12
    patience: int | None = 3
    batch_windows: int = 16
    n_folds: int | None = None
    hold_out: tuple[str, ...] = ()
    train_sources: int | None = None
    seeds: int = 1
    baselines: tuple[str, ...] = ("logistic", "ridge", "lda")
    baseline_patches: int = 20_000
    baseline_c: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    threshold_policy: str = "best-f1"
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for scheme in self.schemes:
            SCHEMES[scheme]  # raises with the nearest names
        parse_policy(self.threshold_policy)
        self._require_choices()
        self._require_numbers()
        if THREE_CLASS_SCHEME in self.schemes and not set(self.objectives) & set(THREE_CLASS_OBJECTIVES):
            choice = " or ".join(THREE_CLASS_OBJECTIVES)
            msg = f"three classes cannot be learned by {', '.join(self.objectives)}; add the objective {choice}"
            raise ProbeError(msg)

    def _require_choices(self) -> None:
        _require_names("objective", self.objectives, OBJECTIVES)
        _require_names("baseline", self.baselines, BASELINES)
        for name, choices in _CHOICES.items():
            _require_names(name, [getattr(self, name)], choices)
        for name in ("schemes", "objectives", "learning_rates", "weight_decays", "positive_weights", "baseline_c"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                msg = f"{name} are {list(values)}; give at least one, and each once"
                raise ProbeError(msg)
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            msg = f"no device {self.device!r}; write cpu, cuda or cuda:N"
            raise ProbeError(msg)

    def _require_numbers(self) -> None:
        for name in ("learning_rates", "positive_weights", "baseline_c", "weight_decays"):
            for value in getattr(self, name):
                if not math.isfinite(value) or value < 0 or (value == 0 and name != "weight_decays"):
                    least = "0 or more" if name == "weight_decays" else "above 0"
                    msg = f"{name} holds {value:g}; each must be a number {least}"
                    raise ProbeError(msg)
        for name in ("epochs", "batch_windows", "seeds", "baseline_patches", "patience", "train_sources"):
            value = getattr(self, name)
            if value is not None and value < 1:
                msg = f"{name} is {value}; it must be at least 1"
                raise ProbeError(msg)
        if self.seed < 0:
            msg = f"seed is {self.seed}; it must be 0 or more"
            raise ProbeError(msg)

    @property
    def policy(self) -> ThresholdPolicy:
        """The threshold policy."""
        return parse_policy(self.threshold_policy)

    @property
    def binary_schemes(self) -> tuple[str, ...]:
        """The schemes that baselines are taught: those with two sides, or that of the truth if there are none."""
        return tuple(scheme for scheme in self.schemes if scheme != THREE_CLASS_SCHEME) or (TRUTH_SCHEME,)


def _require_names(kind: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"write one of {', '.join(known)}"
            msg = f"no {kind} {name!r}; {hint}"
            raise ProbeError(msg)
