"""Choose among candidates on validation sources, and have the chosen settings fitted on all groups."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.errors import ProbeError
from dlprobe.studies.fitting.methods.heads import HeadGrid
from dlprobe.studies.fitting.methods.sampled import Nearest, Sample, SampledLogistic, SampledSgd
from dlprobe.studies.fitting.methods.streamed import ExactLogistic, Gathered, Lda, Ridge
from dlprobe.studies.fitting.scoring import temperatures, validate

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from dlprobe.studies.fitting.methods.base import Method, Row, Task
    from dlprobe.studies.fitting.scoring import Column

#: Settings of a row that are fitted on all groups, one after another, until one is sound.
FINAL_ATTEMPTS = 3
#: Scores of a row: of each cell, by fold and seed.
Scores = dict["Hashable", dict[tuple[int, int], "Column"]]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """What was chosen on validation sources.

    Attributes
    ----------
    tested : list of Column
        One per method, scheme, fold and seed, with its threshold.
    final : list of Column
        One per method and scheme, for new images: fitted on all groups of `Assignment.final` with the setting that was
        best over the folds' validation groups; its threshold is the median of the folds', its fold -1.
    flags : dict
        Of (method, scheme): why it has no scores.
    remarks : dict
        Of (method, scheme): what is wrong with it although it has scores.
    notes : list of str
        Edges of the grid, flagged heads.
    """

    tested: list[Column] = field(default_factory=list)
    final: list[Column] = field(default_factory=list)
    flags: dict[Row, str] = field(default_factory=dict)
    remarks: dict[Row, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)


def methods(task: Task) -> list[Method]:
    """Return the heads and the baselines that a fit asks for, in the order of the table."""
    sample, gathered = Sample(task), Gathered(task)
    known: dict[str, Method] = {
        "logistic": SampledLogistic(task, sample),
        "logistic-exact": ExactLogistic(task),
        "ridge": Ridge(task, gathered),
        "lda": Lda(task, gathered),
        "sgd": SampledSgd(task, sample),
        "knn": Nearest(task, sample),
    }
    return [HeadGrid(task), *(method for name, method in known.items() if name in task.settings.baselines)]


def select(task: Task) -> Selection:
    """Fit all methods, choose a setting for each row, fold and seed, and one over all of them for new images.

    Raises
    ------
    ProbeError
        If nothing could be fitted; the first reason is named.
    """
    found = Selection()
    for method in methods(task):
        _select(task, method, found)
    if not found.tested:
        (name, scheme), reason = next(iter(found.flags.items()))
        msg = f"nothing can be fitted; {name} under {scheme}: {reason}"
        raise ProbeError(msg)
    divisors = temperatures(task.pool, task.assignment, found.tested)
    tested = [replace(column, temperature=each) for column, each in zip(found.tested, divisors, strict=True)]
    found.notes.extend(f"{name} {scheme} is out: {reason}" for (name, scheme), reason in found.flags.items())
    found.notes.extend(f"{' '.join(row)}: {text}" for row, texts in found.remarks.items() for text in texts)
    return replace(found, tested=tested)


def _select(task: Task, method: Method, found: Selection) -> None:
    offered = method.candidates()
    found.notes.extend(offered.notes)
    lacking = _lacking(task, offered.flags, offered.columns)
    columns = [column for column in offered.columns if (column.method, column.scheme) not in lacking]
    verdicts = validate(task.pool, task.assignment, columns)
    judged = [replace(c, threshold=v.threshold, f1=v.f1) for c, v in zip(columns, verdicts, strict=True)]
    rows: dict[Row, Scores] = defaultdict(dict)
    for column in judged:
        rows[column.method, column.scheme].setdefault(column.cell, {})[column.fold, column.seed] = column
    found.flags.update({row: flag for row, flag in offered.flags.items() if row not in rows})
    ranked: dict[Row, list[Hashable]] = {}
    for row, scores in rows.items():
        fits = sorted({key for by_fit in scores.values() for key in by_fit})
        winners = [max((by[key] for by in scores.values() if key in by), key=_f1) for key in fits]
        found.tested.extend(column.within_scores() for column in winners)
        found.notes.extend(_edges(method, row, winners))
        found.remarks[row].extend(_remarks(winners))
        whole = {cell: by for cell, by in scores.items() if len(by) == len(fits)}
        if not whole:
            found.remarks[row].append("no probe for new images: no setting could be fitted on every fold")
        ranked[row] = sorted(whole, key=lambda cell: -sum(_f1(column) for column in whole[cell].values()))
    _fit_for_new_images(method, rows, ranked, found)


def _fit_for_new_images(
    method: Method, rows: Mapping[Row, Scores], ranked: Mapping[Row, Sequence[Hashable]], found: Selection
) -> None:
    """Fit each row's best setting on all groups, or where that fails one of the next best."""
    failed: dict[Row, list[str]] = defaultdict(list)
    for attempt in range(FINAL_ATTEMPTS):
        wanted = {row: cells[attempt] for row, cells in ranked.items() if len(failed[row]) == attempt < len(cells)}
        made = method.final(wanted)
        found.final.extend(_judged_by_folds(column, rows).within_scores() for column in made.columns)
        for row, reason in made.flags.items():
            failed[row].append(reason)
        if not made.flags:
            break
    there = {(column.method, column.scheme) for column in found.final}
    for row, reasons in failed.items():
        if reasons and row in there:
            found.notes.append(
                f"{' '.join(row)}: the probe for new images has the setting of rank {len(reasons) + 1}; fitted on all "
                f"folds, the best one failed: {reasons[0]}"
            )
        elif reasons:
            found.remarks[row].append(f"no probe for new images: {reasons[0]}")


def _lacking(task: Task, flags: Mapping[Row, str], columns: Sequence[Column]) -> set[Row]:
    """Return the flagged rows that have no candidate in some fold and seed."""
    there: dict[Row, set[tuple[int, int]]] = defaultdict(set)
    for column in columns:
        there[column.method, column.scheme].add((column.fold, column.seed))
    seeds = {column.seed for column in columns}
    return {row for row in flags if len(there[row]) < len(task.assignment.folds) * max(1, len(seeds))}


def _judged_by_folds(column: Column, rows: Mapping[Row, Scores]) -> Column:
    """Give a map for new images the median threshold and the mean F1 of its cell over folds and seeds."""
    peers = list(rows[column.method, column.scheme][column.cell].values())
    threshold = float(np.median([peer.threshold for peer in peers]))
    return replace(column, threshold=threshold, f1=float(np.mean([peer.f1 for peer in peers])))


def _f1(column: Column) -> float:
    return -1.0 if np.isnan(column.f1) else column.f1


def _remarks(winners: Sequence[Column]) -> list[str]:
    """Say in how many fits something is wrong with the chosen column."""
    said = Counter(winner.remark for winner in winners if winner.remark)
    return [f"{text} in {n} of {len(winners)} fits" for text, n in said.items()]


def _edges(method: Method, row: Row, winners: Sequence[Column]) -> list[str]:
    """Say where most winners lie at an edge of what was tried."""
    said = Counter(text for winner in winners for text in method.edges(winner.cell))
    return [
        f"{' '.join(row)}: in {n} of {len(winners)} fits the chosen {text}"
        for text, n in said.items()
        if 2 * n > len(winners)
    ]
