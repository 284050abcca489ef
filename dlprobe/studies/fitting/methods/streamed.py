"""Baselines on all patches, exact and streamed: logistic regression, ridge, linear discriminant analysis."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.data import label_patches
from dlprobe.probes.exact import Rows, SecondMoments, lda_path, ridge_path, stream_logistic
from dlprobe.studies.fitting.methods.base import Baseline, Solution

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dlprobe.probes.exact import ClassMoments, LogisticSolution
    from dlprobe.studies.fitting.methods.base import Task

#: Windows whose patches are standardised at a time.
_ROWS_WINDOWS = 8
#: Ridge's penalties as shares of the number of patches, on standardised embeddings.
RIDGE_SHARES = tuple(np.geomspace(1e-8, 10, 19).tolist())
LDA_SHRINKAGES = (0.0, 1e-3, 1e-2, 1e-1)


class ExactLogistic(Baseline):
    """Logistic regression on every training patch, solved by Newton's method."""

    name = "logistic-exact"
    objective = "logistic"

    @property
    def grid(self) -> tuple[float, ...]:
        """Inverse penalties, rising: each solution starts from the one before."""
        return tuple(sorted(map(float, self.task.settings.baseline_c)))

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
            last = stream_logistic(rows, len(mean), C=C, start=last)
            weights = last.weights * inverse
            text = f"C {C:g}, {last.total_weight:.0f} patches"
            text += (", separable" if last.separable else "") + ("" if last.converged else ", not converged")
            found.append(Solution(C, text, weights, float(last.bias - weights @ mean.astype(np.float64))))
        return found


class Gathered:
    """Second moments of all training groups and schemes, gathered once for all that need them.

    Parameters
    ----------
    task : Task
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._groups = sorted({g for train in (*task.trains, task.assignment.final) for g in train})

    @cached_property
    def _moments(self) -> SecondMoments:
        task = self._task
        schemes = task.settings.binary_schemes
        origin = task.moments.standardisation(self._groups).mean
        moments = SecondMoments(origin, len(self._groups), schemes)
        selected = np.isin(task.assignment.groups, self._groups)
        for block in task.pool.blocks(selected):
            n, width = len(block.windows), block.embeddings.shape[-1]
            targets = {name: label_patches(block.coverage, name).reshape(n, -1) for name in schemes}
            groups = np.searchsorted(self._groups, task.assignment.groups[block.windows])
            moments.add(block.embeddings.reshape(n, -1, width), targets, groups)
        return moments

    def of(self, scheme: str, train: tuple[int, ...]) -> ClassMoments:
        """Return the moments of a scheme's classes over some groups; raise `ProbeError` if one is missing."""
        return self._moments.of(scheme, [self._groups.index(group) for group in train])


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
