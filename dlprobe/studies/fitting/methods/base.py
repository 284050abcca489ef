"""What every method is: candidates for each fold to choose from, and a fit of the chosen setting on all groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from dlprobe.errors import MetricError, ProbeError
from dlprobe.publish import publish
from dlprobe.spec import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dlprobe.probes import GroupMoments, NearestPatches
    from dlprobe.studies.fitting.pool import CachePool
    from dlprobe.studies.fitting.scoring import Column
    from dlprobe.studies.fitting.settings import FitSettings
    from dlprobe.studies.fitting.splits import Assignment

#: Of the files of what is already fitted.
_FORM = 2
#: Method and scheme: what has a row in the table.
Row = tuple[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What all methods of a fit share.

    Attributes
    ----------
    pool, assignment, settings
        Windows, who trains, chooses and is tested, and how.
    moments : GroupMoments
        Of the groups of `assignment`.
    desk : Path or None
        Folder for what an interrupted fit goes on from.
    progress : callable or None
        Takes the steps done and in all.
    """

    pool: CachePool
    assignment: Assignment
    settings: FitSettings
    moments: GroupMoments
    desk: Path | None = None
    progress: Callable[[int, int], None] | None = None

    @property
    def trains(self) -> list[tuple[int, ...]]:
        """The training groups of each fold."""
        return [fold.train for fold in self.assignment.folds]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What a method offers, for the folds or for new images.

    Attributes
    ----------
    columns : list of Column
        For each fold several, told apart by their `cell`; for new images one a row, of fold -1.
    flags : dict
        Why a row has no candidate in some fold, or none for new images.
    notes : list of str
        What a reader must know.
    """

    columns: list[Column] = field(default_factory=list)
    flags: dict[Row, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Method(Protocol):
    """A family of fits."""

    def candidates(self) -> Candidates:
        """Fit every setting on the training groups of each fold."""
        ...

    def final(self, chosen: Mapping[Row, Hashable]) -> Candidates:
        """Fit the chosen cell of each row on all groups of `Assignment.final`; a row without a sound fit is flagged."""
        ...

    def edges(self, cell: Hashable) -> list[str]:
        """Say in which settings a chosen cell lies at the edge of what was tried."""
        ...


class Solution(NamedTuple):
    """One fitted setting of a baseline: its cell, its text, a map on raw embeddings, and what is wrong with it."""

    cell: float
    setting: str
    weights: NDArray[np.float64]
    bias: float
    nearest: NearestPatches | None = None
    remark: str = ""


def edge_of_path(name: str, value: float, path: Iterable[float]) -> list[str]:
    """Say if a value is the smallest or largest of three or more that were tried: a better one may lie outside."""
    values = sorted(set(path))
    if len(values) < 3 or value not in (values[0], values[-1]):
        return []
    side = "smallest" if value == values[0] else "largest"
    return [f"{name} {value:g} is the {side} of the grid ({values[0]:g} to {values[-1]:g}); widen it"]


class Baseline(ABC):
    """A method that fits one scheme and one set of training groups at a time, with settings named by one number.

    Parameters
    ----------
    task : Task
    """

    name: str
    #: What is minimised, for the card.
    objective: str

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def fit(self, scheme: str, train: tuple[int, ...], cells: Sequence[float]) -> list[Solution]:
        """Fit each setting of `cells` on the patches of some groups; raise `ProbeError` if that is impossible."""

    @property
    @abstractmethod
    def grid(self) -> tuple[float, ...]:
        """The settings to choose from."""

    def candidates(self) -> Candidates:
        """Fit every setting on every fold, all schemes of a fold together; one that cannot be fitted is flagged."""
        found = Candidates()
        for fold, train in enumerate(self.task.trains):
            for scheme in self.task.settings.binary_schemes:
                if (self.name, scheme) in found.flags:
                    continue
                try:
                    found.columns.extend(self._columns(scheme, fold, train, self.grid))
                except (ProbeError, MetricError) as error:
                    found.flags[self.name, scheme] = str(error)
        return found

    def final(self, chosen: Mapping[Row, Hashable]) -> Candidates:
        """Fit the chosen settings on all groups."""
        groups = self.task.assignment.final
        found = Candidates()
        for (name, scheme), cell in chosen.items():
            cells = self.grid if groups in self.task.trains else (number_of(cell),)
            try:
                found.columns.extend(c for c in self._columns(scheme, -1, groups, cells) if c.cell == cell)
            except (ProbeError, MetricError) as error:
                found.flags[name, scheme] = str(error)
        return found

    def edges(self, cell: Hashable) -> list[str]:
        """Nothing, unless the settings are the user's to widen."""
        del cell
        return []

    def _columns(self, scheme: str, fold: int, train: tuple[int, ...], cells: Sequence[float]) -> list[Column]:
        from dlprobe.studies.fitting.scoring import Column

        blank = Column(self.name, scheme, fold, np.empty(0), 0.0, objective=self.objective, seed=self._seed)
        return [replace(blank, **each._asdict()) for each in self._kept(scheme, train, cells)]

    @property
    def _seed(self) -> int:
        return self.task.settings.seed

    def _kept(self, scheme: str, train: tuple[int, ...], cells: Sequence[float]) -> list[Solution]:
        """Return what an interrupted run has already fitted, else fit it and keep it."""
        if self.task.desk is None:
            return self.fit(scheme, train, cells)
        key = fingerprint(
            {"form": _FORM, "method": self.name, "scheme": scheme, "train": list(train), "cells": list(cells)}
        )
        path = self.task.desk / f"{self.name}-{key[:16]}.npz"
        if path.is_file():
            return _read(path)
        found = self.fit(scheme, train, cells)
        if all(each.nearest is None for each in found):
            with publish(path) as scratch, scratch.open("wb") as file:
                np.savez(file, **_arrays(found))
        return found


def number_of(cell: Hashable) -> float:
    """Return the setting of a baseline; raise `ProbeError` if it is that of something else."""
    if not isinstance(cell, float):
        msg = f"the setting of a baseline is {cell!r}; it must be a number"
        raise ProbeError(msg)
    return cell


def _arrays(solutions: Sequence[Solution]) -> dict[str, Any]:
    return {
        "cells": np.array([each.cell for each in solutions]),
        "settings": np.array([each.setting for each in solutions]),
        "weights": np.stack([each.weights for each in solutions]),
        "biases": np.array([each.bias for each in solutions]),
        "remarks": np.array([each.remark for each in solutions]),
    }


def _read(path: Path) -> list[Solution]:
    with np.load(path, allow_pickle=False) as kept:
        rows = zip(*(kept[name] for name in ("cells", "settings", "weights", "biases", "remarks")), strict=True)
        return [
            Solution(float(cell), str(text), weights, float(bias), remark=str(remark))
            for cell, text, weights, bias, remark in rows
        ]
