"""Score maps on disk, by content: an image, a condition, a model, a head and the sliding window's settings."""

from __future__ import annotations

import fcntl
import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from dlprobe.data.degrade import degrade, derive_seed
from dlprobe.errors import CacheError
from dlprobe.publish import SCRATCH_PREFIX, publish
from dlprobe.spec import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from dlprobe.backbones import Backbone
    from dlprobe.localization import ScoreMap, SlidingSettings
    from dlprobe.probes import Probe
    from dlprobe.studies.evaluation.settings import Condition

SCHEMA = {"kind": "dlprobe-score-map", "version": 1}
IMAGE_SCORE_PERCENTILE = 99.0
_LOCK = "writer.lock"


class StoredMap(NamedTuple):
    """A score map as it was kept.

    Attributes
    ----------
    original : ndarray of float32, shape (height, width)
        Scores of INPAINTED at the size of the image under its condition, kept as logits of 16 bits: 0, one half and 1
        are exact, and a threshold finds every pixel whose logit is not within 1 part in 2,048 of its own.
    working : ndarray of float32
        The same at the size that the model was given; the same array where nothing was enlarged.
    image_score : float
        99th percentile of the map at working size, before it was rounded.
    """

    original: NDArray[np.float32]
    working: NDArray[np.float32]
    image_score: float


@dataclass(frozen=True, slots=True)
class MapStore:
    """A folder of score maps of one model, head and sliding window.

    Parameters
    ----------
    folder : Path
        May hold maps of other models and heads as well.
    identity : mapping
        What a map depends on beside image and condition; see `map_identity`.
    window_px : int
        Side of the model's window, which decides the working size.
    seed : int
        Of degradations.
    """

    folder: Path
    identity: dict[str, Any]
    window_px: int
    seed: int = 0

    def path(self, image_sha256: str, condition: Condition) -> Path:
        """Return where the map of an image under a condition is, or will be."""
        record = {
            "schema": SCHEMA,
            **self.identity,
            "image_sha256": image_sha256,
            "chain": condition.chain,
            "seed": None if condition.clean else self.seed,
        }
        key = fingerprint(record)
        return self.folder / key[:2] / f"{key}.npz"

    def write(self, path: Path, found: ScoreMap) -> None:
        """Keep a map, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        original, working = found.inpainted, found.working_scores
        score = float(np.percentile(working, IMAGE_SCORE_PERCENTILE))
        same = working.shape == original.shape
        with publish(path) as scratch, scratch.open("wb") as file:
            np.savez(
                file,
                original=_codes(original),
                working=np.zeros((0, 0), np.float16) if same else _codes(working),
                image_score=np.float64(score),
            )

    def read(self, path: Path) -> StoredMap:
        """Return a map.

        Raises
        ------
        CacheError
            If its file is missing or damaged.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                original = _scores(arrays["original"])
                working = _scores(arrays["working"]) if arrays["working"].size else original
                return StoredMap(original, working, float(arrays["image_score"]))
        except (OSError, BadZipFile, KeyError, ValueError, EOFError) as error:
            msg = f"the score map {path} is missing or damaged; remove that file and evaluate again"
            raise CacheError(msg) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the right to write here, and sweep what a killed process has left.

        Raises
        ------
        CacheError
            At once, if another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                msg = f"{self.folder} is being written by another evaluation; wait for it, or give another folder"
                raise CacheError(msg) from error
            for path in self.folder.glob(f"??/{SCRATCH_PREFIX}*"):
                path.unlink(missing_ok=True)
            yield


def map_identity(backbone: Backbone, probe: Probe, sliding: SlidingSettings) -> dict[str, Any]:
    """Return what a score map depends on beside the image and what happens to it.

    Parameters
    ----------
    backbone : Backbone
        Its model identity counts, and with what engine and precision it computes.
    probe : Probe
        Its weights count and its card does not: a new threshold changes no map.
    sliding : SlidingSettings
        An adaptive one without a threshold of its own follows the card's, which then counts as well.
    """
    if sliding.adaptive is not None and sliding.adaptive.threshold is None:
        sliding = replace(sliding, adaptive=replace(sliding.adaptive, threshold=probe.threshold))
    digest = hashlib.sha256()
    for array in (probe.weights, probe.bias):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "model_fingerprint": backbone.spec.fingerprint,
        "engine": backbone.pins.engine,
        "precision": backbone.pins.precision,
        "head_sha256": digest.hexdigest(),
        "sliding": sliding.record(),
    }


def degraded(
    pixels: NDArray[np.uint8], regions: NDArray[np.uint8], condition: Condition, seed: int, image_sha256: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image and its region map under a condition.

    The random numbers follow from seed and image alone, so that all strengths of a degradation share them and no order
    matters.
    """
    if condition.clean:
        return pixels, regions
    return degrade(pixels, regions, condition.chain, derive_seed(seed, "robustness", image_sha256))


def moved_regions(regions: NDArray[np.uint8], condition: Condition, seed: int, image_sha256: str) -> NDArray[np.uint8]:
    """Return the region map under a condition without the image: what moves pixels does not look at them."""
    if not condition.geometric:
        return regions
    blank = np.zeros((*regions.shape, 3), np.uint8)
    return degraded(blank, regions, condition, seed, image_sha256)[1]


def _codes(scores: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return logits with 16 bits: a threshold on the score may lie at 1e-6, where steps of the score would be lost."""
    wide = np.asarray(scores, np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(wide) - np.log1p(-wide), np.float16)


def _scores(codes: NDArray[np.float16]) -> NDArray[np.float32]:
    return np.asarray(1 / (1 + np.exp(-codes.astype(np.float64))), np.float32)
