"""Fit heads and baselines on caches, choose them on validation sources, score them on tested ones, save them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dlprobe.data.labels import CLASSES
from dlprobe.data.provenance import Provenance
from dlprobe.probes import Probe, make_card
from dlprobe.spec import canonical_json, fingerprint
from dlprobe.studies.displays import plot_comparisons, plot_results
from dlprobe.studies.fitting.calibration import BEST_F1, calibrate, promise_text, score_of
from dlprobe.studies.fitting.census import require_scorable, require_varied
from dlprobe.studies.fitting.methods.base import Task
from dlprobe.studies.fitting.pool import open_pools, share_grid
from dlprobe.studies.fitting.scoring import Calibration, Pooled, score_images
from dlprobe.studies.fitting.selection import select
from dlprobe.studies.fitting.settings import FitSettings
from dlprobe.studies.fitting.splits import assign, files_by_part, sources_by_part
from dlprobe.studies.results import (
    AUTHENTIC_VARIANTS,
    FAKE_VARIANTS,
    compare,
    digest,
    flagged_rows,
    grid_of,
    losses_to_everything,
    on_thresholds,
    overview,
    side_by_side,
    summarise,
    tables_of_models,
)
from dlprobe.studies.runs import desk, prepare_run, settings_record, texts_of, write_run

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dlprobe.metrics import Guarantee
    from dlprobe.studies.fitting.calibration import ThresholdPolicy
    from dlprobe.studies.fitting.pool import CachePool
    from dlprobe.studies.fitting.scoring import Column
    from dlprobe.studies.fitting.selection import Selection
    from dlprobe.studies.fitting.splits import Assignment
    from dlprobe.studies.pixels import PixelGrid

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
        ``<model>/folds/<method>-<scheme>-<fold>``, further seeds with ``-seed<seed>`` at the end.
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

    def short(self) -> pd.DataFrame:
        """Return of that table what a terminal has room for; see `dlprobe.studies.results.digest`."""
        return digest(self.results)

    def frame(self) -> pd.DataFrame:
        """Return the table of results."""
        return self.results

    def plot(self, ax: Axes | None = None, scheme: str | None = None) -> Axes:
        """Draw the IoU by kind and method; see `dlprobe.studies.displays.plot_results`."""
        return plot_results(self.results, ax, scheme=scheme)

    def plot_comparisons(self, ax: Axes | None = None) -> Axes:
        """Draw the paired differences; see `dlprobe.studies.displays.plot_comparisons`."""
        return plot_comparisons(self.comparisons, ax)


@dataclass(frozen=True, slots=True, eq=False)
class _ModelFit:
    name: str
    pool: CachePool
    assignment: Assignment
    selection: Selection
    promises: dict[int, Guarantee]
    images: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    notes: list[str]


def fit_caches(
    caches: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    test: Sequence[str | os.PathLike[str]] = (),
    settings: FitSettings | None = None,
    allow_partial: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> FitResult:
    """Fit every head of the grid beside the baselines, and score the chosen ones on sources they never saw.

    Caches of one model_fingerprint are pooled. Different models are compared on the windows that all hold, or, where
    their windows or patches differ in size, on the pixels that windows of all show.

    Parameters
    ----------
    caches : sequence of path
        Caches, complete unless `allow_partial`.
    out : path
        Folder of the run; what an earlier run wrote there is replaced, and nothing else. An interrupted fit goes on
        from its last epoch when it is asked for again, to the same result.
    test : sequence of path
        Caches of data sets that are tested only; their sources are left out of training.
    settings : FitSettings, optional
        Defaults otherwise.
    allow_partial : bool
        Take the blocks that are there of incomplete caches, and say so; they are refused otherwise.
    progress : callable, optional
        Called with the steps done and in all, for each stream anew.

    Returns
    -------
    FitResult

    Raises
    ------
    OutputError
        If `out` exists and is no run.
    CacheError, DataError, ProbeError, MetricError
        If caches, splits, schemes, the grid or the policy do not allow a fit.
    """
    chosen = settings or FitSettings()
    target = prepare_run(out)
    pools = open_pools(caches, test, allow_partial=allow_partial)
    pixels = share_grid([pool for pool, _ in pools])
    names = _names([pool for pool, _ in pools])
    with desk(target, _identity(pools, chosen)) as place:
        fits = [
            _fit_model(name, pool, is_test, pixels, settings=chosen, place=place, progress=progress)
            for name, (pool, is_test) in zip(names, pools, strict=True)
        ]
        return _publish(target, fits, chosen)


def _publish(target: Path, fits: Sequence[_ModelFit], settings: FitSettings) -> FitResult:
    """Make the tables and the cards, and write the run."""
    images = pd.concat([fit.images for fit in fits], ignore_index=True)
    comparisons = compare(images, settings.seed)
    text = canonical_json(settings_record(settings))
    scores = _with_remarks(summarise(images, settings.seed), fits)
    results = pd.concat(
        [scores, *(flagged_rows(fit.name, fit.selection.flags) for fit in fits)], ignore_index=True
    ).assign(threshold_policy=settings.threshold_policy, settings=text)
    origins = pd.DataFrame([{"model": fit.name, **_fingerprints(fit.pool)} for fit in fits])
    results = results.merge(origins, on="model", how="left")
    comparisons = comparisons.merge(origins, on="model", how="left").assign(settings=text)
    probes = {path: probe for fit in fits for path, probe in _probes(fit, settings, results).items()}
    notes = [f"{fit.name}: {note}" for fit in fits for note in fit.notes]
    notes += [*on_thresholds(images), *losses_to_everything(comparisons)]
    record = {
        "settings": settings_record(settings),
        "models": {fit.name: _record(fit.pool, fit.assignment) for fit in fits},
        "notes": notes,
    }
    tables = {
        "results": results,
        "comparisons": comparisons,
        "images": images,
        **tables_of_models({fit.name: fit.tables for fit in fits}),
    }
    below = [
        *notes,
        f"settings: {text}",
        *(f"{key}: {value}" for row in origins.to_dict("records") for key, value in row.items()),
    ]
    write_run(
        target,
        record,
        tables,
        texts_of({"results": overview(results), "comparisons": side_by_side(comparisons)}, below),
        probes,
    )
    return FitResult(target, results, comparisons, images, probes, notes)


def _with_remarks(scores: pd.DataFrame, fits: Sequence[_ModelFit]) -> pd.DataFrame:
    """Say in the column ``flag`` what is wrong with rows that have scores."""
    remarks = {(fit.name, *row): "; ".join(texts) for fit in fits for row, texts in fit.selection.remarks.items()}
    keys = zip(scores["model"], scores["method"], scores["scheme"], strict=True)
    return scores.assign(flag=[remarks.get(key, "") for key in keys])


def _fit_model(
    name: str,
    pool: CachePool,
    is_test: NDArray[np.bool_],
    pixels: PixelGrid | None,
    *,
    settings: FitSettings,
    place: Path,
    progress: Callable[[int, int], None] | None,
) -> _ModelFit:
    policy = settings.policy
    assignment = assign(
        pool.windows,
        kept=pool.kept,
        n_folds=settings.n_folds,
        hold_out=settings.hold_out,
        test=is_test,
        calibration=policy.sources_needed,
        train_sources=settings.train_sources,
        seed=settings.seed,
    )
    require_scorable(pool, assignment, calibration=policy.sources_needed)
    mine = place / slug(name)
    mine.mkdir(exist_ok=True)
    moments = pool.group_moments(assignment.groups)
    require_varied(pool, assignment, moments)
    selection = select(Task(pool, assignment, settings, moments, mine, progress))
    promises: dict[int, Guarantee] = {}
    if policy.kind != BEST_F1:
        selection, promises = _promised(pool, assignment, selection, policy)
    calibration, pooled = Calibration(), Pooled()
    images = score_images(pool, assignment, selection.tested, pixels, (calibration, pooled)).assign(model=name)
    notes = [f"split: {assignment.description}", *pool.gaps(), *selection.notes]
    if pixels is not None and pixels.n_left_out:
        notes.append(f"{pixels.n_left_out} images left out: not all models hold them at one working size")
    tables = {"calibration": calibration.frame(), "pooled": pooled.frame().assign(grid=grid_of(images))}
    return _ModelFit(name, pool, assignment, selection, promises, images, tables, notes)


def _promised(
    pool: CachePool, assignment: Assignment, selection: Selection, policy: ThresholdPolicy
) -> tuple[Selection, dict[int, Guarantee]]:
    """Give every chosen column the threshold that keeps the promise; return these by the columns' identity."""
    columns = [*selection.tested, *selection.final]
    found = calibrate(pool, assignment, columns, policy)
    done = [
        replace(column, promised=each.threshold).within_scores() for column, each in zip(columns, found, strict=True)
    ]
    n = len(selection.tested)
    promises = {id(column): each._replace(threshold=column.promised) for column, each in zip(done, found, strict=True)}
    return replace(selection, tested=done[:n], final=done[n:]), promises


