"""Windows that can be scored, wherever their embeddings come from, and the windows of one image together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dlprobe.errors import ProbeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray

    from dlprobe.errors import DlprobeError


class EmbeddedWindows(Protocol):
    """Some windows: embeddings (n, rows, cols, width), coverage (n, rows, cols, 4), and their numbers (n,)."""

    @property
    def embeddings(self) -> NDArray[np.floating]: ...  # noqa: D102
    @property
    def coverage(self) -> NDArray[np.uint8]: ...  # noqa: D102
    @property
    def windows(self) -> NDArray[np.int64]: ...  # noqa: D102


class WindowSource(Protocol):
    """Windows that can be scored: `CachePool`, or those of `dlprobe.finetune` that are embedded as they are read."""

    @property
    def windows(self) -> pd.DataFrame:
        """One row a window."""
        ...

    def blocks(self, selected: NDArray[np.bool_]) -> Iterator[EmbeddedWindows]:
        """Iterate over the readable windows among `selected`, in stored order."""
        ...

    def not_finite(self, window: int) -> DlprobeError:
        """Return the error of a window whose embeddings are not finite."""
        ...


def require_numbers(
    logits: NDArray[np.float32], embeddings: NDArray[np.floating], pool: WindowSource, windows: NDArray[np.int64]
) -> None:
    """Raise if a logit is not a number, which no threshold would mark: naming the window, or the heads, at fault.

    Raises
    ------
    CacheError
        If the embeddings of a window are not finite.
    ProbeError
        If the weights of a head are too large.
    """
    if not np.isnan(logits).any():
        return
    if (finite := np.isfinite(embeddings).all(axis=(1, 2, 3))).all():
        msg = "a head gives scores that are no numbers: its weights are too large; lower the learning rates"
        raise ProbeError(msg)
    raise pool.not_finite(int(windows[int(np.argmin(finite))]))


@dataclass(slots=True)
class WindowsOfImage:
    """The windows of one image as they gather: their numbers, embeddings and coverage."""

    windows: list[int] = field(default_factory=list)
    parts: list[NDArray[np.floating]] = field(default_factory=list)
    covers: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def embeddings(self) -> NDArray[np.floating]:
        """Shape (windows, rows, cols, width)."""
        return np.concatenate(self.parts)

    @property
    def coverage(self) -> NDArray[np.uint8]:
        """Shape (windows, rows, cols, 4)."""
        return np.concatenate(self.covers)


def images_of(pool: WindowSource, selected: NDArray[np.bool_]) -> Iterator[WindowsOfImage]:
    """Gather the windows of each image, which lie side by side in stored order, also across blocks."""
    keys = pool.windows[["cache", "image"]].to_numpy()
    current, key = WindowsOfImage(), None
    for block in pool.blocks(selected):
        for i, window in enumerate(block.windows):
            if key is not None and tuple(keys[window]) != key:
                yield current
                current = WindowsOfImage()
            key = tuple(keys[window])
            current.windows.append(int(window))
            current.parts.append(block.embeddings[i : i + 1])
            current.covers.append(block.coverage[i : i + 1])
    if current.windows:
        yield current


def clean(pool: WindowSource) -> NDArray[np.bool_]:
    """Return which windows are of view 0: degraded views train; they neither choose nor are tested."""
    return np.asarray(pool.windows["view"].to_numpy() == 0)
