"""The sliding window: from an image, a backbone and a probe to a score map.

The recipe is DinoLizer's official inference (arXiv 2511.20722): windows of 504 px every 128 px with the last one
clamped, bicubic upsampling of patch logits (``align_corners=False``), sum over windows divided by their number, and
only then the sigmoid or softmax. Small images are enlarged first (`dlprobe.data.tiling.working_size`), the map is
resized back.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from dlprobe.data.images import enlarge
from dlprobe.data.tiling import Box, tile
from dlprobe.errors import DataError, ProbeError
from dlprobe.localization.canvas import LogitCanvas, scores_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from dlprobe.backbones import Backbone
    from dlprobe.probes import Probe

Upsample = Literal["bicubic", "bilinear", "nearest"]
Aggregate = Literal["mean", "sum"]
UPSAMPLES: tuple[Upsample, ...] = ("bicubic", "bilinear", "nearest")
AGGREGATES: tuple[Aggregate, ...] = ("mean", "sum")


@dataclass(frozen=True, slots=True)
class ScoreMap:
    """What a probe says of each pixel.

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
    """

    scores: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    logits: NDArray[np.float32]
    n_windows: NDArray[np.int32]

    @property
    def inpainted(self) -> NDArray[np.float32]:
        """Score of INPAINTED at the image's own size, shape (height, width)."""
        return self.scores if self.scores.ndim == 2 else self.scores[..., -1]

    @property
    def working_scores(self) -> NDArray[np.float32]:
        """Score of INPAINTED at working size, on which whole-image numbers are taken."""
        return scores_of(self.logits)[..., -1]


def score_map(
    image: NDArray[np.uint8],
    backbone: Backbone,
    probe: Probe,
    *,
    window_px: int | None = None,
    stride_px: int = 128,
    upsample: Upsample = "bicubic",
    aggregate: Aggregate = "mean",
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
    stride_px : int
        Distance of two windows; the last one is clamped to the border.
    upsample : {"bicubic", "bilinear", "nearest"}
        From patches to pixels, of logits.
    aggregate : {"mean", "sum"}
        Of the logits of overlapping windows. A sum makes borders and centre incomparable; it is there to reproduce
        others' numbers.

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
    _check_options(upsample, aggregate)
    _check(image, backbone, probe, window_px)
    side = backbone.spec.window_px
    working = enlarge(image, side)
    height, width = working.shape[:2]
    boxes = tile(height, width, side, stride_px, "cover")
    canvas = LogitCanvas(height, width, len(probe.bias))
    head = _Head(backbone, probe)
    for batch in _batched(boxes, backbone.pins.batch_size):
        windows = np.stack([working[box.slices] for box in batch])
        pixels = _upsampled(head(windows), side, upsample)
        for box, logits in zip(batch, pixels, strict=True):
            canvas.feed(box, logits)
    logits = canvas.logits(aggregate)
    scores = resize_to(scores_of(logits), image.shape[:2])
    disagreement = resize_to(canvas.disagreement()[..., None], image.shape[:2])[..., 0]
    return ScoreMap(scores[..., 0] if scores.shape[-1] == 1 else scores, disagreement, logits, canvas.n_windows)


def resize_to(maps: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """Return maps of values in [0, 1] at another size: PIL bicubic on each channel, then clipped to [0, 1].

    Parameters
    ----------
    maps : ndarray of float32, shape (height, width, channels)
        Probabilities.
    size : tuple of int
        New height and width.
    """
    if maps.shape[:2] == tuple(size):
        return maps
    height, width = size
    channels = [Image.fromarray(np.ascontiguousarray(maps[..., i])) for i in range(maps.shape[-1])]
    resized = [np.asarray(channel.resize((width, height), Image.Resampling.BICUBIC)) for channel in channels]
    return np.asarray(np.clip(np.stack(resized, axis=-1), 0, 1), dtype=np.float32)


class _Head:
    """A probe on the backbone's device, applied to windows."""

    def __init__(self, backbone: Backbone, probe: Probe) -> None:
        import torch

        self._backbone = backbone
        self._weights = torch.as_tensor(np.asarray(probe.weights, np.float32).T.copy())
        self._bias = torch.as_tensor(np.asarray(probe.bias, np.float32))

    def __call__(self, windows: NDArray[np.uint8]) -> torch.Tensor:
        embeddings = self._backbone(windows).float()
        logits: torch.Tensor = embeddings @ self._weights.to(embeddings.device) + self._bias.to(embeddings.device)
        return logits


def _upsampled(logits: torch.Tensor, side_px: int, mode: Upsample) -> NDArray[np.float32]:
    from torch.nn.functional import interpolate

    align = None if mode == "nearest" else False
    pixels = interpolate(logits.movedim(-1, 1), size=(side_px, side_px), mode=mode, align_corners=align)
    return np.asarray(pixels.movedim(1, -1).cpu().numpy(), dtype=np.float32)


def _batched(boxes: list[Box], size: int) -> Iterator[list[Box]]:
    rest = iter(boxes)
    while batch := list(islice(rest, max(1, size))):
        yield batch


def _check_options(upsample: str, aggregate: str) -> None:
    for name, value, choices in (("upsample", upsample, UPSAMPLES), ("aggregate", aggregate, AGGREGATES)):
        if value not in choices:
            msg = f"{name} is {value!r}; write one of {', '.join(choices)}"
            raise DataError(msg)


def _check(image: NDArray[np.uint8], backbone: Backbone, probe: Probe, window_px: int | None) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        msg = f"an image must be uint8 (height, width, 3), this is {image.dtype} {image.shape}; convert it to RGB"
        raise DataError(msg)
    if len(probe.bias) not in {1, 3}:
        msg = f"the probe has {len(probe.bias)} logits; localization takes one or three"
        raise ProbeError(msg)
    probe.require_model(backbone.spec, "probe and backbone")
    if window_px not in {None, backbone.spec.window_px}:
        msg = (
            f"window_px is {window_px}, the backbone was loaded for {backbone.spec.window_px}; load it for that window"
        )
        raise ProbeError(msg)
