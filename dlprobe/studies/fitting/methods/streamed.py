"""Baselines on all patches, exact and streamed: logistic regression, ridge, linear discriminant analysis."""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.data import label_patches
from dlprobe.probes.exact import Rows, SecondMoments, lda_path, ridge_path, stream_logistic
from dlprobe.probes.exact.second_moments import MAX_GROUPS
from dlprobe.studies.fitting.methods.base import Baseline, Solution, edge_of_path, number_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence

    from dlprobe.probes.exact import ClassMoments, LogisticSolution
    from dlprobe.studies.fitting.methods.base import Task

#: Windows whose patches are standardised at a time.
_ROWS_WINDOWS = 8
#: Ridge's penalties as shares of the number of patches, on standardised embeddings.
RIDGE_SHARES = tuple(np.geomspace(1e-8, 10, 19).tolist())
#: Remark on a fit whose weights only the penalty bounds.
SEPARABLE = "the training patches are separable"
LDA_SHRINKAGES = (0.0, 1e-3, 1e-2, 1e-1)


class ExactLogistic(Baseline):
    """Logistic regression on every training patch, solved by Newton's method."""

    name = "logistic-exact"
    objective = "logistic"

    @property
    def grid(self) -> tuple[float, ...]:
        """Inverse penalties, rising: each solution starts from the one before."""
        return tuple(sorted(map(float, self.task.settings.baseline_c)))

    def edges(self, cell: Hashable) -> list[str]:
        """Say if a C lies at the edge of what was tried."""
        return edge_of_path("C", number_of(cell), self.grid)

    def fit(self, scheme: str, train: tuple[int, ...], cells: Sequence[float]) -> list[Solution]:
        """Solve for every C, in units of the standardised embeddings of these groups."""
        standard = self.task.moments.standardisation(train)
        mean, inverse = standard.mean.astype(np.float32), standard.inverse.astype(np.float32)
        selected = np.isin(self.task.assignment.groups, train)

        def rows() -> Iterator[Rows]:
            for block in self.task.pool.blocks(selected):
                labels = label_patches(block.coverage, scheme)
                for low in range(0, len(labels), _ROWS_WINDOWS):
                    part = slice(low, low + _ROWS_WINDOWS)
                    X = block.embeddings[part].reshape(-1, len(mean)).astype(np.float32)
                    X -= mean
                    X *= inverse
                    yield Rows(X, labels[part].reshape(-1))

        found: list[Solution] = []
        last: LogisticSolution | None = None
        for C in cells:
            known = None if last is None else last.separable
            last = stream_logistic(rows, len(mean), C=C, start=last, separable=known)
            weights = last.weights * inverse
            text = f"C {C:g}, {last.total_weight:.0f} patches"
            text += (", separable" if last.separable else "") + ("" if last.converged else ", not converged")
            bias = float(last.bias - weights @ mean.astype(np.float64))
            found.append(Solution(C, text, weights, bias, remark=SEPARABLE if last.separable else ""))
        return found


class Gathered:
    """Second moments of the training groups of all folds, and of all schemes, for all that need them.

    Groups that are together in or out of every training part share their sums, so that many sources take no more room
    than the patterns in which folds use them, and leaving a fold out costs a subtraction. Where even these are too
    many, each training part is streamed for itself, and only the last one is kept.

    Parameters
    ----------
    task : Task
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._patterns = _patterns([*task.trains, task.assignment.final])
        self._part: tuple[tuple[int, ...], SecondMoments] | None = None

    def of(self, scheme: str, train: tuple[int, ...]) -> ClassMoments:
        """Return the moments of a scheme's classes over some groups; raise `ProbeError` if one is missing."""
        if max(self._patterns.values()) < MAX_GROUPS:
            return self._together.of(scheme, sorted({self._patterns[group] for group in train}))
        if self._part is None or self._part[0] != train:
            self._part = train, self._stream(dict.fromkeys(train, 0))
        return self._part[1].of(scheme, [0])

    @cached_property
    def _together(self) -> SecondMoments:
        return self._stream(self._patterns)

    def _stream(self, number: Mapping[int, int]) -> SecondMoments:
        """Return the moments of groups under their numbers."""
        task = self._task
        schemes = task.settings.binary_schemes
        groups = sorted(number)
        origin = task.moments.standardisation(groups).mean
        moments = SecondMoments(origin, max(number.values()) + 1, schemes)
        numbers = np.array([number[group] for group in groups])
        for block in task.pool.blocks(np.isin(task.assignment.groups, groups)):
            n, width = len(block.windows), block.embeddings.shape[-1]
            targets = {name: label_patches(block.coverage, name).reshape(n, -1) for name in schemes}
            places = np.searchsorted(groups, task.assignment.groups[block.windows])
            moments.add(block.embeddings.reshape(n, -1, width), targets, numbers[places])
        return moments


def _patterns(trains: Sequence[tuple[int, ...]]) -> dict[int, int]:
    """Return for each group the number of its pattern: which training parts it is in."""
    members = [set(train) for train in trains]
    patterns = {group: tuple(group in each for each in members) for group in sorted(set(chain.from_iterable(trains)))}
    number = {pattern: i for i, pattern in enumerate(dict.fromkeys(patterns.values()))}
    return {group: number[pattern] for group, pattern in patterns.items()}


class _FromMoments(Baseline):
    """A baseline that needs nothing but second moments."""

    def __init__(self, task: Task, gathered: Gathered) -> None:
        super().__init__(task)
        self.gathered = gathered


class Ridge(_FromMoments):
    """Ridge regression onto -1 and 1."""

    name = "ridge"
    objective = "squared error"

    @property
    def grid(self) -> tuple[float, ...]:
        """Penalties as shares of the number of patches."""
        return RIDGE_SHARES

    def fit(self, scheme: str, train: tuple[int, ...], cells: Sequence[float]) -> list[Solution]:
        """Fit all penalties from one eigendecomposition."""
        moments = self.gathered.of(scheme, train)
        n = float(moments.count.sum())
        fits = ridge_path(moments, [share * n for share in cells])
        return [
            Solution(share, f"alpha {share:.1g} n, n {n:.0f} patches", made.weights, made.bias)
            for share, made in zip(cells, fits, strict=True)
        ]


class Lda(_FromMoments):
    """Linear discriminant analysis with a shrunk covariance."""

    name = "lda"
    objective = "likelihood of two Gaussian classes"

    @property
    def grid(self) -> tuple[float, ...]:
        """Shrinkages."""
        return LDA_SHRINKAGES

    def fit(self, scheme: str, train: tuple[int, ...], cells: Sequence[float]) -> list[Solution]:
        """Fit every shrinkage from one eigendecomposition."""
        moments = self.gathered.of(scheme, train)
        n = float(moments.count.sum())
        return [
            Solution(each.penalty, f"shrinkage {each.penalty:g}, {n:.0f} patches", each.weights, each.bias)
            for each in lda_path(moments, cells)
        ]
