"""What an extraction will do, known before work starts from the sizes in the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np

from dlprobe.backbones.base import require_divides
from dlprobe.cache.layout import Layout, usual_block_windows, view_order
from dlprobe.cache.stores.codecs import DTYPES
from dlprobe.data.degrade import find_preset
from dlprobe.data.tiling import tile, working_size
from dlprobe.errors import DataError
from dlprobe.extraction.decoding import Degradations
from dlprobe.spec import CacheSpec, Dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from dlprobe.data.manifest import Manifest
    from dlprobe.spec import ModelSpec

_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Windows and blocks of an extraction.

    Parameters
    ----------
    cache_spec : CacheSpec
        Identity of the cache to be.
    windows : ndarray of int32, shape (n, 6)
        One row a window: row of the manifest, view, and box ``y``, ``x``, ``h``, ``w`` in pixels at working size.
        Views of images come in an order drawn from the seed, the windows of one side by side.
    """

    cache_spec: CacheSpec
    windows: NDArray[np.int32]

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return self._layout.n_blocks

    @property
    def bytes(self) -> int:
        """Bytes on the disk in Zarr without region maps, which, compressed, add little."""
        return self.bytes_of(range(self.n_blocks))

    def bytes_of(self, blocks: Iterable[int], store: str = "zarr") -> int:
        """Return the bytes of some blocks: in Zarr without region maps, in HDF5, which has no padding, with them."""
        arrays = [self._layout.arrays()[name] for name in self._layout.block_arrays]
        if store == "zarr":
            return len(list(blocks)) * sum(array.chunk_bytes for array in arrays if array.name != "regions")
        return self.windows_in(blocks) * sum(array.row_bytes for array in arrays)

    def windows_in(self, blocks: Iterable[int]) -> int:
        """Return the number of windows in some blocks."""
        return sum(stop - start for start, stop in map(self._layout.block_range, blocks))

    @property
    def _layout(self) -> Layout:
        return Layout(self.cache_spec, len(self.windows), manifest_bytes=1)


class PlanSettings(TypedDict, total=False):
    """Settings of `plan` that other functions hand on."""

    stride_px: int
    tiling: str
    views: int
    degrade: str | None
    dtype: str
    block_windows: int | None
    seed: int
    cls: bool


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
    cls: bool = False,
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
        Views of each window: the clean one and ``views - 1`` degraded ones. Images that the manifest puts into ``val``
        or ``test`` have the clean one alone.
    degrade : str, optional
        Preset or chain of degradations that makes the further views (see `dlprobe.data.degrade`).
    dtype : {"float16", "float32", "int8"}
        Of the stored embeddings.
    block_windows : int, optional
        Windows in a block; else as many as make about 128 MiB, at most 64 and no more than there are.
    seed : int
        Of the order of images, and of the degradations.
    cls : bool
        Store the CLS token of every window beside its patches.

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
    identified = None if degrade is None else identified_preset(degrade)
    order = _ordered_views(manifest, views, seed)
    windows = np.array(list(_rows(manifest, order, model_spec.window_px, stride_px, tiling)), np.int32)
    if block_windows is None:
        block_windows = usual_block_windows(model_spec, dtype, len(windows))
    spec = CacheSpec(
        model=model_spec,
        tiling=tiling,
        stride_px=stride_px,
        views=views,
        degrade=identified,
        seed=seed,
        dtype=cast("Dtype", dtype),
        block_windows=block_windows,
        manifest_sha256=manifest.sha256,
        cls=cls,
    )
    return Plan(spec, windows)


def identified_preset(text: str) -> str:
    """Return a preset's name, or a chain, with the hash of all that it means: ``NAME@HASH``.

    Parameters
    ----------
    text : str
        A name or a chain, with or without the hash.

    Raises
    ------
    DataError
        If the hash is not that of the preset of this release.
    """
    name, _, expected = text.partition("@")
    preset = find_preset(name)
    found = preset.fingerprint[:_HASH_DIGITS]
    if expected and expected != found:
        msg = (
            f"the degradations {name} are not those of this release ({expected} != {found}); use the one that began it"
        )
        raise DataError(msg)
    return f"{preset.name}@{found}"


def degradations_of(spec: CacheSpec) -> Degradations | None:
    """Return what makes the degraded views of a cache; None if it has none."""
    if spec.degrade is None:
        return None
    return Degradations(find_preset(identified_preset(spec.degrade).partition("@")[0]), spec.seed)


def _ordered_views(manifest: Manifest, views: int, seed: int) -> list[tuple[int, int]]:
    clean_alone = manifest.frame["split"].isin(["val", "test"]).tolist()
    pairs = [(image, view) for image in range(len(manifest)) for view in range(1 if clean_alone[image] else views)]
    paths = manifest.frame["path"].tolist()
    return [pairs[place] for place in view_order(((paths[image], view) for image, view in pairs), seed)]


def _rows(
    manifest: Manifest, order: list[tuple[int, int]], window_px: int, stride_px: int, tiling: str
) -> Iterator[tuple[int, int, int, int, int, int]]:
    sizes = manifest.frame[["height", "width"]].to_numpy()
    for image, view in order:
        height, width = working_size(int(sizes[image, 0]), int(sizes[image, 1]), window_px)
        for box in tile(height, width, window_px, stride_px, tiling):
            yield image, view, *box


def _check(views: int, degrade: str | None, dtype: str, block_windows: int | None) -> None:
    if views < 1 or (views > 1) != (degrade is not None):
        msg = f"views={views}, degrade={degrade!r}: give both for degraded views (--views 3 --degrade NAME), or neither"
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