def _probes(fit: _ModelFit, settings: FitSettings, results: pd.DataFrame) -> dict[str, Probe]:
    """Return the probes of a model by their path: one for new images, and one for each fold and seed."""
    found = {}
    hashes = [cache.image_hashes for cache in fit.pool.caches]
    for column in (*fit.selection.final, *fit.selection.tested):
        if column.nearest is not None:
            continue
        path = f"{column.method}-{column.scheme}"
        if column.fold >= 0:
            path = f"{FOLDS_FOLDER}/{path}-{column.fold}"
            path += f"-seed{column.seed}" if column.seed != settings.seed else ""
        found[f"{slug(fit.name)}/{path}"] = _probe(fit, settings, results, column, hashes)
    return found


def _probe(
    fit: _ModelFit, settings: FitSettings, results: pd.DataFrame, column: Column, hashes: Sequence[Mapping[str, str]]
) -> Probe:
    pool, assignment = fit.pool, fit.assignment
    took_part = sources_by_part(assignment, pool.windows["source_id"], pool.kept, column.fold)
    promise = fit.promises.get(id(column))
    policy = promise_text(promise) if promise else "best pooled F1 on the patches of validation images"
    if not promise and column.fold < 0 and len(assignment.folds) > 1:
        policy += ", median over folds"
    metrics: dict[str, Any] = {"validation_best_f1@patch": _finite(column.f1)}
    if column.fold < 0:
        metrics |= _test_metrics(results, fit.name, column)
    origin = pool.caches[0].origin
    identity = {**_fingerprints(pool), "split": assignment.description, **took_part}
    card = make_card(
        model=pool.model_spec,
        scheme=column.scheme,
        objective=column.objective,
        classes=[kind.name for kind in CLASSES] if column.weights.ndim == 2 else [Provenance.INPAINTED.name],
        threshold=score_of(column.threshold if promise is None else promise.threshold),
        threshold_policy=policy,
        metrics=metrics,
        data={
            "cache_fingerprints": [cache.cache_spec.fingerprint for cache in pool.caches],
            "manifest_sha256": [cache.cache_spec.manifest_sha256 for cache in pool.caches],
            "data_fingerprint": fingerprint(identity),
            "split": assignment.description,
            **took_part,
            **files_by_part(took_part, pool.windows, hashes),
            "held_out_generators": list(settings.hold_out),
        },
        notes=[f"licence of the backbone: {origin['licence']}", f"backbone trained on: {origin['trained_on']}"],
        method=column.method,
        setting=column.setting,
        seed=column.seed,
        weights=origin["weights"],
        guarantee=None if promise is None else promise._replace(threshold=score_of(promise.threshold))._asdict(),
    )
    weights = np.atleast_2d(column.weights).astype(np.float64)
    return Probe(weights, np.atleast_1d(np.asarray(column.bias, np.float64)), card)


