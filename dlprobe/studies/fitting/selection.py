"""Fit the grid and the baselines on every fold, and choose among the heads on validation sources."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlprobe.data import label_patches
from dlprobe.errors import ProbeError
from dlprobe.probes import HeadSpec, fit_heads, fit_logistic
from dlprobe.studies.fitting.pool import minibatches, sample_patches, steps_per_epoch
from dlprobe.studies.fitting.scoring import Column, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dlprobe.probes import FittedHead, HeadBatch
    from dlprobe.studies.fitting.pool import CachePool
    from dlprobe.studies.fitting.settings import FitSettings
    from dlprobe.studies.fitting.splits import Assignment

#: Windows from which a baseline's patches are drawn, at most: random reads cost more than the fit.
BASELINE_WINDOWS = 4000
#: Below so many steps a head is as likely unfinished as unable.
FEW_STEPS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """What was chosen on validation sources.

    Attributes
    ----------
    tested : list of Column
        One per method, scheme and fold, with its threshold.
    final : list of Column
        One per method and scheme, for new images: fitted on all groups of `Assignment.final`, its setting the one that
        was best over the folds' validation groups, its threshold the median of the folds'; its fold is -1.
    validation_f1 : dict
        Of (method, scheme): mean over folds of the best pooled F1 on validation patches.
    notes : list of str
        Edges of the grid, flagged heads.
    """

    tested: list[Column]
    final: list[Column]
    validation_f1: dict[tuple[str, str], float]
    notes: list[str]


class _Cell(NamedTuple):
    scheme: str
    learning_rate: float
    weight_decay: float

    @property
    def setting(self) -> str:
        return f"lr {self.learning_rate:g}, wd {self.weight_decay:g}"


def select_dice(
    pool: CachePool,
    assignment: Assignment,
    settings: FitSettings,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Fit the whole grid in one stream and choose a head per scheme and fold.

    Parameters
    ----------
    pool : CachePool
        Windows.
    assignment : Assignment
        Who trains, chooses, is tested.
    settings : FitSettings
        The grid.
    progress : callable, optional
        Called with the steps done and in all.

    Raises
    ------
    ProbeError
        If no head of a scheme and fold could be fitted, or a fold's validation sources show no inpainted patch.
    """
    fitted = _fit_grid(pool, assignment, settings, progress)
    flagged = Counter(head.flag for head in fitted if head.flag)
    notes = [f"{n} heads are out: {flag}" for flag, n in flagged.items()]
    if fitted[0].steps < FEW_STEPS:
        notes.append(f"heads took only {fitted[0].steps} steps; give more epochs or smaller batches")
    sound = [head for head in fitted if not head.flag]
    columns = [_column(head, fold) for head in sound for fold in _folds_of(head, assignment)]
    cells = [_cell(head) for head in sound for _ in _folds_of(head, assignment)]
    verdicts = validate(pool, assignment, columns)
    tested, means = [], {}
    final = []
    for scheme in settings.schemes:
        table: dict[_Cell, dict[int, Column]] = {}
        scores: dict[_Cell, dict[int, float]] = {}
        for cell, column, verdict in zip(cells, columns, verdicts, strict=True):
            if cell.scheme == scheme:
                table.setdefault(cell, {})[column.fold] = replace(column, threshold=verdict.threshold)
                scores.setdefault(cell, {})[column.fold] = verdict.f1
        winners = [_best(scores, fold, scheme) for fold in range(len(assignment.folds))]
        tested += [table[cell][fold] for fold, cell in enumerate(winners)]
        last = {_cell(head): head for head in sound if head.spec.train_groups == assignment.final}
        whole = [cell for cell in table if len(table[cell]) == len(assignment.folds) and cell in last]
        if not whole:
            msg = f"no setting of scheme {scheme} could be fitted on every fold; lower the learning rates"
            raise ProbeError(msg)
        overall = max(whole, key=lambda cell: sum(np.nan_to_num(list(scores[cell].values()))))
        means["dice", scheme] = float(np.mean(list(scores[overall].values())))
        cuts = [column.threshold for column in table[overall].values()]
        final.append(replace(_column(last[overall], -1), threshold=float(np.median(cuts))))
        notes += _edges(scheme, winners, settings)
    return Selection(tested, final, means, notes)


