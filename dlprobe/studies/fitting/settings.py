"""What determines a fit, beside the caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dlprobe.data.labels import TRUTH_SCHEME


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """Settings of `dlprobe.studies.fit_caches`.

    Parameters
    ----------
    schemes : tuple of str
        Labelling schemes.
    learning_rates, weight_decays : tuple of float
        The grid: a head for each pair, scheme and fold.
    epochs : int
        Streams over the caches.
    batch_windows : int
        Windows in a mini-batch, over which ``dice-batch`` takes its Dice.
    n_folds : int, optional
        See `dlprobe.studies.fitting.splits.assign`.
    hold_out : tuple of str
        Generators whose images are tested but neither train nor choose.
    baseline_patches : int
        Patches on which each logistic regression is fitted, at most.
    baseline_c : float
        Inverse of the L2 penalty of the logistic regressions, on standardised embeddings.
    precision : {"float32", "bfloat16"}
        Of the matrix products of the fit.
    device : str
        Where heads are fitted.
    seed : int
        Deals sources, draws initial weights, orders windows, samples patches, resamples sources.
    """

    schemes: tuple[str, ...] = (TRUTH_SCHEME, "autoencoded-fake", "autoencoded-ignored")
    learning_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    weight_decays: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    epochs: int = 12
    batch_windows: int = 16
    n_folds: int | None = None
    hold_out: tuple[str, ...] = ()
    baseline_patches: int = 50_000
    baseline_c: float = 0.01
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = 0
