"""Windows of a manifest, decoded and embedded when they are asked for; they read like those of caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlprobe.cache import Block
from dlprobe.cache.reader import window_table
from dlprobe.cache.stream import groups
from dlprobe.data.images import MAX_PIXELS
from dlprobe.errors import BackboneError
from dlprobe.extraction import plan
from dlprobe.extraction.decoding import Unreadable, decoded_ahead
from dlprobe.extraction.embedding import moments, run_backbone
from dlprobe.extraction.planning import degradations_of
from dlprobe.probes import GroupMoments
from dlprobe.spec import sha256_of_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from dlprobe.backbones.base import Backbone
    from dlprobe.data.manifest import Manifest
    from dlprobe.extraction.planning import PlanSettings

#: Blocks whose windows are mixed, as in a cache that is read by `FeatureCache.blocks`.
BUFFER_BLOCKS = 2


class Decoded(NamedTuple):
    """Pixels uint8 (n, window_px, window_px, 3), coverage uint8 (n, rows, cols, 4), and numbers of the windows (n,)."""

    pixels: NDArray[np.uint8]
    coverage: NDArray[np.uint8]
    windows: NDArray[np.int64]


class LiveWindows:
    """The windows that a cache of a manifest would hold, in its order, without the cache.

    Parameters
    ----------
    manifest : Manifest
        Images with their sizes.
    backbone : Backbone
        Embeds; it may change between two readings, nothing is kept.
    settings : mapping
        Of `dlprobe.extraction.plan`.
    max_pixels : int
        Images and masks with more pixels are rejects.

    Attributes
    ----------
    windows : DataFrame
        One row a window: the columns of `FeatureCache.windows` that the images themselves say, and ``cache``, 0.
    kept : ndarray of bool, shape (window,)
        False where the image turned out to be unreadable.
    rejects : dict of str to str
        Reasons, by path.
    backbone : Backbone
    manifest_sha256 : str
    """

    def __init__(
        self, manifest: Manifest, backbone: Backbone, settings: PlanSettings, *, max_pixels: int = MAX_PIXELS
    ) -> None:
        planned = plan(manifest, backbone.spec, **settings)
        self._manifest, self._max_pixels = manifest, max_pixels
        self._rows, self._spec = planned.windows, planned.cache_spec
        self.manifest_sha256 = planned.cache_spec.manifest_sha256
        self.windows: pd.DataFrame = window_table(planned.windows, manifest, self._spec.block_windows).assign(cache=0)
        self.kept: NDArray[np.bool_] = np.ones(len(planned.windows), bool)
        self.rejects: dict[str, str] = {}
        self._hashes: dict[str, str] = {}
        self.backbone = backbone

    def image_hashes(self, sources: Collection[str]) -> dict[str, str]:
        """Return the sha256 of image files by path: of those that were decoded, as they were then, and of others.

        Parameters
        ----------
        sources : collection of str
            Of the others, files of these ``source_id`` are read, such as images of generators that are held out.
        """
        listed = self.kept & self.windows["source_id"].isin(list(sources)).to_numpy(dtype=bool)
        others = sorted(set(self.windows.loc[listed, "path"]) - set(self._hashes))
        files = {path: self._manifest.root / path for path in others}
        return self._hashes | {path: sha256_of_file(file) for path, file in files.items() if file.is_file()}

    def blocks(self, selected: NDArray[np.bool_]) -> Iterator[Block]:
        """Decode and embed windows in stored order, block by block; those of unreadable images are left out.

        Parameters
        ----------
        selected : ndarray of bool, shape (window,)
        """
        indices = np.flatnonzero(selected & self.kept)
        if not len(indices):
            return
        for part in self._decoded(groups(indices, self._spec.block_windows, seed=None, buffer_blocks=BUFFER_BLOCKS)):
            if len(part.windows):
                yield Block(run_backbone(self.backbone, part.pixels)[0], part.coverage, part.windows)

    def minibatches(
        self, selected: NDArray[np.bool_], batch_windows: int, *, seed: int, first: int = 0
    ) -> Iterator[Decoded]:
        """Decode the mini-batches of one epoch, in the order in which ``fit`` reads those of a cache.

        Parameters
        ----------
        selected : ndarray of bool, shape (window,)
        batch_windows : int
            The last batch may be shorter; so may one with an image that is found unreadable.
        seed : int
            Of the order.
        first : int
            Batches to leave out at the beginning, undecoded.
        """
        order = groups(
            np.flatnonzero(selected & self.kept), self._spec.block_windows, seed=seed, buffer_blocks=BUFFER_BLOCKS
        )
        wanted = _without(order, first * batch_windows)
        rest: Decoded | None = None
        for part, group in zip(self._decoded(wanted), wanted, strict=True):
            place = {window: row for row, window in enumerate(part.windows.tolist())}
            found = _rows(part, [place[window] for window in group.tolist() if window in place])
            found = found if rest is None else _joined(rest, found)
            whole = len(found.windows) // batch_windows * batch_windows
            for low in range(0, whole, batch_windows):
                yield _rows(found, slice(low, low + batch_windows))
            rest = _rows(found, slice(whole, None)) if whole < len(found.windows) else None
        if rest is not None:
            yield rest

    def steps(self, selected: NDArray[np.bool_], batch_windows: int) -> int:
        """Return how many mini-batches an epoch has."""
        return -(-int((selected & self.kept).sum()) // batch_windows)

    def moments(self, selected: NDArray[np.bool_]) -> GroupMoments:
        """Embed windows once, and return the sums over their patches as those of group 0."""
        sums = np.zeros((2, self.backbone.spec.width))
        patches = 0
        for block in self.blocks(selected):
            sums += moments(block.embeddings).astype(np.float64).sum(axis=0)
            patches += block.coverage[..., 0].size
        return GroupMoments(np.array([float(patches)]), sums[:1], sums[1:])

    def not_finite(self, window: int) -> BackboneError:
        """Return the error of a window whose embeddings are not finite."""
        row, name = self.windows.loc[window], self.backbone.spec.backbone
        where = f"{row['path']} at y={row['y']}, x={row['x']}"
        return BackboneError(f"{name} gives values that are not finite for {where}; choose a smaller learning rate")

    def _decoded(self, wanted: Sequence[NDArray[np.int64]]) -> Iterator[Decoded]:
        """Decode runs of windows, each sorted by number, and note hashes; an unreadable image is noted and left out."""
        numbers = [np.sort(part) for part in wanted]
        model, rows = self._spec.model, [self._rows[part] for part in numbers]
        degradations = degradations_of(self._spec)
        with decoded_ahead(self._manifest, rows, model, degradations, max_pixels=self._max_pixels) as images:
            for part, found in zip(numbers, images, strict=True):
                pixels = np.zeros((len(part), model.window_px, model.window_px, 3), np.uint8)
                coverage = np.zeros((len(part), model.grid, model.grid, 4), np.uint8)
                sound = np.ones(len(part), bool)
                for image, crops in found:
                    path = str(self._manifest.frame["path"].iloc[image.image])
                    if isinstance(crops, Unreadable):
                        sound[image.positions] = False
                        self.rejects[path] = crops.reason
                    else:
                        self._hashes[path] = crops.sha256
                        pixels[image.positions], coverage[image.positions] = crops.pixels, crops.coverage
                self.kept[part[~sound]] = False
                yield Decoded(pixels[sound], coverage[sound], part[sound])


def _without(order: Sequence[NDArray[np.int64]], count: int) -> list[NDArray[np.int64]]:
    """Return the groups without their first `count` windows."""
    left = []
    for group in order:
        if count < len(group):
            left.append(group[count:])
        count = max(0, count - len(group))
    return left


def _rows(part: Decoded, rows: slice | list[int]) -> Decoded:
    return Decoded(part.pixels[rows], part.coverage[rows], part.windows[rows])


def _joined(first: Decoded, second: Decoded) -> Decoded:
    return Decoded(
        np.concatenate([first.pixels, second.pixels]),
        np.concatenate([first.coverage, second.coverage]),
        np.concatenate([first.windows, second.windows]),
    )
