"""The files of one localized image, published together or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.localization.outputs.inputs import RESULT_NAME, Decoded
from dlprobe.localization.outputs.pictures import HATCHED_FROM, overlay_rows, sixteen_bits, write_npy, write_png
from dlprobe.localization.outputs.summary import (
    IMAGE_SCORE_PERCENTILE,
    area_above,
    confidence,
    percentile,
    regions,
    verdict,
)
from dlprobe.localization.planes import forget_pages
from dlprobe.localization.postprocess import PostProcessing, masks_by_step
from dlprobe.localization.settings import SlidingSettings
from dlprobe.probes.probe import FILE_DIGITS, PARTS
from dlprobe.publish import publish
from dlprobe.spec import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dlprobe.backbones import Backbone
    from dlprobe.localization.sliding import ScoreMap
    from dlprobe.probes import Probe

SCHEMA = {"kind": "dlprobe-localization", "version": 1}
FILES = {
    "score.npy": "score of INPAINTED at the image's size, float32 in [0, 1]",
    "score.png": "the same, 16 bits: score times 65,535",
    "mask.png": "255 where marked after post-processing, else 0",
    "overlay.png": "image tinted vermillion by score, on the scale of logits about the threshold; border of the mask; "
    f"hatched sky blue where the windows' scores differ by a standard deviation of {HATCHED_FROM:g} or more; "
    "white dots where one window looked",
    "disagreement.png": "standard deviation of the windows' scores, 16 bits: times 65,535",
    "windows.png": "number of windows that saw the pixel, 16 bits",
}
UNKNOWN = "unknown"
#: What a probe owes to the photograph of an image, and what that means for the map.
SEEN = {
    **{
        what: f"the probe was {what} this photograph, so that its map is better than those of others will be"
        for what in PARTS.values()
    },
    "": "the probe's card lists no file of these bytes; a copy that was saved again would not be recognized",
    UNKNOWN: "the probe's card lists no files, so that nobody knows whether it was fitted on this photograph",
}
_RECORDED = ("dlprobe", "numpy", "opencv-python-headless", "pillow", "scipy", "timm", "torch")


@dataclass(frozen=True)
class Work:
    """Everything that determines a result beside the image.

    Parameters
    ----------
    backbone, probe : Backbone, Probe
    threshold : float
        Score at or above which a pixel is marked.
    sliding : SlidingSettings
    postprocessing : PostProcessing
    """

    backbone: Backbone
    probe: Probe
    threshold: float
    sliding: SlidingSettings = field(default_factory=SlidingSettings)
    postprocessing: PostProcessing = field(default_factory=PostProcessing)

    @cached_property
    def identity(self) -> str:
        """Hash of it all: a result of another identity is out of date."""
        return fingerprint({"schema": SCHEMA, **self.provenance, **self.settings})

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Where the scores come from."""
        spec, by_hand = self.backbone.spec, self.threshold != self.probe.threshold
        return {
            "threshold": self.threshold,
            "threshold_policy": "given by hand" if by_hand else self.probe.card.get("threshold_policy", ""),
            "probe_sha256": self.probe.sha256,
            "scheme": self.probe.card.get("scheme", ""),
            "backbone": spec.backbone,
            "weights": self.backbone.weights,
            "weights_sha256": spec.weights_sha256,
            "model_fingerprint": spec.fingerprint,
        }

    @cached_property
    def _seen(self) -> dict[str, str] | None:
        return self.probe.seen_files()

    def seen(self, sha256: str) -> str:
        """Return what the probe owes to an image's photograph: a key of `SEEN`."""
        return UNKNOWN if self._seen is None else self._seen.get(sha256[:FILE_DIGITS], "")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """How they were put together."""
        return {
            "sliding": self.sliding.record(),
            "postprocessing": {**self.postprocessing.record(), "steps": list(self.postprocessing.steps)},
        }


def write_result(image: Decoded, found: ScoreMap, work: Work) -> dict[str, Any]:
    """Write the files of one image into its folder and return its record."""
    scores = found.inpainted
    mask = list(masks_by_step(scores, image.pixels, work.threshold, work.postprocessing).values())[-1]
    listed, n_regions = regions(mask, scores, found.disagreement)
    area = area_above(found.working_scores, work.threshold)
    height, width = mask.shape
    seen = work.seen(image.sha256)
    record = {
        "schema": SCHEMA,
        "identity": work.identity,
        "image": {"path": image.path, "sha256": image.sha256, "height": height, "width": width},
        "working_size": {"height": found.working_scores.shape[0], "width": found.working_scores.shape[1]},
        "image_score": percentile(found.working_scores, IMAGE_SCORE_PERCENTILE),
        "image_score_is": f"percentile {IMAGE_SCORE_PERCENTILE:g} of the score map at working size",
        "area": area,
        "area_is": "share of the score map at working size at or above the threshold, before post-processing",
        "verdict": verdict(area),
        "mask_area": float(mask.mean()),
        "n_regions": n_regions,
        "regions": listed,
        "confidence": confidence(found.disagreement, found.n_windows),
        "windows_seen": found.windows_seen,
        "windows_dense": found.windows_dense,
        "seen": {"kind": seen, "says": SEEN[seen]},
        **work.provenance,
        **work.settings,
        "pins": asdict(work.backbone.pins),
        "software": _software(),
        "files": FILES,
    }
    image.folder.parent.mkdir(parents=True, exist_ok=True)
    with publish(image.folder) as scratch:
        scratch.mkdir()
        _write_files(scratch, image.pixels, found, mask, work.threshold)
        (scratch / RESULT_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _write_files(
    folder: Path, pixels: NDArray[np.uint8], found: ScoreMap, mask: NDArray[np.bool_], threshold: float
) -> None:
    scores, disagreement, shape = found.inpainted, found.disagreement, mask.shape
    n_windows = _Nearest(found.n_windows, shape)

    def sixteen(array: NDArray[np.float32], part: slice) -> NDArray[np.uint16]:
        rows = sixteen_bits(array[part])
        forget_pages(array)
        return rows

    def counts(part: slice) -> NDArray[np.uint16]:
        return np.minimum(n_windows.rows(part), 65535).astype(np.uint16)

    def drawn(part: slice) -> NDArray[np.uint8]:
        more = (disagreement[part], n_windows.rows(part))
        return overlay_rows(part, pixels[part], scores[part], mask, *more, threshold=threshold)

    write_npy(folder / "score.npy", scores)
    write_png(folder / "score.png", shape, "uint16", lambda part: sixteen(scores, part))
    write_png(folder / "disagreement.png", shape, "uint16", lambda part: sixteen(disagreement, part))
    write_png(folder / "windows.png", shape, "uint16", counts)
    write_png(folder / "mask.png", shape, "uint8", lambda part: mask[part].astype(np.uint8) * 255)
    write_png(folder / "overlay.png", pixels.shape, "uint8", drawn)


class _Nearest:
    """A map at working size, looked at from the image's own size."""

    def __init__(self, array: NDArray[np.int32], shape: tuple[int, int]) -> None:
        self._array = array
        self._y, self._x = (
            np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
            for new, old in zip(shape, array.shape, strict=True)
        )

    def rows(self, part: slice) -> NDArray[np.int32]:
        found = np.array(self._array[np.ix_(self._y[part], self._x)])
        forget_pages(self._array)
        return found


def _software() -> dict[str, str]:
    found = {}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
