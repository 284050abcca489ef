"""Heads by gradient descent: the grid of all folds and seeds in one stream, the chosen cells again on all groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.cache.stream import epoch_seed
from dlprobe.data.labels import THREE_CLASS_SCHEME
from dlprobe.probes import HeadSpec, default_grid, edge_of_grid, fit_heads
from dlprobe.probes.heads import THREE_CLASS_OBJECTIVES
from dlprobe.spec import fingerprint
from dlprobe.studies.fitting.methods.base import Candidates, edge_of_path
from dlprobe.studies.fitting.pool import minibatches, steps_per_epoch
from dlprobe.studies.fitting.scoring import Column, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from dlprobe.probes import FittedHead, HeadBatch
    from dlprobe.probes.multihead.batches import WindowWeights
    from dlprobe.studies.fitting.methods.base import Row, Task
    from dlprobe.studies.fitting.settings import FitSettings

#: Below so many steps a head is as likely unfinished as unable.
FEW_STEPS = 100
#: What the objective of the recipe is called in tables.
DICE = "dice"
#: Groups of a cell, which stands for the heads of all folds and seeds.
_ANY = (0,)


class HeadGrid:
    """Every objective, scheme, setting, seed and fold as a head of one fit.

    Parameters
    ----------
    task : Task
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.fitted: list[FittedHead] = []

    def candidates(self) -> Candidates:
        """Fit the grid; heads that are flagged are out."""
        settings = self.task.settings
        heads = self._grid(dict.fromkeys(self.task.trains), range(settings.seed, settings.seed + settings.seeds))
        watch = None if settings.patience is None else self._validation_f1
        weights: WindowWeights = "ones" if settings.seeds == 1 else "poisson"
        self.fitted = self._fit(heads, "heads", watch, settings.patience, weights)
        found = Candidates(notes=self._notes())
        for head in self.fitted:
            if head.flag:
                found.flags.setdefault(row_of(head.spec), head.flag)
            else:
                found.columns.extend(self._column(head, fold) for fold in self._folds_of(head.spec))
        return found

    def final(self, chosen: Mapping[Row, Hashable]) -> Candidates:
        """Fit the chosen cells on all groups, for as many epochs as were best in the median of the folds.

        Every window counts once, also where seeds drew weights of windows: no seed is compared any more.
        """
        task = self.task
        wanted = {cell: self._best_epoch(cell) for cell in chosen.values() if isinstance(cell, HeadSpec)}
        specs = [replace(cell, train_groups=task.assignment.final, seed=task.settings.seed) for cell in wanted]
        done = {head.spec: head for head in self.fitted} if task.settings.seeds == 1 else {}
        if all(spec in done for spec in specs):
            heads = [done[spec] for spec in specs]
        else:
            name = f"final-{fingerprint({'heads': [asdict(spec) for spec in specs]})[:16]}"
            heads = self._fit(
                specs, name, lambda epoch, now: [_until(epoch, wanted[cell_of(h.spec)]) for h in now], 1, "ones"
            )
        return Candidates(
            [self._column(head, -1) for head in heads if not head.flag],
            {row_of(head.spec): f"{head.flag}; lower the learning rates" for head in heads if head.flag},
        )

    def edges(self, cell: Hashable) -> list[str]:
        """Say in which settings a cell lies at the edge of the grid."""
        if not isinstance(cell, HeadSpec):
            return []
        grid = [head.spec for head in self.fitted]
        tried = () if cell.scheme == THREE_CLASS_SCHEME else self.task.settings.positive_weights
        return edge_of_grid(cell, grid) + edge_of_path("positive_weight", cell.positive_weight, tried)

    def _grid(self, trains: Iterable[Sequence[int]], seeds: Sequence[int]) -> list[HeadSpec]:
        settings, found = self.task.settings, list[HeadSpec]()
        numbers = self.task.pool.model_spec.layers if settings.layers == "each" else ()
        for scheme in settings.schemes:
            classes = scheme == THREE_CLASS_SCHEME
            found += default_grid(
                [scheme],
                list(trains),
                learning_rates=settings.learning_rates,
                weight_decays=settings.weight_decays,
                seeds=seeds,
                objectives=[o for o in settings.objectives if not classes or o in THREE_CLASS_OBJECTIVES],
                layers=(-1, *numbers) if len(numbers) > 1 else (-1,),
                positive_weights=(1.0,) if classes else settings.positive_weights,
            )
        return found

    def _fit(
        self,
        heads: Sequence[HeadSpec],
        name: str,
        watch: Callable[[int, Sequence[FittedHead]], list[float]] | None,
        patience: int | None,
        window_weights: WindowWeights,
    ) -> list[FittedHead]:
        task, settings = self.task, self.task.settings
        selected = np.isin(task.assignment.groups, sorted({group for head in heads for group in head.train_groups}))
        schemes = sorted({head.scheme for head in heads})

        def batches(epoch: int) -> Iterable[HeadBatch]:
            return minibatches(
                task.pool,
                task.assignment.groups,
                schemes,
                selected,
                batch_windows=settings.batch_windows,
                seed=epoch_seed(settings.seed, epoch),
                on_demand=settings.device != "cpu",
            )

        return fit_heads(
            batches,
            heads,
            task.moments,
            epochs=settings.epochs,
            steps_per_epoch=steps_per_epoch(task.pool, selected, settings.batch_windows),
            precision=settings.precision,
            device=settings.device,
            window_weights=window_weights,
            layers=self._layers(),
            watch=watch,
            patience=patience,
            checkpoint=None if task.desk is None else task.desk / f"{name}.safetensors",
            progress=task.progress,
        )

    def _layers(self) -> dict[int, slice]:
        spec = self.task.pool.model_spec
        width = spec.width // max(1, len(spec.layers))
        return {layer: slice(i * width, (i + 1) * width) for i, layer in enumerate(spec.layers)}

    def _validation_f1(self, epoch: int, heads: Sequence[FittedHead]) -> list[float]:
        """Score heads on the validation groups of their folds; a flagged one gets no number."""
        del epoch
        sound = [head for head in heads if head.flag is None]
        columns = [self._column(head, self._folds_of(head.spec)[0]) for head in sound]
        scores = dict(
            zip((head.spec for head in sound), validate(self.task.pool, self.task.assignment, columns), strict=True)
        )
        return [scores[head.spec].f1 if head.spec in scores else float("nan") for head in heads]

    def _notes(self) -> list[str]:
        settings, flagged = self.task.settings, Counter(head.flag for head in self.fitted if head.flag)
        notes = [f"{n} heads are out: {flag}" for flag, n in flagged.items()]
        steps = max(head.steps for head in self.fitted)
        if steps < FEW_STEPS:
            notes.append(_too_few(steps, settings))
        if settings.seeds > 1:
            notes.append(
                f"{settings.seeds} seeds, each with Poisson(1) weights of windows: intervals are over sources, of the "
                "mean over seeds; seed_sd is the spread of seeds and sampling_error that of sources"
            )
        if THREE_CLASS_SCHEME in settings.schemes and not set(settings.objectives) <= set(THREE_CLASS_OBJECTIVES):
            notes.append(f"three classes were learned by {' and '.join(THREE_CLASS_OBJECTIVES)} alone")
        return notes

    def _folds_of(self, spec: HeadSpec) -> list[int]:
        return [fold for fold, train in enumerate(self.task.trains) if train == spec.train_groups]

    def _best_epoch(self, cell: HeadSpec) -> int:
        return int(np.median([head.epoch for head in self.fitted if cell_of(head.spec) == cell and not head.flag]))

    def _column(self, head: FittedHead, fold: int) -> Column:
        method, scheme = row_of(head.spec)
        return Column(
            method,
            scheme,
            fold,
            head.weights,
            head.bias,
            setting=self._text(head),
            seed=head.spec.seed,
            cell=cell_of(head.spec),
            objective=head.spec.objective,
        )

    def _text(self, head: FittedHead) -> str:
        spec, settings = head.spec, self.task.settings
        text = f"lr {spec.learning_rate:g}, wd {spec.weight_decay:g}"
        text += f", positive weight {spec.positive_weight:g}" if len(settings.positive_weights) > 1 else ""
        text += f", epoch {head.epoch + 1} of {settings.epochs}" if settings.patience is not None else ""
        return text + (f", lone {head.lone_share:.2f}" if head.lone_share is not None else "")


def row_of(spec: HeadSpec) -> Row:
    """Return method and scheme of a head: ``dice`` for ``dice-batch``, else the objective, and its layer."""
    method = DICE if spec.objective == "dice-batch" else spec.objective
    return (method if spec.layer < 0 else f"{method}@{spec.layer}"), spec.scheme


def cell_of(spec: HeadSpec) -> HeadSpec:
    """Return what heads of all folds and seeds have in common."""
    return replace(spec, train_groups=_ANY, seed=0)


def _too_few(steps: int, settings: FitSettings) -> str:
    """Return what to change where no head took enough steps: options as a command has them, and what they are now."""
    sooner = "" if settings.patience is None else f", or let no head stop early (--patience 0, now {settings.patience})"
    return (
        f"heads took only {steps} steps, and below {FEW_STEPS} may be unfinished: give more epochs (--epochs, now "
        f"{settings.epochs}) or smaller batches (--batch-windows, now {settings.batch_windows}){sooner}; in a study's "
        "[fit] these options have _ for -"
    )


def _until(epoch: int, last: int) -> float:
    """Return a score that rises up to an epoch and then rests, so that its weights are kept."""
    return float(epoch) if epoch <= last else -1.0
