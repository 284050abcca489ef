"""What an extraction will do, known before work starts from the sizes in the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from dlprobe.backbones.base import require_divides
from dlprobe.cache.layout import Layout, image_order
from dlprobe.cache.stores.codecs import DTYPES
from dlprobe.data.tiling import tile, working_size
from dlprobe.errors import DataError
from dlprobe.spec import CacheSpec, Dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dlprobe.data.manifest import Manifest
    from dlprobe.spec import ModelSpec

BLOCK_BYTES = 64 << 20
MOST_BLOCK_WINDOWS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Windows and blocks of an extraction.

    Parameters
    ----------
    cache_spec : CacheSpec
        Identity of the cache to be.
    windows : ndarray of int32, shape (n, 6)
        One row a window: row of the manifest, view, and box ``y``, ``x``, ``h``, ``w`` in pixels at working size.
        Images come in an order drawn from the seed, the windows of an image side by side.
    """

    cache_spec: CacheSpec
    windows: NDArray[np.int32]

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return self._layout.n_blocks

    @property
    def bytes(self) -> int:
        """Bytes on the disk without region maps, which, compressed, add little."""
        arrays = self._layout.arrays()
        return self.n_blocks * sum(arrays[name].chunk_bytes for name in self._layout.block_arrays if name != "regions")

    @property
    def _layout(self) -> Layout:
        return Layout(self.cache_spec, len(self.windows), manifest_bytes=1)


def plan(
    manifest: Manifest,
    model_spec: ModelSpec,
    *,
    stride_px: int = 504,
    tiling: str = "spread",
    views: int = 1,
    degrade: str | None = None,
    dtype: str = "float16",
    block_windows: int | None = None,
    seed: int = 0,
) -> Plan:
    """Lay out the windows of a manifest without reading an image.

    Parameters
    ----------
    manifest : Manifest
        With the size of every image.
    model_spec : ModelSpec
        Of the backbone.
    stride_px : int
        Intended distance of two windows.
    tiling : {"spread", "cover"}
        See `dlprobe.data.tiling.tile`.
    views : int
        Views of each window; only the clean one can be extracted.
    degrade : str, optional
        Degradations of further views.
    dtype : {"float16", "float32", "int8"}
        Of the stored embeddings.
    block_windows : int, optional
        Windows in a block; else as many as make about 64 MiB, at most 64 and no more than there are.
    seed : int
        Of the order of images.

    Raises
    ------
    DataError
        If the manifest is empty or lacks sizes, or a setting is out of range.
    BackboneError
        If the patch size does not divide the window.
    """
    require_divides(model_spec.patch_px, model_spec.window_px, model_spec.backbone)
    _check(views, degrade, dtype, block_windows)
    _require_sizes(manifest)
    windows = np.array(list(_rows(manifest, model_spec.window_px, stride_px, tiling, seed)), np.int32)
    if block_windows is None:
        per_window = model_spec.grid**2 * model_spec.width * np.dtype(dtype).itemsize
        block_windows = max(1, min(MOST_BLOCK_WINDOWS, len(windows), BLOCK_BYTES // per_window))
    spec = CacheSpec(
        model=model_spec,
        tiling=tiling,
        stride_px=stride_px,
        views=views,
        degrade=degrade,
        seed=seed,
        dtype=cast("Dtype", dtype),
        block_windows=block_windows,
        manifest_sha256=manifest.sha256,
    )
    return Plan(spec, windows)


def _rows(
    manifest: Manifest, window_px: int, stride_px: int, tiling: str, seed: int
) -> Iterator[tuple[int, int, int, int, int, int]]:
    sizes = manifest.frame[["height", "width"]].to_numpy()
    for image in image_order(manifest.frame["path"].tolist(), seed):
        height, width = working_size(int(sizes[image, 0]), int(sizes[image, 1]), window_px)
        for box in tile(height, width, window_px, stride_px, tiling):
            yield image, 0, *box


def _check(views: int, degrade: str | None, dtype: str, block_windows: int | None) -> None:
    if views != 1 or degrade is not None:
        msg = f"views={views}, degrade={degrade!r}: only the clean view can be extracted; leave both out"
        raise DataError(msg)
    if dtype not in DTYPES:
        msg = f"no storage type {dtype!r}; write one of {', '.join(DTYPES)}"
        raise DataError(msg)
    if block_windows is not None and block_windows < 1:
        msg = f"block_windows is {block_windows}; it must be at least 1"
        raise DataError(msg)


def _require_sizes(manifest: Manifest) -> None:
    if not len(manifest):
        msg = "the manifest has no images; make one with `dlprobe scan`"
        raise DataError(msg)
    unknown = (manifest.frame[["width", "height"]] < 1).any(axis="columns")
    if unknown.any():
        path = manifest.frame["path"][unknown].iloc[0]
        msg = f"the manifest gives no size for {int(unknown.sum())} images (first: {path}); make it with `dlprobe scan`"
        raise DataError(msg)
