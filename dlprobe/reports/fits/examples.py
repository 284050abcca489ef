"""The worst and the best tested images of a run, scored again from its caches by the probe that never saw them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from dlprobe.data import label_patches
from dlprobe.data.images import enlarge, read_image
from dlprobe.data.labels import IGNORE, TRUTH_SCHEME
from dlprobe.data.provenance import Provenance
from dlprobe.errors import CacheError, DataError, DlprobeError
from dlprobe.probes import Probe
from dlprobe.reports.page import jpeg_uri, png_uri
from dlprobe.reports.slider import UNCOUNTED_LEVEL, Exhibit, logit_levels
from dlprobe.studies.fit import FOLDS_FOLDER, slug
from dlprobe.studies.fitting.pool import open_pools, share_grid
from dlprobe.studies.fitting.scoring import EVERYTHING, HALF, clean, images_of, inpainted_logit
from dlprobe.studies.pixels import IMAGE_KEY, boxes_of
from dlprobe.studies.results import FAKE_VARIANTS, MAIN_METHOD, METHOD_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from dlprobe.data.tiling import Box
    from dlprobe.studies import Run
    from dlprobe.studies.fitting.pool import CachePool
    from dlprobe.studies.fitting.scoring import WindowsOfImage

#: Images of each variant at either end of its scores, shared among the models of a run.
EXAMPLES = 3
#: Longer side of a picture, at least one pixel a patch.
_SIDE_PX = 560
#: Between windows, which are drawn apart because they may overlap.
_GAP_PX = 4
_TRUTH_LEVELS = {0: 0, 1: 255, IGNORE: UNCOUNTED_LEVEL}
#: How provenance classes are drawn where there is no photograph.
_GREYS = {Provenance.PRISTINE: 225, Provenance.AUTOENCODED: 190, Provenance.INPAINTED: 140, Provenance.VOID: 255}


class Extremes(NamedTuple):
    """Images of the page, and lines about those that are missing."""

    exhibits: list[Exhibit]
    notes: list[str]


def worst_and_best(run: Run, images: Path | None = None) -> Extremes:
    """Return the images of each variant on which the main method does worst and best.

    Parameters
    ----------
    run : Run
        Its caches must still lie where they were; otherwise a note says what is wrong with them.
    images : Path, optional
        Folder that the paths of the images start from; region maps are shown without.

    Returns
    -------
    Extremes
        Logits are those of patches: their IoU at the score 0.5 is the one of a run that was scored on patches.
    """
    try:
        pools = _pools(run)
    except (DlprobeError, OSError) as error:
        return Extremes([], [f"No worst and best images: {error}"])
    table = _main_rows(run)
    each = max(1, EXAMPLES // len(pools))
    exhibits = [
        exhibit
        for model, pool in pools.items()
        for exhibit in _of_model(run, pool, _ends(table[table["model"] == model], each), images)
    ]
    notes = (
        [] if images else ["Greys are provenance classes; with the images' folder (--images) photographs are shown."]
    )
    return Extremes(exhibits, notes)


def _pools(run: Run) -> dict[str, CachePool]:
    """Open the caches of a run as the fit did."""
    recorded = [cache for model in run.record["models"].values() for cache in model["caches"]]
    if not recorded:
        msg = "the run was not made from caches"
        raise CacheError(msg)
    pools = [pool for pool, _ in open_pools([cache["path"] for cache in recorded], allow_partial=True)]
    known = {cache["cache_fingerprint"] for cache in recorded}
    for pool in pools:
        for cache in pool.caches:
            if cache.cache_spec.fingerprint not in known:
                msg = f"{cache.path} is another cache by now; fit again"
                raise CacheError(msg)
    share_grid(pools)
    return dict(zip(run.record["models"], pools, strict=True))


def _main_rows(run: Run) -> pd.DataFrame:
    """Return the rows of the method that comparisons are about, taught the truth where that was taught."""
    images = run.tables["images"]
    rows = images[(images["method"] != EVERYTHING) & (images["seed"] == run.record["settings"]["seed"])]
    for column, wanted in (("method", MAIN_METHOD), ("scheme", TRUTH_SCHEME)):
        chosen = wanted if (rows[column] == wanted).any() else rows[column].iloc[0]
        rows = rows[rows[column] == chosen]
    return rows


def _ends(rows: pd.DataFrame, each: int) -> Iterator[dict[str, Any]]:
    """Yield the rows at either end of each variant, of a source one at most at an end, and say which end."""
    for variant, part in rows.groupby("variant", sort=False):
        column, rises = ("iou", True) if variant in FAKE_VARIANTS else ("false_area", False)
        ranked = part.dropna(subset=[column]).sort_values([column, "path"], ascending=[rises, True], kind="stable")
        worst = ranked.drop_duplicates("source_id").head(each)
        best = ranked.drop(worst.index).drop_duplicates("source_id", keep="last").tail(each)
        for words, end in (("worst", worst), ("best", best)):
            yield from end.assign(end=words).to_dict("records")


def _of_model(run: Run, pool: CachePool, rows: Iterator[dict[str, Any]], images: Path | None) -> Iterator[Exhibit]:
    wanted = {tuple(row[name] for name in IMAGE_KEY): row for row in rows}
    keys = zip(*(pool.windows[name] for name in IMAGE_KEY), strict=True)
    found = {}
    for part in images_of(pool, np.array([key in wanted for key in keys]) & clean(pool)):
        key = tuple(pool.windows.loc[part.windows[0], IMAGE_KEY])
        row = wanted[key]
        name = f"{row['method']}-{row['scheme']}-{row['fold']}.safetensors"
        probe = Probe.load(run.path / "probes" / slug(row["model"]) / FOLDS_FOLDER / name)
        found[key] = _exhibit(row, pool, part, probe, images)
    yield from (found[key] for key in wanted if key in found)


def _exhibit(row: dict[str, Any], pool: CachePool, part: WindowsOfImage, probe: Probe, images: Path | None) -> Exhibit:
    logits = np.asarray(probe.logits(part.embeddings), np.float32)
    single = logits[..., 0] if logits.shape[-1] == 1 else inpainted_logit(logits)
    labels = label_patches(part.coverage, TRUTH_SCHEME)
    truth = np.select([labels == kind for kind in _TRUTH_LEVELS], list(_TRUTH_LEVELS.values())).astype(np.uint8)
    boxes = boxes_of(pool.windows.loc[part.windows])
    patches = single.shape[1]
    zoom = max(1, min(pool.model_spec.patch_px, _SIDE_PX // (patches * _across(boxes))))
    pixels, words = _shown(row, pool, part, boxes, images)
    side = zoom * patches
    photo = np.stack([cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA) for tile in pixels])
    levels = logit_levels(single, HALF)
    about = [f"{row['end']} of {row['variant']}:", row["generator"], row["mask_kind"], row["source_id"], row["path"]]
    about += [f"({', '.join(row[name] for name in METHOD_KEY)})", words]
    return Exhibit(
        jpeg_uri(_apart(photo, boxes, 255)),
        png_uri(_apart(_zoomed(levels, zoom), boxes, 0)),
        png_uri(_apart(_zoomed(truth, zoom), boxes, UNCOUNTED_LEVEL)),
        " ".join(word for word in about if word),
        row["variant"] in FAKE_VARIANTS,
    )


def _shown(
    row: dict[str, Any], pool: CachePool, part: WindowsOfImage, boxes: Sequence[Box], images: Path | None
) -> tuple[NDArray[np.uint8], str]:
    """Return the windows' pixels, or their region maps where the photograph is not to be had."""
    words = ""
    if images is not None:
        first = pool.windows.loc[part.windows[0]]
        known = pool.caches[first["cache"]].manifest.frame.iloc[first["image"]]
        try:
            photo = read_image(images / row["path"])
        except DataError:
            words = "(the image is not there)"
        else:
            if photo.shape[:2] == (known["height"], known["width"]):
                whole = enlarge(photo, pool.model_spec.window_px)
                return np.stack([whole[box.slices] for box in boxes]), ""
            words = "(another image is there by now)"
    greys = np.zeros(256, np.uint8)
    greys[list(_GREYS)] = list(_GREYS.values())
    return np.repeat(greys[pool.regions(part.windows)][..., None], 3, axis=-1), words


def _zoomed(grids: NDArray[np.uint8], zoom: int) -> NDArray[np.uint8]:
    return grids.repeat(zoom, axis=1).repeat(zoom, axis=2)


def _across(boxes: Sequence[Box]) -> int:
    """Return the larger number of windows beside or below each other."""
    return max(len({box.y for box in boxes}), len({box.x for box in boxes}))


def _apart(tiles: NDArray[np.uint8], boxes: Sequence[Box], blank: int) -> NDArray[np.uint8]:
    """Return windows as they lie in their image, with gaps between them that do not count."""
    rows, cols = sorted({box.y for box in boxes}), sorted({box.x for box in boxes})
    height, width = tiles.shape[1] + _GAP_PX, tiles.shape[2] + _GAP_PX
    canvas = np.full((height * len(rows) - _GAP_PX, width * len(cols) - _GAP_PX, *tiles.shape[3:]), blank, np.uint8)
    for tile, box in zip(tiles, boxes, strict=True):
        y, x = height * rows.index(box.y), width * cols.index(box.x)
        canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return canvas
