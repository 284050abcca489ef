"""Make a damaged cache whole again, and check a sound one against its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
import pandas as pd

from dlprobe import plotting
from dlprobe.backbones import load_backbone
from dlprobe.cache import FeatureCache, open_writer, verify
from dlprobe.cache.care.restoring import restore_fixed
from dlprobe.cache.care.verify import Damage
from dlprobe.cache.layout import WINDOW_FIELDS
from dlprobe.cache.places import open_place
from dlprobe.cache.records import read_block_record
from dlprobe.data.images import MAX_PIXELS
from dlprobe.errors import CacheError
from dlprobe.extraction.decoding import Unreadable, decode, images_of
from dlprobe.extraction.embedding import run_backbone
from dlprobe.extraction.planning import PlanSettings, degradations_of, plan
from dlprobe.extraction.running import cache_plan, fill
from dlprobe.extraction.stopping import sigterm_raises
from dlprobe.spec import require_same

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dlprobe.backbones.base import Backbone
    from dlprobe.cache.places import Place
    from dlprobe.cache.records import BlockRecord
    from dlprobe.data.manifest import Manifest
    from dlprobe.extraction.decoding import Crops
    from dlprobe.extraction.running import Progress
    from dlprobe.spec import CacheSpec

#: Largest relative error of a window's embeddings that rounding to a storage type, and another batch, may explain.
TOLERANCE = {"float32": 1e-3, "float16": 2e-3, "int8": 2e-2}


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
    """

    path: Path | str
    restored: tuple[str, ...]
    recomputed: tuple[int, ...]
    different: tuple[int, ...]

    def row(self) -> dict[str, Any]:
        """Return the counts as one flat row of JSON values."""
        return {
            "path": str(self.path),
            "restored": len(self.restored),
            "recomputed": len(self.recomputed),
            "different": len(self.different),
        }

    def frame(self) -> pd.DataFrame:
        """Return what was put back, one a row: ``part``, ``what`` (``restored`` or ``recomputed``), ``different``."""
        files = [(name, "restored", False) for name in self.restored]
        blocks = [(f"block {block}", "recomputed", block in self.different) for block in self.recomputed]
        return pd.DataFrame([*files, *blocks], columns=["part", "what", "different"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how many parts were restored and recomputed, and how many came out different."""
        counts = {name: self.row()[name] for name in ("restored", "recomputed", "different")}
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
    planned = plan(manifest, backbone.spec, **(_settings_of(path) or settings))
    made_from = cache_plan(planned, manifest, backbone)
    restored = restore_fixed(path, made_from) if _needs_restoring(damages) else []
    damages = [damage for damage in verify(path) if damage.block is not None]
    with sigterm_raises(), open_writer(path, made_from, allow_mixed=allow_mixed) as writer:
        blocks = sorted({damage.block for damage in damages if damage.block is not None})
        before = {block: _readable_record(place, block) for block in blocks}
        for block in blocks:
            writer.forget(block)
        fill(writer, planned, manifest, backbone, progress, max_pixels=max_pixels)
    different = [block for block, old in before.items() if old is not None and old != read_block_record(place, block)]
    return RepairReport(place.path, tuple(restored), tuple(blocks), tuple(different))


def recheck(
    manifest: Manifest,
    backbone: Backbone,
    path: str | os.PathLike[str],
    count: int,
    *,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> list[Damage]:
    """Embed some windows again and compare them with the cache.

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
        Windows whose image changed, cannot be read any more, or has other embeddings than `TOLERANCE` allows.

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
    for part in images_of(windows):
        crops = decode(manifest, part, cache.model_spec, degradations_of(cache.cache_spec), max_pixels)
        image = str(manifest.frame["path"].iloc[part.image])
        found.extend(_recheck_image(cache, backbone, image, crops, drawn[part.positions]))
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
    cache = FeatureCache(path)
    spec, pins = cache.model_spec, cache.pins
    backbone = load_backbone(
        spec.backbone,
        weights=weights or cache.origin["weights"],
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


def _recheck_image(
    cache: FeatureCache, backbone: Backbone, path: str, crops: Crops | Unreadable, drawn: NDArray[np.int64]
) -> list[Damage]:
    blocks = drawn // cache.cache_spec.block_windows
    if isinstance(crops, Unreadable):
        return [Damage(path, int(blocks[0]), (path,), crops.reason)]
    if crops.sha256 != cache.record(int(blocks[0])).images[path]:
        return [Damage(path, int(blocks[0]), (path,), "the image file is not the one that was embedded")]
    found: list[Damage] = []
    for window, block, pixels in zip(drawn.tolist(), blocks.tolist(), crops.pixels, strict=True):
        stored = cache.read([window])
        tokens, cls = run_backbone(backbone, pixels[None], cls=cache.cache_spec.cls)
        error = _relative(stored.embeddings, tokens)
        if stored.cls is not None and cls is not None:
            error = max(error, _relative(stored.cls, cls))
        if error > TOLERANCE[cache.cache_spec.dtype]:
            reason = f"window {window} differs by {error:.2g} (relative) from what this machine computes"
            found.append(Damage(path, block, (path,), reason))
    return found


def _relative(stored: NDArray[Any], fresh: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(stored.astype(np.float32) - fresh) / max(float(np.linalg.norm(fresh)), 1e-30))


def _needs_restoring(damages: list[Damage]) -> bool:
    return any(damage.block is None for damage in damages)


def _settings_of(path: str | os.PathLike[str]) -> PlanSettings | None:
    try:
        spec: CacheSpec = FeatureCache(path).cache_spec
    except CacheError:
        return None
    names = PlanSettings.__annotations__
    return cast("PlanSettings", {name: getattr(spec, name) for name in names})


def _readable_record(place: Place, block: int) -> BlockRecord | None:
    try:
        return read_block_record(place, block)
    except CacheError:
        return None
