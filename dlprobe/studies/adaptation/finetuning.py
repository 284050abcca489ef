"""Adapt a backbone on the images of a manifest, and score it as ``fit`` scores probes on a cache of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dlprobe.backbones import load_backbone
from dlprobe.data.images import MAX_PIXELS
from dlprobe.errors import DataError
from dlprobe.extraction.estimating import windows_per_s
from dlprobe.finetune import FinetuneSettings, LiveWindows
from dlprobe.finetune.settings import require_mode
from dlprobe.probes import Probe, make_card
from dlprobe.spec import canonical_json, fingerprint
from dlprobe.studies.displays import plot_results
from dlprobe.studies.fit import slug
from dlprobe.studies.fitting.calibration import BEST_F1, score_of
from dlprobe.studies.fitting.methods.heads import row_of
from dlprobe.studies.fitting.scoring import Calibration, Column, Pooled, score_images, temperatures, validate
from dlprobe.studies.fitting.splits import assign, files_by_part, sources_by_part
from dlprobe.studies.results import (
    compare,
    digest,
    grid_of,
    losses_to_everything,
    overview,
    side_by_side,
    summarise,
    tables_of_models,
)
from dlprobe.studies.runs import desk, prepare_run, settings_record, texts_of, write_run

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dlprobe.backbones.base import Backbone
    from dlprobe.data.manifest import Manifest
    from dlprobe.finetune.training import Chosen
    from dlprobe.probes import HeadSpec
    from dlprobe.studies.fitting.splits import Assignment

#: Folder of a run that holds adapted weights.
WEIGHTS_FOLDER = "weights"


@dataclass(frozen=True, slots=True, eq=False)
class FinetuneResult:
    """What an adaptation came to.

    Attributes
    ----------
    out : Path
        The run's folder.
    results, comparisons, images : DataFrame
        As of `dlprobe.studies.FitResult`; a mode is a model.
    probes : dict of str to Probe
        One for each mode, bound to the weights in the run's folder (in mode ``head``, to those of the backbone).
    notes : list of str
        What a reader must know.
    rejects : dict of str to str
        Why images could not be read, by path.
    """

    out: Path
    results: pd.DataFrame
    comparisons: pd.DataFrame
    images: pd.DataFrame
    probes: dict[str, Probe]
    notes: list[str]
    rejects: dict[str, str]

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
        """Draw the IoU by kind and mode; see `dlprobe.studies.displays.plot_results`."""
        return plot_results(self.results, ax, scheme=scheme)


@dataclass(frozen=True, slots=True, eq=False)
class _Adapted:
    name: str
    images: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    probe: Probe
    notes: list[str]
    record: dict[str, Any]
    weights: Path | None
    rejects: dict[str, str]

    @property
    def origin(self) -> dict[str, str]:
        """What was tested, as columns of a table."""
        return {name: self.record[name] for name in ("model_fingerprint", "manifest_sha256")}


def finetune(
    manifest: Manifest,
    backbone: Backbone,
    out: str | os.PathLike[str],
    *,
    modes: Sequence[str] = ("lora",),
    settings: FinetuneSettings | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> FinetuneResult:
    """Adapt a backbone in one or several modes; several are compared on the same tested sources.

    Windows, labels, objective, splits and scores are those of `dlprobe.studies.fit_caches` on a cache of the manifest,
    with one split. Run it again to go on after an interruption.

    Parameters
    ----------
    manifest : Manifest
        Images with their sizes.
    backbone : Backbone
        Is left as it is; every mode starts from a copy.
    out : path
        Folder of the run; what an earlier run wrote there is replaced. ``weights/<mode>.safetensors`` (for
        transformers a folder) is what ``--weights`` reads.
    modes : sequence of {'head', 'lora', 'full'}
    settings : FinetuneSettings, optional
        Defaults otherwise.
    max_pixels : int
        Images with more pixels are rejects.
    progress : callable, optional
        Called with the steps done and planned, for each mode anew.

    Returns
    -------
    FinetuneResult

    Raises
    ------
    OutputError
        If `out` exists and is no run.
    BackboneError, DataError, ProbeError, ExtraError
        If backbone, manifest, splits or settings do not allow it.
    """
    chosen = settings or FinetuneSettings()
    _require_modes(modes, backbone)
    target = prepare_run(out)
    identity = {
        "manifest": manifest.sha256,
        "model": backbone.spec.fingerprint,
        "modes": list(modes),
        "settings": settings_record(chosen),
    }
    with desk(target, fingerprint(identity)) as place:
        done = [
            _adapt(
                manifest, backbone, mode, chosen, desk=place, target=target, max_pixels=max_pixels, progress=progress
            )
            for mode in modes
        ]
        return _publish(target, done, modes, chosen)


def _publish(
    target: Path, done: Sequence[_Adapted], modes: Sequence[str], settings: FinetuneSettings
) -> FinetuneResult:
    """Make the tables, and write the run."""
    images = pd.concat([each.images for each in done], ignore_index=True)
    text = canonical_json({"modes": list(modes), **settings_record(settings)})
    origins = pd.DataFrame([{"model": each.name, **each.origin} for each in done])
    results = summarise(images, settings.seed).assign(flag="", threshold_policy=BEST_F1, settings=text)
    results = results.merge(origins, on="model", how="left")
    comparisons = compare(images, settings.seed).merge(origins, on="model", how="left").assign(settings=text)
    notes = [f"{each.name}: {note}" for each in done for note in each.notes] + losses_to_everything(comparisons)
    probes = {f"{slug(each.name)}/{row_of(settings.head)[0]}-{settings.scheme}": each.probe for each in done}
    record = {
        "settings": {"modes": list(modes), **settings_record(settings)},
        "models": {each.name: each.record for each in done},
        "notes": notes,
    }
    tables = {
        "results": results,
        "comparisons": comparisons,
        "images": images,
        **tables_of_models({each.name: each.tables for each in done}),
    }
    files = {name: path for each in done if each.weights for name, path in _files(each.weights).items()}
    texts = texts_of(
        {"results": overview(results), "comparisons": side_by_side(comparisons)}, [*notes, f"settings: {text}"]
    )
    write_run(target, record, tables, texts, probes, files=files)
    rejects = {path: reason for each in done for path, reason in each.rejects.items()}
    return FinetuneResult(target, results, comparisons, images, probes, notes, rejects)


def estimate_finetune(
    manifest: Manifest, backbone: Backbone, *, modes: Sequence[str], settings: FinetuneSettings
) -> list[dict[str, Any]]:
    """Time a few steps on noise, and say what each mode amounts to.

    Parameters
    ----------
    manifest, backbone, modes, settings
        As for `finetune`.

    Returns
    -------
    list of dict
        One for each mode: windows that train, choose and are tested, ``steps`` in all, ``trainable`` numbers of the
        backbone, ``s_per_step``, and ``eta_s``, which leaves decoding out.
    """
    from dlprobe.finetune.training import seconds_per_step

    _require_modes(modes, backbone)
    rows = []
    for mode in modes:
        mine = backbone if mode == "head" else copy.deepcopy(backbone)
        windows, split = _split_windows(manifest, mine, settings)
        train, val, test = (int((split.groups == group).sum()) for group in range(3))
        steps = windows.steps(split.groups == 0, settings.batch_windows) * settings.epochs
        embedded = (train + val * (settings.epochs + 1) + test) / windows_per_s(backbone, backbone.pins.batch_size)
        seconds, trainable = seconds_per_step(windows, split.groups == 0, mode, settings)
        rows.append(
            {
                "mode": mode,
                "train_windows": train,
                "val_windows": val,
                "test_windows": test,
                "steps": steps,
                "trainable": trainable,
                "s_per_step": round(seconds, 3),
                "eta_s": round(steps * seconds + embedded, 1),
            }
        )
    return rows


def _split_windows(
    manifest: Manifest, backbone: Backbone, settings: FinetuneSettings, *, max_pixels: int = MAX_PIXELS
) -> tuple[LiveWindows, Assignment]:
    """Return the windows of a manifest, and which of them train (group 0), choose (1) and are tested (2)."""
    windows = LiveWindows(manifest, backbone, settings.plan, max_pixels=max_pixels)
    split = assign(windows.windows, n_folds=0, hold_out=settings.hold_out, seed=settings.seed)
    return windows, split


def _require_modes(modes: Sequence[str], backbone: Backbone) -> None:
    from dlprobe.finetune.adapting import network_of

    for mode in modes:
        require_mode(mode)
        if mode != "head":
            network_of(backbone)
    if not modes or len(set(modes)) != len(modes):
        msg = f"modes {list(modes)} name none, or one twice; write such as --mode head --mode lora"
        raise DataError(msg)


def _adapt(
    manifest: Manifest,
    backbone: Backbone,
    mode: str,
    settings: FinetuneSettings,
    *,
    desk: Path,
    target: Path,
    max_pixels: int,
    progress: Callable[[int, int], None] | None,
) -> _Adapted:
    from dlprobe.finetune.training import train

    mine = backbone if mode == "head" else copy.deepcopy(backbone)
    windows, split = _split_windows(manifest, mine, settings, max_pixels=max_pixels)
    trained = np.isin(split.groups, split.final)
    choose = partial(_validate, windows, split, settings.head)
    state = desk / f"{mode}.state"
    chosen = train(windows, trained, mode, settings, validate=choose, state=state, progress=progress)
    weights = None
    if mode != "head":
        weights = _merged(mine, desk, mode)
        windows.backbone = _reloaded(backbone, weights)
    column = replace(_column(settings.head, chosen.weights, chosen.bias), threshold=chosen.epoch.threshold)
    column = replace(column, setting=f"{mode}, epoch {chosen.epoch.epoch + 1} of {settings.epochs}").within_scores()
    name = f"{backbone.spec.backbone} {mode}"
    [temperature] = temperatures(windows, split, [column])
    column = replace(column, temperature=temperature)
    calibration, pooled = Calibration(), Pooled()
    images = score_images(windows, split, [column], tallies=(calibration, pooled)).assign(model=name)
    tables = {"calibration": calibration.frame(), "pooled": pooled.frame().assign(grid=grid_of(images))}
    final = None if weights is None else target / WEIGHTS_FOLDER / weights.name
    probe = _probe(windows, split, settings, column, chosen=chosen, mode=mode, weights=final, start=backbone)
    record = {
        "model_fingerprint": windows.backbone.spec.fingerprint,
        "model": settings_record(windows.backbone.spec),
        "adapted_from": backbone.spec.fingerprint,
        "manifest_sha256": windows.manifest_sha256,
        "trainable": chosen.trainable,
        "history": [epoch._asdict() for epoch in chosen.history],
        "windows": int(windows.kept.sum()),
        "split": split.description,
        "caches": [],
    }
    return _Adapted(
        name, images, tables, probe, _notes(split, chosen, settings), record, weights, dict(windows.rejects)
    )


def _validate(
    windows: LiveWindows, split: Assignment, head: HeadSpec, weights: NDArray[np.float64], bias: float
) -> tuple[float, float]:
    [verdict] = validate(windows, split, [_column(head, weights, bias)])
    return verdict.f1, verdict.threshold


def _column(head: HeadSpec, weights: NDArray[np.float64], bias: float) -> Column:
    return Column(row_of(head)[0], head.scheme, 0, weights, bias)


def _merged(backbone: Backbone, desk: Path, mode: str) -> Path:
    from dlprobe.finetune.adapting import merge, network_of, write_weights

    merge(network_of(backbone))
    return write_weights(backbone, desk, mode)


def _files(weights: Path) -> dict[str, Path]:
    """Return the files of weights by their path in the run's folder."""
    files = [path for path in weights.rglob("*") if path.is_file()] if weights.is_dir() else [weights]
    return {f"{WEIGHTS_FOLDER}/{path.relative_to(weights.parent).as_posix()}": path for path in files}


