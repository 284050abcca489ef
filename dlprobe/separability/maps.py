"""Maps: a sample of patches on a plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from dlprobe import plotting
from dlprobe.errors import MetricError
from dlprobe.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

#: Sources with a mark of their own: those with most patches; more could not be told apart.
_NAMED_SOURCES = 12
#: A UMAP needs more patches than this.
UMAP_NEIGHBOURS = 15


@dataclass(frozen=True, slots=True, eq=False)
class PatchMap:
    """Patches on a plane.

    Attributes
    ----------
    features, method : str
        Which features, and how they were brought to two dimensions: ``pca`` or ``umap``.
    points : ndarray of float64, shape (n, 2)
    classes, sources : ndarray of str, shape (n,)
        Provenance class and source_id of each.
    axes_words : (str, str)
        What the two axes are.
    """

    features: str
    method: str
    points: NDArray[np.float64]
    classes: NDArray[np.str_]
    sources: NDArray[np.str_]
    axes_words: tuple[str, str]

    def frame(self) -> pd.DataFrame:
        """Return one row a patch: ``features``, ``method``, ``x``, ``y``, ``class``, ``source_id``."""
        x, y = self.points.T
        columns = {"x": x, "y": y, "class": self.classes, "source_id": self.sources}
        return pd.DataFrame({"features": self.features, "method": self.method, **columns})

    def plot(self, ax: Axes | None = None, by: Literal["class", "source"] = "class") -> Axes:
        """Draw the patches, each marked by its class or its source; of many sources, those with most patches.

        Parameters
        ----------
        ax : Axes, optional
            New ones otherwise.
        by : {'class', 'source'}

        Returns
        -------
        Axes

        Raises
        ------
        MetricError
            If `by` is something else.
        """
        if by not in {"class", "source"}:
            msg = f"a map is coloured by 'class' or 'source', not by {by!r}"
            raise MetricError(msg)
        ax = plotting.axes(ax, width_in=6.5, height_in=6.0)
        names = self.classes if by == "class" else self.sources
        kinds, counts = np.unique(names, return_counts=True)
        shown = kinds[np.argsort(-counts, kind="stable")][:_NAMED_SOURCES] if by == "source" else kinds
        rest = self.points[~np.isin(names, shown)]
        if len(rest):
            others = f"{len(kinds) - len(shown)} other sources"
            ax.scatter(rest[:, 0], rest[:, 1], s=6, marker=".", color="0.75", linewidth=0, label=others, zorder=0)
        for number, kind in enumerate(shown):
            x, y = self.points[names == kind].T
            look = plotting.mark(number)
            ax.scatter(
                x, y, s=10, marker=look.marker, facecolor="none", edgecolor=look.colour, linewidth=0.7, label=kind
            )
        plotting.legend(ax)
        ax.set_xlabel(f"{self.features}: {self.axes_words[0]}")
        ax.set_ylabel(self.axes_words[1])
        return ax


def scaled(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows with every feature centred and divided by its deviation; constant features are left out."""
    centred = rows - rows.mean(axis=0)
    deviation = centred.std(axis=0)
    varies = deviation > 1e-7 * np.abs(rows).max(axis=0, initial=0)
    found: NDArray[np.float64] = centred[:, varies] / deviation[varies]
    return found


def pca(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first two principal components of scaled rows and the share of variance of each.

    Signs are such that the component of largest size of each axis is positive.

    Raises
    ------
    MetricError
        If there are fewer than two rows or features that vary.
    """
    if min(rows.shape) < 2:
        msg = f"a map of {rows.shape[0]} patches with {rows.shape[1]} features that vary; two of each are needed"
        raise MetricError(msg)
    left, values, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    signs = np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)])
    return left[:, :2] * values[:2] * signs, values[:2] ** 2 / (values**2).sum()


def umap(rows: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return a UMAP of scaled rows (McInnes et al. 2018), seeded; distances between far points mean nothing.

    Raises
    ------
    ExtraError
        If umap-learn is not installed.
    MetricError
        If there are too few rows.
    """
    require("umap", "a UMAP map", "umap")
    if len(rows) <= UMAP_NEIGHBOURS:
        msg = f"a UMAP of {len(rows)} patches; more than {UMAP_NEIGHBOURS} are needed"
        raise MetricError(msg)
    from umap import UMAP

    reducer = UMAP(n_neighbors=UMAP_NEIGHBOURS, random_state=seed, n_jobs=1)
    return np.asarray(reducer.fit_transform(rows), np.float64)
