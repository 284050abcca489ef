"""Make a damaged cache whole again, and check a sound one against its images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack, cast

import numpy as np
import pandas as pd

from dlprobe import plotting
from dlprobe.backbones import load_backbone
from dlprobe.cache import FeatureCache, open_writer, verify
from dlprobe.cache.care.restoring import restore_fixed, told_of
from dlprobe.cache.care.verify import Damage
from dlprobe.cache.layout import ROOT_RECORD, WINDOW_FIELDS
from dlprobe.cache.places import open_place
from dlprobe.cache.records import read_block_record
from dlprobe.data.images import MAX_PIXELS
from dlprobe.errors import CacheError
from dlprobe.extraction.decoding import Unreadable, decode, images_of
from dlprobe.extraction.embedding import DRIFT_LIMITS, run_backbone
from dlprobe.extraction.planning import PlanSettings, degradations_of, plan
from dlprobe.extraction.running import cache_plan, fill
from dlprobe.spec import require_same

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dlprobe.backbones.base import Backbone
    from dlprobe.cache import CachePlan
    from dlprobe.cache.layout import Attributes
    from dlprobe.cache.places import Place
    from dlprobe.cache.records import BlockRecord
    from dlprobe.data.manifest import Manifest
    from dlprobe.extraction.decoding import Crops
    from dlprobe.extraction.running import Progress
    from dlprobe.spec import CacheSpec

#: Largest relative error of a window's embeddings that rounding to a storage type may explain.
STORAGE_LIMITS = {"float32": 0.0, "float16": 1e-3, "int8": 1.9e-2}


class _Again(NamedTuple):
    """A window that is to be embedded again."""

    window: int
    image: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did.

    Parameters
    ----------
    path : Path or str
        Folder of the cache, or its URL.
    restored : tuple of str
        Files, or parts of them, that belong to no block and were put back.
    recomputed : tuple of int
        Blocks that were computed again.
    different : tuple of int
        Those of them whose bytes are not the recorded ones: an image or a library has changed since, or the machine
        computes something else. Blocks whose record was lost cannot be compared.
    set_apart : tuple of str
        Files that are no part of the cache, and what followed the end of its file: moved to its folder ``strays``.
    """

    path: Path | str
    restored: tuple[str, ...]
    recomputed: tuple[int, ...]
    different: tuple[int, ...]
    set_apart: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """Return the counts as one flat row of JSON values."""
        return {
            "path": str(self.path),
            "restored": len(self.restored),
            "recomputed": len(self.recomputed),
            "different": len(self.different),
            "set_apart": len(self.set_apart),
        }

    def frame(self) -> pd.DataFrame:
        """Return what was done, one part a row.

        Returns
        -------
        DataFrame
            With ``part``, ``what`` (``restored``, ``recomputed`` or ``set apart``) and ``different``.
        """
        files = [(name, "restored", False) for name in self.restored]
        blocks = [(f"block {block}", "recomputed", block in self.different) for block in self.recomputed]
        strays = [(name, "set apart", False) for name in self.set_apart]
        return pd.DataFrame([*files, *blocks, *strays], columns=["part", "what", "different"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how many parts were restored, recomputed and set apart, and how many came out different."""
        row = self.row()
        counts = {name.replace("_", " "): row[name] for name in ("restored", "recomputed", "different", "set_apart")}
        return plotting.bars(list(counts), list(counts.values()), ax=ax, words="files and blocks of the cache")


def repair(
    manifest: Manifest,
    backbone: Backbone,
    path: str | os.PathLike[str],
    *,
    allow_mixed: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
    **settings: Unpack[PlanSettings],
) -> RepairReport:
    """Verify a cache and compute again what is damaged or missing, and nothing else.

    Parameters
    ----------
    manifest : Manifest
        Of the images that the cache was made from.
    backbone : Backbone
        Loaded as it was then.
    path : path
        Folder of the cache.
    allow_mixed : bool
        Compute under other pins than the cache was begun with.
    max_pixels : int
        As it was then: images and masks with more pixels are rejects.
    progress : callable, optional
        Called with the number of windows that are sound and in all.
    **settings
        Settings of `dlprobe.extraction.plan`, needed only where the cache's own can no longer be read.

    Returns
    -------
    RepairReport

    Raises
    ------
    CacheError
        If there is no cache, another process writes it, or its metadata cannot be made again as they were.
    IdentityError
        If manifest or backbone are not those of the cache; the message names the fields.
    """
    place = open_place(path)
    damages = verify(path)
    if not damages:
        return RepairReport(place.path, (), (), ())
    begun = _told_of(path)
    planned = plan(manifest, backbone.spec, **(_settings_of(begun.spec) if begun else settings))
    if begun:
        require_same(
            begun.spec, planned.cache_spec, f"the cache {path} and this repair", "give its manifest and backbone"
        )
    made_from = cache_plan(planned, manifest, backbone)
    restored, apart = _restored(path, made_from, begun, damages)
    damages = [damage for damage in verify(path) if damage.block is not None]
    with open_writer(path, made_from, allow_mixed=allow_mixed) as writer:
        blocks = sorted({damage.block for damage in damages if damage.block is not None})
        before = {block: _readable_record(place, block) for block in blocks}
        for block in blocks:
            writer.forget(block)
        fill(writer, planned, manifest, backbone, progress, max_pixels=max_pixels)
    different = [block for block, old in before.items() if old is not None and old != read_block_record(place, block)]
    return RepairReport(place.path, tuple(restored), tuple(blocks), tuple(different), tuple(apart))


def recheck(
    manifest: Manifest,
    backbone: Backbone,
    path: str | os.PathLike[str],
    count: int,
    *,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> list[Damage]:
    """Embed some windows again, in batches as long as they were embedded in, and compare them with the cache.

    Parameters
    ----------
    manifest : Manifest
        Of the images that the cache was made from.
    backbone : Backbone
        Loaded as it was then.
    path : path
        Folder of the cache.
    count : int
        Number of windows, drawn from those that were not rejected.
    seed : int
        Of the draw.
    max_pixels : int
        As for the extraction: larger images cannot be read.

    Returns
    -------
    list of Damage
        Windows whose image changed, cannot be read any more, or has embeddings further away than the precision
        (`dlprobe.extraction.embedding.DRIFT_LIMITS`) and the storage type (`STORAGE_LIMITS`) explain.

    Raises
    ------
    CacheError
        If a block is missing or damaged.
    IdentityError
        If the backbone is not that of the cache.
    """
    cache = FeatureCache(path)
    require_same(cache.model_spec, backbone.spec, f"the model of {path} and the backbone", "load the same backbone")
    sound = cache.select()
    drawn = np.sort(np.random.default_rng(seed).choice(sound, min(count, len(sound)), replace=False))
    rows = manifest.frame.reset_index().set_index("path")["index"]
    table = cache.windows.iloc[drawn]
    if unknown := sorted(set(table["path"]) - set(rows.index)):
        msg = f"{unknown[0]} of {path} is not in the manifest; give the one that the cache was made from"
        raise CacheError(msg)
    table = table.assign(image=rows[table["path"]].to_numpy())
    windows = table[list(WINDOW_FIELDS)].to_numpy(np.int32)
    found: list[Damage] = []
    waiting: dict[int, list[_Again]] = {}
    for part in images_of(windows):
        crops = decode(manifest, part, cache.model_spec, degradations_of(cache.cache_spec), max_pixels)
        image = str(manifest.frame["path"].iloc[part.image])
        here = drawn[part.positions].tolist()
        reason = _why_another(cache, image, crops, here[0])
        if reason or isinstance(crops, Unreadable):
            found.append(Damage(image, here[0] // cache.cache_spec.block_windows, (image,), reason))
            continue
        for window, pixels in zip(here, crops.pixels, strict=True):
            length = _batch_length(cache, window)
            batch = waiting.setdefault(length, [])
            batch.append(_Again(window, image, pixels))
            if len(batch) == length:
                found.extend(_recheck_batch(cache, backbone, waiting.pop(length), length))
    for length, batch in waiting.items():
        found.extend(_recheck_batch(cache, backbone, batch, length))
    return found


def backbone_of(path: str | os.PathLike[str], *, weights: str | None = None) -> Backbone:
    """Load the backbone that a cache was made with, under the same pins.

    Parameters
    ----------
    path : path
        Folder of the cache.
    weights : str, optional
        Where the weights are, if not where the cache says; their content must be the same.

    Raises
    ------
    CacheError
        If there is no cache, or its metadata are damaged.
    BackboneError
        If it cannot be loaded.
    IdentityError
        If what was loaded is not the model of the cache; the message names the fields.
    """
    begun = told_of(path)
    spec, pins = begun.spec.model, begun.pins
    backbone = load_backbone(
        spec.backbone,
        weights=weights or begun.origin["weights"],
        device=pins.device,
        engine=pins.engine,
        precision=pins.precision,
        layers=spec.layers or (-1,),
        norm=True if not spec.layers else spec.norm,
        window_px=spec.window_px,
        batch_size=pins.batch_size,
        compiled=pins.compiled,
    )
    require_same(
        spec, backbone.spec, f"the model of {path} and the one that was loaded", "name its weights (--weights)"
    )
    return backbone


def _why_another(cache: FeatureCache, path: str, crops: Crops | Unreadable, window: int) -> str:
    if isinstance(crops, Unreadable):
        return crops.reason
    same = crops.sha256 == cache.record(window // cache.cache_spec.block_windows).images[path]
    return "" if same else "the image file is not the one that was embedded"


def _recheck_batch(cache: FeatureCache, backbone: Backbone, batch: list[_Again], length: int) -> Iterator[Damage]:
    """Embed windows in a batch of a length, which repeats them where they are too few."""
    precisions = (cache.pins.precision, backbone.pins.precision)
    limit = STORAGE_LIMITS[cache.cache_spec.dtype] + max(DRIFT_LIMITS[precision] for precision in precisions)
    pixels = np.stack([batch[place % len(batch)].pixels for place in range(length)])
    tokens, cls = run_backbone(backbone, pixels, cls=cache.cache_spec.cls)
    for place, (window, image, _) in enumerate(batch):
        stored = cache.read([window])
        error = _relative(stored.embeddings[0], tokens[place])
        if stored.cls is not None and cls is not None:
            error = max(error, _relative(stored.cls[0], cls[place]))
        if not error <= limit:
            reason = f"window {window} differs by {error:.2g} (relative) from what this machine computes"
            yield Damage(image, window // cache.cache_spec.block_windows, (image,), reason)


def _batch_length(cache: FeatureCache, window: int) -> int:
    """Return how many windows were embedded at once with this one: another number rounds otherwise."""
    block, size = window // cache.cache_spec.block_windows, cache.pins.batch_size
    void = {reject for found in cache.record(block).rejects for reject in found.windows}
    kept = [other for other in range(*cache.store.layout.block_range(block)) if other not in void]
    return min(size, len(kept) - kept.index(window) // size * size)


def _relative(stored: NDArray[Any], fresh: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(stored.astype(np.float32) - fresh) / max(float(np.linalg.norm(fresh)), 1e-30))


def _told_of(path: str | os.PathLike[str]) -> Attributes | None:
    try:
        return told_of(path)
    except CacheError:
        return None


def _restored(
    path: str | os.PathLike[str], plan: CachePlan, begun: Attributes | None, damages: list[Damage]
) -> tuple[list[str], list[str]]:
    """Restore what belongs to no block, with the pins, versions and origin that the cache was begun with."""
    damaged = {damage.file for damage in damages if damage.block is None}
    if not damaged:
        return [], []
    if begun is not None:
        plan = replace(plan, pins=begun.pins, software=begun.software, origin=begun.origin)
    return restore_fixed(path, _as_stored(path, plan) if ROOT_RECORD in damaged else plan)


def _as_stored(path: str | os.PathLike[str], plan: CachePlan) -> CachePlan:
    """Take what a cache holds where it says the same as the plan, and no record is left to tell which bytes were meant.

    Another machine rounds the reference embedding otherwise, another library writes the manifest otherwise.
    """
    try:
        cache = FeatureCache(path)
        same = cache.manifest.sha256 == plan.spec.manifest_sha256
        manifest, reference = cache.store.fixed("manifest"), cache.reference
    except CacheError:
        return plan
    close = _relative(reference, plan.reference) <= DRIFT_LIMITS[plan.pins.precision]
    return replace(
        plan,
        manifest=manifest if same else plan.manifest,
        reference=reference if close else plan.reference,
    )


def _settings_of(spec: CacheSpec) -> PlanSettings:
    names = PlanSettings.__annotations__
    return cast("PlanSettings", {name: getattr(spec, name) for name in names})


def _readable_record(place: Place, block: int) -> BlockRecord | None:
    try:
        return read_block_record(place, block)
    except CacheError:
        return None
