"""A table of scores as columns of numbers: a part of it is a list of positions, and is reduced without pandas."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.metrics.intervals.studentized import means_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    Positions = NDArray[np.intp]


class ScoreColumns:
    """Scores of images, prepared for being reduced to sources a thousand times, in parts that share rows.

    Parameters
    ----------
    images : DataFrame
        Rows of `dlprobe.studies.fitting.scoring.score_images` with a column ``model``.
    key : sequence of str
        The columns by which `parts` tells rows apart.
    """

    def __init__(self, images: pd.DataFrame, key: Sequence[str]) -> None:
        self._images = images
        names, self._sources = np.unique(images["source_id"].to_numpy(dtype=str), return_inverse=True)
        self._n_sources = names.size
        self._seeds = images["seed"].to_numpy() if "seed" in images else np.zeros(len(images), int)
        self._groups, self._keys = _numbered(images, key)
        self._values: dict[str, NDArray[np.float64]] = {}

    @cached_property
    def _files(self) -> NDArray[np.intp]:
        return _numbered(self._images, ("dataset", "path"))[0]

    def __contains__(self, metric: str) -> bool:
        return metric in self._images

    def parts(self, rows: Positions) -> dict[tuple[str, ...], Positions]:
        """Return the positions of each key among rows, in the order in which they appear."""
        groups = self._groups[rows]
        found, first = np.unique(groups, return_index=True)
        return {self._keys[group]: rows[groups == group] for group in found[np.argsort(first)]}

    def values(self, metric: str) -> NDArray[np.float64]:
        """Return a column of the whole table."""
        if metric not in self._values:
            self._values[metric] = self._images[metric].to_numpy(dtype=float)
        return self._values[metric]

    def by_source(self, rows: Positions, metric: str) -> NDArray[np.float64]:
        """Return the mean over rows of every source of the table, in order of their names; nan without a value."""
        return means_of(self.values(metric)[rows], self._sources[rows], self._n_sources)

    def n_files(self, rows: Positions, metric: str) -> int:
        """Return of how many images rows have a value."""
        there = ~np.isnan(self.values(metric)[rows])
        return np.unique(self._files[rows[there]]).size

    def of_seeds(self, rows: Positions) -> list[Positions]:
        """Return the positions of each seed."""
        seeds = self._seeds[rows]
        return [rows[seeds == seed] for seed in dict.fromkeys(seeds.tolist())]


def _numbered(images: pd.DataFrame, columns: Sequence[str]) -> tuple[NDArray[np.intp], list[tuple[str, ...]]]:
    """Return the number of each row's values of some columns, and these values, in the order in which they appear."""
    numbers: dict[tuple[str, ...], int] = {}
    rows = zip(*(images[column].tolist() for column in columns), strict=True)
    return np.array([numbers.setdefault(row, len(numbers)) for row in rows], np.intp), list(numbers)
