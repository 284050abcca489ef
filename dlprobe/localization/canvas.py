"""Running sums over overlapping windows: what is in memory does not grow with the number of windows.

Windows come sorted along the longer side of the image. Sums are kept for a band of rows only (columns, if the image is
wider than high): rows that no later window can reach are finished, stored and forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from dlprobe.localization.planes import RowStore, long_axis, resize_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dlprobe.data.tiling import Box
    from dlprobe.localization.planes import Scratch
    from dlprobe.localization.settings import SlidingSettings

#: Windows that are brought to pixels at a time: one stays in a CPU's cache, several save a GPU's launches.
_AT_ONCE = {"cuda": 16}


class Maps(NamedTuple):
    """What a canvas gives: arrays of shape (height, width) or (height, width, logits), perhaps memory maps."""

    scores: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    logits: NDArray[np.float32]
    n_windows: NDArray[np.int32]
    working_scores: NDArray[np.float32]


class LogitCanvas:
    """Sum of window logits, coverage count, and spread of window scores, per pixel.

    Sums are float64, so that the spread needs no second look at the windows.

    Parameters
    ----------
    working_size : tuple of int
        Height and width of what the windows see.
    size : tuple of int
        Height and width of the image itself.
    n_logits : int
        Logits per patch: 1 or 3.
    window_px : int
        Side of a window.
    settings : SlidingSettings
    device : torch.device
        Where the sums are.
    scratch : Scratch
        Where the maps are kept.
    band_px : int, optional
        Height of the band that sums are kept for, no less than a window; a few strides above it by default.
    """

    def __init__(
        self,
        working_size: tuple[int, int],
        size: tuple[int, int],
        n_logits: int,
        *,
        window_px: int,
        settings: SlidingSettings,
        device: torch.device,
        scratch: Scratch,
        band_px: int | None = None,
    ) -> None:
        self._axis = long_axis(working_size)
        self._length, self._across = working_size[self._axis], working_size[1 - self._axis]
        self._size = (size[self._axis], size[1 - self._axis])
        self._window_px, self._settings, self._n_logits = window_px, settings, n_logits
        self._scratch = scratch
        hann = settings.blend == "hann"
        self._weight = _hann(window_px, device) if hann else None
        rows = min(self._length, band_px or window_px + max(settings.stride_px, window_px // 2))
        self._band = torch.zeros((n_logits + 3 + hann, rows, self._across), dtype=torch.float64, device=device)
        self._top = 0
        self._logits = self._store(n_logits)
        self._scores = self._store(n_logits)
        self._disagreement = self._store(1)
        self._n_windows = self._store(1, np.int32)

    def sort_key(self, box: Box) -> tuple[int, int]:
        """Return what to sort windows by before they are fed."""
        return (box.y, box.x) if self._axis == 0 else (box.x, box.y)

    def feed(self, boxes: Sequence[Box], logits: torch.Tensor) -> None:
        """Add windows, none of which lies before an earlier one.

        Parameters
        ----------
        boxes : sequence of Box
            Where they lie, sorted by `sort_key`.
        logits : tensor of float32, shape (windows, rows, cols, n_logits)
            Of their patches.
        """
        step = _AT_ONCE.get(self._band.device.type, 1)
        for start in range(0, len(boxes), step):
            evidence = self._evidence(logits[start : start + step].to(self._band.device))
            for box, window in zip(boxes[start : start + step], evidence, strict=True):
                first, left = self.sort_key(box)
                if first + self._window_px > self._top + self._band.shape[1]:
                    self._finish(first)
                rows = slice(first - self._top, first - self._top + self._window_px)
                self._band[:, rows, left : left + self._window_px] += window

    def maps(self) -> Maps:
        """Return the maps, after the last window."""
        self._finish(self._length)
        logits, n_windows = self._logits.array(), self._n_windows.array()
        scores, disagreement = self._scores.array(), self._disagreement.array()
        working = scores[-1]
        if self._size != (self._length, self._across):
            scores, disagreement = self._resized(scores), self._resized(disagreement)
        return Maps(
            self._upright(scores),
            self._upright(disagreement)[..., 0],
            self._upright(logits),
            self._upright(n_windows)[..., 0],
            self._upright(working[None])[..., 0],
        )

    def _upright(self, planes: NDArray[Any]) -> NDArray[Any]:
        """Return planes as they lie in the image, the plane on the last axis."""
        return planes.transpose(1, 2, 0) if self._axis == 0 else planes.transpose(2, 1, 0)

    def _evidence(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what each window adds to the band: (weighted) logits, score, its square, one, and the weight."""
        planes = logits.permute(0, 3, 1, 2) if self._axis == 0 else logits.permute(0, 3, 2, 1)
        mode = self._settings.upsample
        align = None if mode == "nearest" else False
        pixels = interpolate(planes, size=(self._window_px,) * 2, mode=mode, align_corners=align).double()
        score = scores_of_planes(pixels)[:, -1:]
        ones = torch.ones_like(score)
        if self._weight is None:
            return torch.cat([pixels, score, score.square(), ones], dim=1)
        weight = self._weight.expand_as(ones)
        return torch.cat([pixels * weight, score, score.square(), ones, weight], dim=1)

    def _finish(self, upto: int) -> None:
        """Store the rows before `upto`, which no later window reaches, and move the band there."""
        done, k = self._band[:, : upto - self._top], self._n_logits
        seen = done[k + 2]
        weights = done[k + 3] if self._weight is not None else seen
        logits = done[:k] if self._settings.aggregate == "sum" else done[:k] / weights
        spread = (done[k + 1] / seen - (done[k] / seen).square()).clamp_(min=0).sqrt_()
        self._logits.append(logits.float().cpu().numpy())
        self._scores.append(scores_of_planes(logits).float().cpu().numpy())
        self._disagreement.append(spread.float()[None].cpu().numpy())
        self._n_windows.append(seen.to(torch.int32)[None].cpu().numpy())
        kept = self._band[:, upto - self._top :].clone()
        self._band[:, : kept.shape[1]] = kept
        self._band[:, kept.shape[1] :] = 0
        self._top = upto

    def _resized(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        store = self._store(len(maps), size=self._size)
        resize_rows(maps, self._size, store)
        resized: NDArray[np.float32] = store.array()
        return resized

    def _store(self, planes: int, dtype: type = np.float32, size: tuple[int, int] | None = None) -> RowStore:
        rows, columns = size or (self._length, self._across)
        large = rows * columns * 4 * (2 * self._n_logits + 2) > self._scratch.memory_bytes
        return RowStore((planes, rows, columns), dtype, self._scratch if large else None)


def scores_of_planes(logits: torch.Tensor) -> torch.Tensor:
    """Return the sigmoid of one logit, or the softmax over several, on the third axis from the end."""
    return torch.sigmoid(logits) if logits.shape[-3] == 1 else torch.softmax(logits, dim=-3)


def _hann(side_px: int, device: torch.device) -> torch.Tensor:
    """Return a two-dimensional Hann window sampled at pixel centres: nowhere zero."""
    angles = (torch.arange(side_px, dtype=torch.float64, device=device) + 0.5) * (torch.pi / side_px)
    profile = angles.sin().square()
    return torch.outer(profile, profile)
