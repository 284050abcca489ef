"""Fit heads and baselines on caches, choose them on validation sources, score them on tested ones, save them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dlprobe.data import SCHEMES
from dlprobe.probes import Probe, make_card
from dlprobe.studies.fitting.pool import open_pools
from dlprobe.studies.fitting.scoring import score_images
from dlprobe.studies.fitting.selection import select_dice, select_logistic
from dlprobe.studies.fitting.settings import FitSettings
from dlprobe.studies.fitting.splits import assign
from dlprobe.studies.results import compare, losses_to_everything, overview, summarise
from dlprobe.studies.runs import prepare_run, settings_record, write_run

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dlprobe.studies.fitting.pool import CachePool
    from dlprobe.studies.fitting.scoring import Column
    from dlprobe.studies.fitting.selection import Selection
    from dlprobe.studies.fitting.splits import Assignment

#: Of the folder in which a model's probe of each fold is kept.
FOLDS_FOLDER = "folds"


@dataclass(frozen=True, slots=True, eq=False)
class FitResult:
    """What a fit found.

    Attributes
    ----------
    out : Path
        The run's folder.
    results, comparisons : DataFrame
        See `dlprobe.studies.results`.
    images : DataFrame
        Scores of every tested image.
    probes : dict of str to Probe
        By their path below ``probes``, without ending: ``<model>/<method>-<scheme>`` for new images, and
        ``<model>/folds/<method>-<scheme>-<fold>``.
    notes : list of str
        What a reader must know: the split, edges of the grid, kinds lost to marking everything.
    """

    out: Path
    results: pd.DataFrame
    comparisons: pd.DataFrame
    images: pd.DataFrame
    probes: dict[str, Probe]
    notes: list[str]

    def summary(self) -> pd.DataFrame:
        """Return the table that people read first."""
        return overview(self.results)


@dataclass(frozen=True, slots=True, eq=False)
class _ModelFit:
    images: pd.DataFrame
    probes: dict[str, Probe]
    notes: list[str]
    record: dict[str, Any]


def fit_caches(
    caches: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    test: Sequence[str | os.PathLike[str]] = (),
    settings: FitSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FitResult:
    """Fit every head of the grid beside the baselines, and score the chosen ones on sources they never saw.

    Caches of one model_fingerprint are pooled; of different ones compared on the windows that all hold.

    Parameters
    ----------
    caches : sequence of path
        Complete caches.
    out : path
        Folder of the run; an earlier run there is replaced.
    test : sequence of path
        Caches of data sets that are tested only; their sources are left out of training.
    settings : FitSettings, optional
        Defaults otherwise.
    progress : callable, optional
        Called with the steps done and in all, for each model anew.

    Returns
    -------
    FitResult

    Raises
    ------
    OutputError
        If `out` exists and is no run.
    CacheError, DataError, ProbeError, RegistryError
        If caches, splits, schemes or the grid do not allow a fit.
    """
    chosen = settings or FitSettings()
    for scheme in chosen.schemes:
        SCHEMES[scheme]  # raises with the nearest names
    target = prepare_run(out)
    pools = open_pools(caches, test)
    fits = {
        name: _fit_model(name, pool, is_test, chosen, progress)
        for name, (pool, is_test) in zip(_names([pool for pool, _ in pools]), pools, strict=True)
    }
    images = pd.concat([fit.images for fit in fits.values()], ignore_index=True)
    results, comparisons = summarise(images, chosen.seed), compare(images, chosen.seed)
    probes = {name: probe for fit in fits.values() for name, probe in fit.probes.items()}
    notes = [f"{name}: {note}" for name, fit in fits.items() for note in fit.notes] + losses_to_everything(comparisons)
    record = {
        "settings": settings_record(chosen),
        "models": {name: fit.record for name, fit in fits.items()},
        "notes": notes,
    }
    tables = {"results": results, "comparisons": comparisons, "images": images}
    write_run(target, record, tables, probes, overview(results))
    return FitResult(target, results, comparisons, images, probes, notes)


def _fit_model(
    name: str,
    pool: CachePool,
    is_test: NDArray[np.bool_],
    settings: FitSettings,
    progress: Callable[[int, int], None] | None,
) -> _ModelFit:
    assignment = assign(
        pool.windows,
        kept=pool.kept,
        n_folds=settings.n_folds,
        hold_out=settings.hold_out,
        test=is_test,
        seed=settings.seed,
    )
    dice = select_dice(pool, assignment, settings, progress)
    logistic = select_logistic(pool, assignment, settings)
    images = score_images(pool, assignment, [*dice.tested, *logistic.tested])
    probes = {}
    for selection in (dice, logistic):
        for column in (*selection.final, *selection.tested):
            path = f"{column.method}-{column.scheme}"
            path = path if column.fold < 0 else f"{FOLDS_FOLDER}/{path}-{column.fold}"
            probes[f"{slug(name)}/{path}"] = _probe(pool, assignment, settings, selection, column)
    return _ModelFit(
        images.assign(model=name),
        probes,
        [f"split: {assignment.description}", *dice.notes, *logistic.notes],
        _record(pool, assignment),
    )


def _probe(
    pool: CachePool, assignment: Assignment, settings: FitSettings, selection: Selection, column: Column
) -> Probe:
    fold = assignment.folds[max(column.fold, 0)]
    trained = assignment.final if column.fold < 0 else fold.train
    sources = pool.windows["source_id"][np.isin(assignment.groups, trained) & pool.kept]
    over_folds = column.fold < 0 and len(assignment.folds) > 1
    policy = "best pooled F1 on the patches of validation images" + (", median over folds" if over_folds else "")
    origin = pool.caches[0].origin
    card = make_card(
        model=pool.model_spec,
        scheme=column.scheme,
        objective="dice-batch" if column.method == "dice" else "logistic",
        classes=["INPAINTED"],
        threshold=float(1 / (1 + np.exp(-column.threshold))),
        threshold_policy=policy,
        metrics={"validation_best_f1@patch": _finite(selection.validation_f1[column.method, column.scheme])},
        data={
            "cache_fingerprints": [cache.cache_spec.fingerprint for cache in pool.caches],
            "split": assignment.description,
            "train_sources": sorted(sources.unique()),
            "held_out_generators": list(settings.hold_out),
        },
        notes=[f"licence of the backbone: {origin['licence']}", f"backbone trained on: {origin['trained_on']}"],
        method=column.method,
        setting=column.setting,
        weights=origin["weights"],
    )
    return Probe(column.weights[None].astype(np.float64), np.array([column.bias]), card)


def _record(pool: CachePool, assignment: Assignment) -> dict[str, Any]:
    return {
        "model_fingerprint": pool.model_spec.fingerprint,
        "model": settings_record(pool.model_spec),
        "caches": [
            {"path": str(cache.path), "cache_fingerprint": cache.cache_spec.fingerprint, "windows": len(cache)}
            for cache in pool.caches
        ],
        "windows": int(pool.kept.sum()),
        "split": assignment.description,
        "folds": [{"train": fold.train, "val": fold.val, "test": fold.test} for fold in assignment.folds],
    }


def _names(pools: Sequence[CachePool]) -> list[str]:
    """Name each model as shortly as tells them apart: the backbone, then layers, window and a piece of fingerprint."""
    names = [pool.model_spec.backbone for pool in pools]
    for i, pool in enumerate(pools):
        if names.count(pool.model_spec.backbone) > 1:
            spec = pool.model_spec
            layers = "+".join(map(str, spec.layers)) or "-"
            names[i] = f"{spec.backbone} layers {layers} window {spec.window_px} {spec.fingerprint[:6]}"
    return names


def slug(name: str) -> str:
    """Return a name as a folder name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-")


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
