"""Baselines by scikit-learn on a stated subsample: logistic regression, its stochastic fit, nearest neighbours."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.data import label_patches
from dlprobe.probes import fit_logistic, fit_nearest, fit_sgd
from dlprobe.studies.fitting.methods.base import Baseline, Candidates, Solution, edge_of_path, number_of
from dlprobe.studies.fitting.pool import sample_patches

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from numpy.typing import NDArray

    from dlprobe.probes import LogisticFit
    from dlprobe.studies.fitting.methods.base import Row, Task
    from dlprobe.studies.fitting.pool import PooledBlock

#: Windows from which patches are drawn, at most: random reads cost more than the fit.
SAMPLE_WINDOWS = 4000
#: ``knn`` looks at each patch of its sample for each patch that it scores.
KNN_SHARE = 10
NEIGHBOURS = (5, 20)


class Sample:
    """Patches drawn evenly from all training windows, shared by the baselines that need them in memory.

    Parameters
    ----------
    task : Task
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    @cached_property
    def _drawn(self) -> PooledBlock:
        task = self._task
        groups, limit = task.assignment.groups, task.settings.baseline_patches
        trained = np.isin(groups, sorted({g for train in (*task.trains, task.assignment.final) for g in train}))
        smallest = min(int(np.isin(groups, train).sum()) for train in task.trains)
        wanted = round(limit * max(1.0, trained.sum() / max(1, smallest)))
        seed = task.settings.seed
        return sample_patches(task.pool, trained, n_patches=wanted, max_windows=SAMPLE_WINDOWS, seed=seed)

    def of(self, scheme: str, train: tuple[int, ...]) -> tuple[NDArray[np.floating], NDArray[np.int8]]:
        """Return embeddings and labels of the drawn patches of some groups."""
        rows = np.isin(self._task.assignment.groups[self._drawn.windows], train)
        return self._drawn.embeddings[rows], label_patches(self._drawn.coverage, scheme)[rows]


class SampledLogistic(Baseline):
    """scikit-learn's LogisticRegression."""

    name = "logistic"
    objective = "logistic"
    _solver: Callable[..., LogisticFit] = staticmethod(fit_logistic)

    def __init__(self, task: Task, sample: Sample) -> None:
        super().__init__(task)
        self.sample = sample

    @property
    def grid(self) -> tuple[float, ...]:
        """Inverse penalties."""
        return tuple(sorted(map(float, self.task.settings.baseline_c)))

    def edges(self, cell: Hashable) -> list[str]:
        """Say if a C lies at the edge of what was tried."""
        return edge_of_path("C", number_of(cell), self.grid)

    def fit(self, scheme: str, train: tuple[int, ...], cells: Sequence[float]) -> list[Solution]:
        """Fit every C."""
        X, y = self.sample.of(scheme, train)
        settings = self.task.settings
        found = []
        for C in cells:
            made = self._solver(X, y, C=C, seed=settings.seed, max_patches=settings.baseline_patches)
            text = f"C {C:g}, {made.n_patches} patches{'' if made.converged else ', not converged'}"
            found.append(Solution(C, text, made.weights, made.bias))
        return found


class SampledSgd(SampledLogistic):
    """scikit-learn's SGDClassifier on the same objective and patches."""

    name = "sgd"
    _solver = staticmethod(fit_sgd)


class Nearest(Baseline):
    """scikit-learn's KNeighborsClassifier; it has no weights, and so no probe."""

    name = "knn"
    objective = "none"

    def __init__(self, task: Task, sample: Sample) -> None:
        super().__init__(task)
        self.sample = sample

    @property
    def grid(self) -> tuple[float, ...]:
        """Numbers of neighbours."""
        return tuple(map(float, NEIGHBOURS))

    def fit(self, scheme: str, train: tuple[int, ...], cells: Sequence[float]) -> list[Solution]:
        """Keep the patches for every number of neighbours."""
        X, y = self.sample.of(scheme, train)
        limit = max(*NEIGHBOURS, self.task.settings.baseline_patches // KNN_SHARE)
        found = []
        for k in cells:
            made = fit_nearest(X, y, neighbours=int(k), seed=self.task.settings.seed, max_patches=limit)
            found.append(Solution(k, f"k {k:g}, {made.n_patches} patches", np.empty(0), 0.0, made))
        return found

    def final(self, chosen: Mapping[Row, Hashable]) -> Candidates:
        """Nothing: there is no map to save."""
        del chosen
        return Candidates()
