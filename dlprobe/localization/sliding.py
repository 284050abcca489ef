"""The sliding window: from images, a backbone and a probe to score maps.

The recipe is DinoLizer's official inference (arXiv 2511.20722): windows of 504 px every 128 px with the last one
clamped, bicubic upsampling of patch logits (``align_corners=False``), sum over windows divided by their number, and
only then the sigmoid or softmax. Small images are enlarged first (`dlprobe.data.tiling.working_size`), the map is
resized back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import pandas as pd

from dlprobe import plotting
from dlprobe.data.images import enlarge
from dlprobe.data.tiling import Box, tile, working_size
from dlprobe.errors import DataError, ProbeError
from dlprobe.localization.adaptive import coarse_windows, dense_windows, undecided_patches
from dlprobe.localization.planes import Scratch
from dlprobe.localization.settings import Adaptive, Aggregate, Blend, SlidingSettings, Upsample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dlprobe.backbones import Backbone
    from dlprobe.probes import Probe

Key = TypeVar("Key")

#: Above it an image is refused: a strip of 1 x 20,000 px would be enlarged to five billion.
MAX_WORKING_PIXELS = 1 << 30


@dataclass(frozen=True, slots=True)
class ScoreMap:
    """What a probe says of each pixel. Large arrays are read-only memory maps of files that vanish with them.

    Attributes
    ----------
    scores : ndarray of float32, shape (height, width) or (height, width, 3)
        In [0, 1], at the image's own size: the share of evidence for INPAINTED, or all three classes.
    disagreement : ndarray of float32, shape (height, width)
        Standard deviation of the overlapping windows' own scores, at the image's own size.
    logits : ndarray of float32, shape (working height, working width, 1 or 3)
        Aggregated logits at working size.
    n_windows : ndarray of int32, shape (working height, working width)
        Windows that saw each pixel, at working size.
    working_scores : ndarray of float32, shape (working height, working width)
        Score of INPAINTED at working size, on which whole-image numbers are taken.
    windows_seen, windows_dense : int
        Windows that were looked at, and that the stride would have looked at without ``adaptive``.
    """

    scores: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    logits: NDArray[np.float32]
    n_windows: NDArray[np.int32]
    working_scores: NDArray[np.float32]
    windows_seen: int
    windows_dense: int

    @property
    def inpainted(self) -> NDArray[np.float32]:
        """Score of INPAINTED at the image's own size, shape (height, width)."""
        return self.scores if self.scores.ndim == 2 else self.scores[..., -1]

    def frame(self) -> pd.DataFrame:
        """Return one row on the score of INPAINTED, taken at working size: mean, p99, max, and share from 0.5 on."""
        scores = self.working_scores
        numbers = {
            "height_px": self.inpainted.shape[0],
            "width_px": self.inpainted.shape[1],
            "windows_seen": self.windows_seen,
            "mean": float(scores.mean(dtype=np.float64)),
            "p99": float(np.percentile(scores, 99)),
            "max": float(scores.max()),
            "area": float((scores >= 0.5).mean()),
        }
        return pd.DataFrame([numbers])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the score of INPAINTED with a colour bar from 0 to 1."""
        return plotting.score_image(self.inpainted, ax=ax, words="score of INPAINTED")


def score_map(
    image: NDArray[np.uint8],
    backbone: Backbone,
    probe: Probe,
    *,
    window_px: int | None = None,
    stride_px: int = 128,
    upsample: Upsample = "bicubic",
    aggregate: Aggregate = "mean",
    blend: Blend = "none",
    adaptive: Adaptive | None = None,
) -> ScoreMap:
    """Slide a window over an image and return the score of each pixel.

    Parameters
    ----------
    image : ndarray of uint8, shape (height, width, 3)
        RGB, any size.
    backbone : Backbone
        The one whose embeddings the probe was fitted on; a callable without ``spec`` is taken at its word.
    probe : Probe
        With one logit, or three in the order PRISTINE, AUTOENCODED, INPAINTED.
    window_px : int, optional
        Side of the window; that of the backbone by default, and no other is possible.
    stride_px, upsample, aggregate, blend, adaptive
        See `SlidingSettings`.

    Returns
    -------
    ScoreMap

    Raises
    ------
    DataError
        If the image is not RGB bytes, or an option is none of those listed.
    IdentityError
        If probe and backbone have different model identities.
    ProbeError
        If the probe has neither one nor three logits, or `window_px` is not the backbone's.
    """
    settings = SlidingSettings(
        stride_px=stride_px, upsample=upsample, aggregate=aggregate, blend=blend, adaptive=adaptive
    )
    if window_px not in {None, backbone.spec.window_px}:
        msg = (
            f"window_px is {window_px}, the backbone was loaded for {backbone.spec.window_px}; load it for that window"
        )
        raise ProbeError(msg)
    ((_, found),) = score_maps([(None, image)], backbone, probe, settings)
    return found


def score_maps(
    items: Iterable[tuple[Key, NDArray[np.uint8]]],
    backbone: Backbone,
    probe: Probe,
    settings: SlidingSettings | None = None,
    *,
    scratch: Scratch | None = None,
) -> Iterator[tuple[Key, ScoreMap]]:
    """Slide a window over images; the windows of several images share a batch.

    An image is asked for when the windows at hand do not fill a batch, so that only the images of one batch are held.

    Parameters
    ----------
    items : iterable of (key, ndarray of uint8, shape (height, width, 3))
        RGB images of any size, with whatever tells them apart.
    backbone, probe : Backbone, Probe
        As for `score_map`.
    settings : SlidingSettings, optional
    scratch : Scratch, optional
        Where large maps are kept.

    Yields
    ------
    tuple of (key, ScoreMap)
        In the order of `items`.

    Raises
    ------
    DataError, IdentityError, ProbeError
        As for `score_map`.
    """
    _check(backbone, probe)
    head = _Head(backbone, probe)
    jobs = (_Job(key, image, head, settings or SlidingSettings(), scratch or Scratch()) for key, image in items)
    return _run(jobs, head, max(1, backbone.pins.batch_size))


def _run(waiting: Iterator[_Job[Key]], head: _Head, size: int) -> Iterator[tuple[Key, ScoreMap]]:
    jobs: deque[_Job[Key]] = deque()
    queue: deque[tuple[_Job[Key], Box]] = deque()
    more = True
    while more or queue:
        while more and len(queue) < size:
            job = next(waiting, None)
            if job is None:
                more = False
            else:
                jobs.append(job)
                queue.extend((job, box) for box in job.wanted)
        batch = [queue.popleft() for _ in range(min(size, len(queue)))]
        if batch:
            queue.extendleft(reversed(_look(batch, head)))
        while jobs and jobs[0].finished:
            done = jobs.popleft()
            yield done.key, done.result()


def _look(batch: list[tuple[_Job[Key], Box]], head: _Head) -> list[tuple[_Job[Key], Box]]:
    """Run the windows of a batch through backbone and probe, give each image its logits, return what it now wants."""
    logits = head(np.stack([job.pixels[box.slices] for job, box in batch]))
    further: list[tuple[_Job[Key], Box]] = []
    start = 0
    while start < len(batch):
        job, stop = batch[start][0], start
        while stop < len(batch) and batch[stop][0] is job:
            stop += 1
        wanted = job.receive([box for _, box in batch[start:stop]], logits[start:stop])
        further += [(job, box) for box in wanted]
        start = stop
    return further


class _Job(Generic[Key]):
    """One image on its way: its pixels at working size, the windows that it wants first, its canvas."""

    def __init__(
        self, key: Key, image: NDArray[np.uint8], head: _Head, settings: SlidingSettings, scratch: Scratch
    ) -> None:
        from dlprobe.localization.canvas import LogitCanvas

        self.key = key
        side = head.window_px
        height, width = _checked_size(image, side)
        self.pixels = enlarge(image, side)
        self._head, self._adaptive = head, settings.adaptive
        self._canvas = LogitCanvas(
            (height, width),
            (image.shape[0], image.shape[1]),
            head.n_logits,
            window_px=side,
            settings=settings,
            device=head.canvas_device,
            scratch=scratch,
        )
        self._dense = sorted(tile(height, width, side, settings.stride_px, "cover"), key=self._canvas.sort_key)
        self.wanted = self._dense
        if self._adaptive is not None:
            self.wanted = coarse_windows(self._dense, self._adaptive.coarse_every, settings.stride_px)
        self._plan: list[Box] | None = None if self._adaptive else self._dense
        self._found: dict[Box, torch.Tensor] = {}
        self._fed = 0

    @property
    def finished(self) -> bool:
        """Whether all windows are in."""
        return self._plan is not None and self._fed == len(self._plan)

    def receive(self, boxes: list[Box], logits: torch.Tensor) -> list[Box]:
        """Take the patch logits of some windows and return the windows that are wanted because of them."""
        self._found.update(zip(boxes, logits, strict=True))
        further: list[Box] = []
        if self._plan is None and len(self._found) == len(self.wanted):
            further = self._undecided()
            self._plan = sorted([*self.wanted, *further], key=self._canvas.sort_key)
        ready = list(takewhile(self._found.__contains__, (self._plan or [])[self._fed :]))
        if ready:
            self._canvas.feed(ready, _stacked([self._found.pop(box) for box in ready]))
            self._fed += len(ready)
        return sorted(further, key=self._canvas.sort_key)

    def result(self) -> ScoreMap:
        """Return the maps."""
        found = self._canvas.maps()
        scores = found.scores[..., 0] if found.scores.shape[-1] == 1 else found.scores
        return ScoreMap(
            scores,
            found.disagreement,
            found.logits,
            found.n_windows,
            found.working_scores,
            self._fed,
            len(self._dense),
        )

    def _undecided(self) -> list[Box]:
        if self._adaptive is None:
            return []
        threshold = self._head.threshold if self._adaptive.threshold is None else self._adaptive.threshold
        patch_px = self._head.patch_px
        logits = _stacked([self._found[box] for box in self.wanted]).cpu().numpy()
        undecided, seen = undecided_patches(self.wanted, logits, patch_px, threshold, self._adaptive)
        return dense_windows(self._dense, self.wanted, undecided, seen, patch_px=patch_px, budget=self._adaptive.budget)


class _Head:
    """A probe on the backbone's device, applied to windows."""

    def __init__(self, backbone: Backbone, probe: Probe) -> None:
        import torch

        self._backbone = backbone
        self._weights = torch.as_tensor(np.asarray(probe.weights, np.float32).T.copy())
        self._bias = torch.as_tensor(np.asarray(probe.bias, np.float32))
        self.window_px = backbone.spec.window_px
        self.patch_px = backbone.spec.patch_px
        self.n_logits = len(probe.bias)
        self.threshold = probe.threshold
        # sums are float64, which no other accelerator has
        self.canvas_device = torch.device(backbone.pins.device if backbone.pins.device == "cuda" else "cpu")

    def __call__(self, windows: NDArray[np.uint8]) -> torch.Tensor:
        embeddings = self._backbone(windows).float()
        logits: torch.Tensor = embeddings @ self._weights.to(embeddings.device) + self._bias.to(embeddings.device)
        return logits


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(tensors)


def _checked_size(image: NDArray[np.uint8], window_px: int) -> tuple[int, int]:
    """Return an image's working size, or refuse the image."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        msg = f"an image must be uint8 (height, width, 3), this is {image.dtype} {image.shape}; convert it to RGB"
        raise DataError(msg)
    return require_workable(image.shape[0], image.shape[1], window_px)


def require_workable(height_px: int, width_px: int, window_px: int) -> tuple[int, int]:
    """Return the working size of an image; raise `DataError` if it is too large to be looked at."""
    height, width = working_size(height_px, width_px, window_px)
    if height * width > MAX_WORKING_PIXELS:
        msg = (
            f"an image of {width_px}x{height_px} px would be enlarged to {width}x{height} px, "
            f"more than {MAX_WORKING_PIXELS:,} pixels; cut it into less narrow pieces"
        )
        raise DataError(msg)
    return height, width


def _check(backbone: Backbone, probe: Probe) -> None:
    if len(probe.bias) not in {1, 3}:
        msg = f"the probe has {len(probe.bias)} logits; localization takes one or three"
        raise ProbeError(msg)
    probe.require_model(backbone.spec, "probe and backbone")