def _test_metrics(results: pd.DataFrame, model: str, column: Column) -> dict[str, Any]:
    """Return what the table says of a probe's row: of the probe itself, or of its setting over nested folds."""
    rows = results[
        (results["model"] == model)
        & (results["method"] == column.method)
        & (results["scheme"] == column.scheme)
        & results["kind"].isin([*FAKE_VARIANTS, *AUTHENTIC_VARIANTS])
    ]
    return {
        f"{row.kind} {row.metric}": {
            "value": _finite(row.value),
            "low": _finite(row.low),
            "high": _finite(row.high),
            "sources": int(row.n_sources),
        }
        for row in rows.itertuples()
    }


def _record(pool: CachePool, assignment: Assignment) -> dict[str, Any]:
    return {
        "model_fingerprint": pool.model_spec.fingerprint,
        "model": settings_record(pool.model_spec),
        "caches": [
            {"path": _place(cache.path), "cache_fingerprint": cache.cache_spec.fingerprint, "windows": len(cache)}
            for cache in pool.caches
        ],
        "windows": int(pool.kept.sum()),
        "split": assignment.description,
        "folds": [{"train": fold.train, "val": fold.val, "test": fold.test} for fold in assignment.folds],
    }


def _place(path: Path | str) -> str:
    """Return where a cache lies, whichever folder is the current one later."""
    return path if isinstance(path, str) else str(path.absolute())


def _fingerprints(pool: CachePool) -> dict[str, str]:
    """Return model, caches and manifests of a pool as columns of a table."""
    return {
        "model_fingerprint": pool.model_spec.fingerprint,
        "cache_fingerprint": " ".join(cache.cache_spec.fingerprint for cache in pool.caches),
        "manifest_sha256": " ".join(cache.cache_spec.manifest_sha256 for cache in pool.caches),
    }


def _identity(pools: Sequence[tuple[CachePool, NDArray[np.bool_]]], settings: FitSettings) -> str:
    """Return the fingerprint of all that determines a fit."""
    windows = [hashlib.sha256(pool.kept.tobytes() + is_test.tobytes()).hexdigest() for pool, is_test in pools]
    caches = [_fingerprints(pool) for pool, _ in pools]
    return fingerprint({"settings": settings_record(settings), "caches": caches, "windows": windows})


def _names(pools: Sequence[CachePool]) -> list[str]:
    """Name each model as shortly as tells them apart: the backbone, its weights, then layers, window, fingerprint."""
    backbones = [pool.model_spec.backbone for pool in pools]
    weights = [PurePath(pool.caches[0].origin["weights"]).name for pool in pools]
    loaded = list(zip(backbones, weights, strict=True))
    names = []
    for (backbone, given), pool in zip(loaded, pools, strict=True):
        alone, apart = backbones.count(backbone) == 1, len({w for b, w in loaded if b == backbone}) > 1
        name = f"{backbone} ({given})" if apart else backbone
        if not alone and loaded.count((backbone, given)) > 1:
            spec = pool.model_spec
            layers = "+".join(map(str, spec.layers)) or "-"
            name = f"{name} layers {layers} window {spec.window_px} {spec.fingerprint[:6]}"
        names.append(name)
    return names


def slug(name: str) -> str:
    """Return a name as a folder name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-")


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