def _reloaded(backbone: Backbone, weights: Path) -> Backbone:
    """Return a backbone with other weights, from their file: what is tested is what was saved."""
    spec, pins = backbone.spec, backbone.pins
    return load_backbone(
        spec.backbone,
        weights=weights,
        device=str(getattr(backbone, "device", pins.device)),
        engine=pins.engine,
        precision=pins.precision,
        layers=spec.layers,
        norm=spec.norm,
        window_px=spec.window_px,
        batch_size=pins.batch_size,
        compiled=pins.compiled,
    )


def _probe(
    windows: LiveWindows,
    split: Assignment,
    settings: FinetuneSettings,
    column: Column,
    *,
    chosen: Chosen,
    mode: str,
    weights: Path | None,
    start: Backbone,
) -> Probe:
    score = chosen.epoch.f1
    took_part = sources_by_part(split, windows.windows["source_id"], windows.kept)
    hashes = windows.image_hashes({source for sources in took_part.values() for source in sources})
    card = make_card(
        model=windows.backbone.spec,
        scheme=settings.scheme,
        objective=settings.objective,
        classes=["INPAINTED"],
        threshold=score_of(column.threshold),
        threshold_policy="best pooled F1 on the patches of validation images",
        metrics={"validation_best_f1@patch": score if np.isfinite(score) else None},
        data={
            "manifest_sha256": windows.manifest_sha256,
            "split": split.description,
            **took_part,
            **files_by_part(took_part, windows.windows, [hashes]),
            "held_out_generators": list(settings.hold_out),
        },
        notes=[f"licence of the backbone: {start.card.licence}", f"backbone trained on: {start.card.trained_on}"],
        method=f"fine-tuned, {mode}",
        setting=column.setting,
        adapted_from={"weights": start.weights, "model_fingerprint": start.spec.fingerprint},
        weights=start.weights if weights is None else str(weights),
    )
    return Probe(column.weights[None], np.atleast_1d(np.asarray(column.bias)), card)


def _notes(split: Assignment, chosen: Chosen, settings: FinetuneSettings) -> list[str]:
    epoch = chosen.epoch.epoch + 1
    why = "validation chose it" if settings.keep == "best" else "the last"
    notes = [f"split: {split.description}", f"epoch {epoch} of {settings.epochs} ({why})"]
    if settings.keep == "best" and epoch == settings.epochs > 1:
        notes.append("validation was still rising at the last epoch; give more epochs")
    return notes