def select_logistic(pool: CachePool, assignment: Assignment, settings: FitSettings) -> Selection:
    """Fit scikit-learn's logistic regression per scheme and fold on a subsample, and choose its threshold.

    Parameters
    ----------
    pool, assignment, settings
        As for `select_dice`; at most ``settings.baseline_patches`` patches a fit.
    """
    trains = [fold.train for fold in assignment.folds]
    trained = np.isin(assignment.groups, sorted({g for groups in (*trains, assignment.final) for g in groups}))
    smallest = min(int(np.isin(assignment.groups, groups).sum()) for groups in trains)
    wanted = round(settings.baseline_patches * max(1.0, trained.sum() / max(1, smallest)))
    sample = sample_patches(pool, trained, n_patches=wanted, max_windows=BASELINE_WINDOWS, seed=settings.seed)
    groups = assignment.groups[sample.windows]
    shared = assignment.final in trains
    fits = [*enumerate(trains), *([] if shared else [(-1, assignment.final)])]
    columns = []
    for scheme in settings.schemes:
        labels = label_patches(sample.coverage, scheme)
        for fold, train in fits:
            rows = np.isin(groups, train)
            found = fit_logistic(
                sample.embeddings[rows],
                labels[rows],
                C=settings.baseline_c,
                seed=settings.seed,
                max_patches=settings.baseline_patches,
            )
            setting = f"C {found.C:g}, {found.n_patches} patches{'' if found.converged else ', not converged'}"
            columns.append(Column("logistic", scheme, fold, found.weights, found.bias, setting=setting))
    folded = [column for column in columns if column.fold >= 0]
    verdicts = validate(pool, assignment, folded)
    tested = [replace(c, threshold=v.threshold) for c, v in zip(folded, verdicts, strict=True)]
    final, means = [], {}
    for scheme in settings.schemes:
        mine = [i for i, column in enumerate(folded) if column.scheme == scheme]
        means["logistic", scheme] = float(np.mean([verdicts[i].f1 for i in mine]))
        last = tested[mine[0]] if shared else next(c for c in columns if c.fold == -1 and c.scheme == scheme)
        final.append(replace(last, fold=-1, threshold=float(np.median([verdicts[i].threshold for i in mine]))))
    return Selection(tested, final, means, [])


def _fit_grid(
    pool: CachePool,
    assignment: Assignment,
    settings: FitSettings,
    progress: Callable[[int, int], None] | None,
) -> list[FittedHead]:
    trains = dict.fromkeys([*(fold.train for fold in assignment.folds), assignment.final])
    heads = [
        HeadSpec(
            scheme=scheme,
            learning_rate=rate,
            weight_decay=decay,
            seed=settings.seed,
            train_groups=groups,
        )
        for scheme, groups, decay, rate in product(
            settings.schemes, trains, settings.weight_decays, settings.learning_rates
        )
    ]
    selected = np.isin(assignment.groups, sorted({group for groups in trains for group in groups}))

    def batches(epoch: int) -> Iterable[HeadBatch]:
        return minibatches(
            pool,
            assignment.groups,
            settings.schemes,
            selected,
            batch_windows=settings.batch_windows,
            seed=_epoch_seed(settings.seed, epoch),
        )

    return fit_heads(
        batches,
        heads,
        pool.group_moments(assignment.groups),
        epochs=settings.epochs,
        steps_per_epoch=steps_per_epoch(pool, selected, settings.batch_windows),
        precision=settings.precision,
        device=settings.device,
        window_weights="ones",
        progress=progress,
    )


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _folds_of(head: FittedHead, assignment: Assignment) -> list[int]:
    return [n for n, fold in enumerate(assignment.folds) if fold.train == head.spec.train_groups]


def _cell(head: FittedHead) -> _Cell:
    return _Cell(head.spec.scheme, head.spec.learning_rate, head.spec.weight_decay)


def _column(head: FittedHead, fold: int) -> Column:
    return Column("dice", head.spec.scheme, fold, head.weights, head.bias, setting=_cell(head).setting)


def _best(scores: dict[_Cell, dict[int, float]], fold: int, scheme: str) -> _Cell:
    found = {cell: values[fold] for cell, values in scores.items() if fold in values}
    if not found:
        msg = (
            f"no head of scheme {scheme} could be fitted for fold {fold}; see the notes, and give more training sources"
        )
        raise ProbeError(msg)
    if all(np.isnan(score) for score in found.values()):
        msg = f"the validation sources of fold {fold} show no inpainted patch; use fewer folds or another split"
        raise ProbeError(msg)
    return max(found, key=lambda cell: -np.inf if np.isnan(found[cell]) else found[cell])


def _edges(scheme: str, winners: Sequence[_Cell], settings: FitSettings) -> list[str]:
    rates = sorted(settings.learning_rates)
    if len(rates) < 3:
        return []
    notes = []
    for name, edge in (("lowest", rates[0]), ("highest", rates[-1])):
        n = sum(cell.learning_rate == edge for cell in winners)
        if 2 * n > len(winners):
            notes.append(
                f"{scheme}: {n} of {len(winners)} folds chose the {name} learning rate {edge:g}; widen the grid"
            )
    return notes
