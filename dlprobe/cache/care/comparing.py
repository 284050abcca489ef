"""How two caches differ: in what they are, and in the numbers that they hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from dlprobe import plotting
from dlprobe.cache.reader import FeatureCache
from dlprobe.errors import CacheError
from dlprobe.spec import differences

if TYPE_CHECKING:
    import os

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_KEYS = ["path", "view", "y", "x", "h", "w"]


class Difference(NamedTuple):
    """A field in which two caches differ, and the part that it belongs to.

    ``part`` is ``model`` or ``cache`` (identity), ``pins``, ``origin`` or ``software`` (no identity); ``detail`` is
    ``field: left != right``.
    """

    part: str
    detail: str


@dataclass(frozen=True, slots=True)
class Parity:
    """How close the embeddings of two caches are, on their common windows.

    Parameters
    ----------
    windows : int
        Common windows that neither rejected.
    cosine_mean, cosine_min : float
        Cosine of the two embeddings of a patch: mean and smallest over all patches.
    max_abs : float
        Largest absolute difference of two values.
    rms : float
        Root mean square of the difference, relative to that of the left values.
    worst_feature : int
        Feature with the largest absolute difference.
    """

    windows: int
    cosine_mean: float
    cosine_min: float
    max_abs: float
    rms: float
    worst_feature: int

    def frame(self) -> pd.DataFrame:
        """Return the numbers as a table of one row."""
        return pd.DataFrame([asdict(self)])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the deviations from the same embeddings: 0 is none."""
        parts = {
            "1 - mean cosine": 1 - self.cosine_mean,
            "1 - smallest cosine": 1 - self.cosine_min,
            "relative rms difference": self.rms,
        }
        return plotting.bars(list(parts), list(parts.values()), ax=ax, words=f"on {self.windows} windows")


def diff(left: str | os.PathLike[str], right: str | os.PathLike[str]) -> list[Difference]:
    """Return the fields in which two caches differ; none means that one can be resumed as the other.

    Raises
    ------
    CacheError
        If one of them cannot be opened.
    """
    a, b = FeatureCache(left), FeatureCache(right)
    parts = {
        "model": (asdict(a.model_spec), asdict(b.model_spec)),
        "cache": ({**asdict(a.cache_spec), "model": None}, {**asdict(b.cache_spec), "model": None}),
        "pins": (asdict(a.pins), asdict(b.pins)),
        "origin": (a.origin, b.origin),
        "software": (a.software, b.software),
    }
    return [Difference(part, detail) for part, (x, y) in parts.items() for detail in differences(x, y)]


def parity(left: str | os.PathLike[str], right: str | os.PathLike[str]) -> Parity:
    """Compare the embeddings of the windows that two caches have in common, such as of two storage types.

    Parameters
    ----------
    left, right : path
        Folders of two caches of the same grid and width. Windows are matched by image path, view and box.

    Raises
    ------
    CacheError
        If grid or width differ, no window is common, or a block is missing or damaged.
    """
    a, b = FeatureCache(left), FeatureCache(right)
    if a.shape[1:] != b.shape[1:]:
        shapes = f"{left} has embeddings of {a.shape[1:]}, {right} of {b.shape[1:]} (rows, columns, width)"
        msg = f"{shapes}; compare caches of one backbone"
        raise CacheError(msg)
    mine, yours = common_windows(a, b)
    step = a.cache_spec.block_windows
    total = _Sums(a.shape[3])
    for start in range(0, len(mine), step):
        part = slice(start, start + step)
        total.add(a.read(mine[part]).embeddings, b.read(yours[part]).embeddings)
    return total.parity(len(mine))


def common_windows(a: FeatureCache, b: FeatureCache) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices, in two caches, of the windows that both hold and neither rejected."""
    tables = [
        cache.windows.assign(index=np.arange(len(cache)))[lambda frame: ~frame["rejected"]][[*_KEYS, "index"]]
        for cache in (a, b)
    ]
    both = tables[0].merge(tables[1], on=_KEYS, suffixes=("_a", "_b"), validate="one_to_one")
    if both.empty:
        msg = f"{a.path} and {b.path} have no window in common; windows are matched by image path, view and box"
        raise CacheError(msg)
    return both["index_a"].to_numpy(), both["index_b"].to_numpy()


class _Sums:
    def __init__(self, width: int) -> None:
        self._largest = np.zeros(width)
        self._cosines, self._patches, self._lowest = 0.0, 0, 1.0
        self._error, self._power = 0.0, 0.0

    def add(self, left: NDArray[np.floating], right: NDArray[np.floating]) -> None:
        for x, y in zip(left, right, strict=True):
            a, b = (v.reshape(-1, v.shape[-1]).astype(np.float64) for v in (x, y))
            error = a - b
            self._largest = np.maximum(self._largest, np.abs(error).max(axis=0))
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            dots = np.einsum("pf,pf->p", a, b)
            same = (a == b).all(axis=1)  # two zero vectors, too
            cosines = np.where(same, 1.0, dots / np.where(norms > 0, norms, 1.0))
            self._cosines += float(cosines.sum())
            self._lowest = min(self._lowest, float(cosines.min()))
            self._patches += len(a)
            self._error += float((error**2).sum())
            self._power += float((a**2).sum())

    def parity(self, windows: int) -> Parity:
        return Parity(
            windows=windows,
            cosine_mean=self._cosines / self._patches,
            cosine_min=self._lowest,
            max_abs=float(self._largest.max()),
            rms=float(np.sqrt(self._error / self._power)) if self._power else float(np.sqrt(self._error)),
            worst_feature=int(self._largest.argmax()),
        )
