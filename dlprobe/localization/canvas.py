"""Running sums over overlapping windows: what is kept does not grow with the number of windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dlprobe.data.tiling import Box


class LogitCanvas:
    """Sum of window logits, coverage count, and spread of window scores, per pixel.

    Parameters
    ----------
    height_px, width_px : int
        Size of the canvas.
    n_logits : int
        Logits per pixel: 1 or 3.
    """

    def __init__(self, height_px: int, width_px: int, n_logits: int) -> None:
        self._sum = np.zeros((height_px, width_px, n_logits), np.float32)
        self._mean = np.zeros((height_px, width_px), np.float32)
        self._squares = np.zeros((height_px, width_px), np.float32)
        self.n_windows: NDArray[np.int32] = np.zeros((height_px, width_px), np.int32)

    def feed(self, box: Box, logits: NDArray[np.float32]) -> None:
        """Add one window.

        Parameters
        ----------
        box : Box
            Where it lies.
        logits : ndarray of float32, shape (box.h, box.w, n_logits)
            Upsampled to pixels.
        """
        self._sum[box.slices] += logits
        score = scores_of(logits)[..., -1]
        self.n_windows[box.slices] += 1
        change = score - self._mean[box.slices]
        self._mean[box.slices] += np.divide(change, self.n_windows[box.slices], dtype=np.float32)
        self._squares[box.slices] += change * (score - self._mean[box.slices])  # Welford 1962

    def logits(self, aggregate: str) -> NDArray[np.float32]:
        """Return the aggregated logits: ``mean`` divides the sum by the number of windows, ``sum`` does not."""
        if aggregate == "sum":
            return self._sum
        return np.asarray(self._sum / self.n_windows[..., None], dtype=np.float32)

    def disagreement(self) -> NDArray[np.float32]:
        """Return the standard deviation of the windows' own scores at each pixel; 0 where one window looked."""
        return np.sqrt(np.maximum(self._squares, 0) / self.n_windows).astype(np.float32)


def scores_of(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sigmoid of one logit, or the softmax over several, on the last axis."""
    if logits.shape[-1] == 1:
        return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), dtype=np.float32)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)
