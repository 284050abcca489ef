"""The images of an evaluation on their way through all conditions: maps that are missing are computed and kept."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dlprobe.data.images import image_size, read_image
from dlprobe.data.provenance import Provenance
from dlprobe.errors import DataError
from dlprobe.localization import require_workable, score_maps
from dlprobe.spec import sha256_of_file
from dlprobe.studies.evaluation.maps import degraded
from dlprobe.studies.evaluation.scoring import Case, regions_of
from dlprobe.studies.results import FAKE_VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dlprobe.backbones import Backbone
    from dlprobe.localization import SlidingSettings
    from dlprobe.probes import Probe
    from dlprobe.studies.evaluation.maps import MapStore
    from dlprobe.studies.evaluation.settings import Condition
    from dlprobe.studies.evaluation.subjects import Subjects


class Reject(NamedTuple):
    """An image that could not be scored under a condition, and why."""

    path: str
    degradation: str
    chain: str
    reason: str


class Work:
    """The images on their way through all conditions: what is computed, kept, rejected and ignored."""

    def __init__(
        self,
        subjects: Subjects,
        ladder: list[Condition],
        store: MapStore,
        max_pixels: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._subjects, self._ladder, self._store = subjects, ladder, store
        self._max_pixels, self._progress = max_pixels, progress
        self._rows: list[dict[str, Any]] = []
        self._refused: set[tuple[str, str]] = set()
        self._steps, self._total = 0, 2 * len(subjects.frame) * len(ladder)
        self.rejects: list[Reject] = []
        self.ignored = Counter(subjects.ignored)
        self.computed = self.kept = 0

    def compute(self, backbone: Backbone, probe: Probe, slide: SlidingSettings) -> None:
        """Compute every map that is not there."""
        for path, found in score_maps(self._missing(), backbone, probe, slide):
            self._store.write(path, found)
            self.computed += 1
            self.step()
        if not self._rows:
            reason = self.rejects[0].reason if self.rejects else "; ".join(self.ignored)
            msg = f"not one of {len(self._subjects.frame)} images can be scored: {reason}"
            raise DataError(msg)
        self._total = self._steps + sum(1 for _ in self.cases())

    def cases(self) -> Iterator[Case]:
        """Yield what can be scored, image by image."""
        for row in self._rows:
            for condition in self._ladder:
                if (row["path"], condition.chain) not in self._refused:
                    yield Case(row, row["sha256"], condition, self._store.path(row["sha256"], condition))

    def step(self) -> None:
        """Count a step."""
        self._steps += 1
        if self._progress:
            self._progress(self._steps, self._total)

    def accounting(self, images: int) -> dict[str, int]:
        """Return where every image of the manifest went."""
        rejected = len({reject.path for reject in self.rejects if not reject.chain})
        return {
            "images": images,
            "scored": len(self._rows),
            "rejected": rejected,
            "ignored": self.ignored.total(),
            "maps_computed": self.computed,
            "maps_kept": self.kept,
        }

    def notes(self) -> list[str]:
        """Return lines on what was left out on the way."""
        partly = [reject for reject in self.rejects if reject.chain]
        return [f"{len(partly)} images could not be degraded; the table of rejects names them"] if partly else []

    def _missing(self) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
        """Yield the images whose maps are not there, under each condition, and where the maps go."""
        for given in self._subjects.frame.to_dict("records"):
            try:
                image = _Image(given, self._subjects.root, self._max_pixels, self._store)
                if not image.has_something_to_score:
                    self.ignored["a fake without an inpainted pixel"] += 1
                    continue
                paths = {condition: self._store.path(image.sha256, condition) for condition in self._ladder}
                missing = [condition for condition in self._ladder if not paths[condition].is_file()]
                if missing:
                    image.decode()
            except DataError as error:
                self.rejects.append(Reject(str(given["path"]), "", "", str(error)))
                continue
            self._rows.append(image.row)
            self.kept += len(paths) - len(missing)
            yield from self._degraded(image, {condition: paths[condition] for condition in missing})

    def _degraded(self, image: _Image, paths: Mapping[Condition, Path]) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
        for condition, path in paths.items():
            try:
                pixels = image.under(condition)
            except DataError as error:
                self._refused.add((image.row["path"], condition.chain))
                self.rejects.append(Reject(image.row["path"], condition.name, condition.chain, str(error)))
            else:
                yield path, pixels


class _Image:
    """An image of the manifest: its truth is read at once, its pixels only if a map is missing."""

    def __init__(self, given: Mapping[Hashable, Any], root: Path, max_pixels: int, store: MapStore) -> None:
        self._path, self._max_pixels, self._store = root / given["path"], max_pixels, store
        height, width = image_size(self._path, max_pixels=max_pixels)
        if (given["height"], given["width"]) not in {(height, width), (0, 0)}:
            msg = (
                f"image {self._path} is {width}x{height} px, the manifest says {given['width']}x{given['height']}; "
                "scan the data set again"
            )
            raise DataError(msg)
        self.sha256 = sha256_of_file(self._path)
        self.row: dict[str, Any] = {str(name): value for name, value in given.items()}
        self.row |= {"height": height, "width": width, "sha256": self.sha256}
        self._regions = regions_of(self.row, root, max_pixels)
        self._pixels = np.zeros((0, 0, 3), np.uint8)
        fake = given["variant"] in FAKE_VARIANTS
        self.has_something_to_score = not fake or bool((self._regions == Provenance.INPAINTED).any())

    def decode(self) -> None:
        """Read the pixels; raise `DataError` if they cannot be read or looked at."""
        require_workable(self.row["height"], self.row["width"], self._store.window_px)
        self._pixels = read_image(self._path, max_pixels=self._max_pixels)

    def under(self, condition: Condition) -> NDArray[np.uint8]:
        """Return the pixels under a condition."""
        pixels, _ = degraded(self._pixels, self._regions, condition, self._store.seed, self.sha256)
        require_workable(pixels.shape[0], pixels.shape[1], self._store.window_px)
        return pixels
