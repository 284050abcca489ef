"""Small data sets that pair an image with its mask by name: CocoGlide, AutoSplice, OpenSDI and BR-Gen."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dlprobe.data.layouts.base import (
    LAYOUTS,
    SPLIT_NAMES,
    Guess,
    Ignored,
    Item,
    Record,
    Reject,
    coco,
    contents,
    orphan_masks,
    paired,
    require,
    source_of,
)
from dlprobe.data.provenance import Variant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path, PurePosixPath

_GLIDE_FAKE = re.compile(r"^glide_inpainting_val2017_(\d+)_up$")
_GLIDE_REAL = re.compile(r"^.+_(\d+)$")
_GLIDE_MASK = re.compile(r"^.+_(\d+)_mask$")
_OPENSDI_MASKS, _OPENSDI_IMAGES = frozenset({"mask", "masks"}), frozenset({"image", "images"})
_AUTOSPLICE_FORGED = re.compile(r"^Forged_JPEG(\d+)$")
_BRGEN_FAKE = re.compile(
    r"^(?P<generator>MAT|LaMa|SDXL|BrushNet|PowerPaint)_(?P<kind>Stuff|Background)_(?P<photograph>.+)$"
)
#: Those of BR-Gen with an auto-encoder regenerate the background unless it was pasted back.
_BRGEN_VARIANTS = {
    "MAT": Variant.SP,
    "LaMa": Variant.SP,
    "SDXL": Variant.FR,
    "BrushNet": Variant.FR,
    "PowerPaint": Variant.FR,
}


@LAYOUTS.register("cocoglide")
def cocoglide_layout(root: Path) -> Iterator[Item]:
    """Read CocoGlide (Guillaro et al., TruFor): 512 pairs of 256x256 px from COCO val2017.

    ``real/{class}_{id}.png``, ``fake/glide_inpainting_val2017_{id}_up.png``, ``mask/{class}_{id}_mask.png``; pairs are
    found by number, as classes may hold spaces.

    Raises
    ------
    DataError
        If there is no such fake.
    """
    files, _ = contents(root)
    masks: dict[int, list[str]] = {}
    for path in files:
        if path.parent.name == "mask" and (found := _GLIDE_MASK.match(path.stem)):
            masks.setdefault(int(found[1]), []).append(str(path))
    fakes = [(path, int(found[1])) for path in files if (found := _GLIDE_FAKE.match(path.stem))]
    require(fakes, root, "file fake/glide_inpainting_val2017_{id}_up.png", "cocoglide")
    for path, number in fakes:
        yield paired(
            Record(str(path), Variant.SP, coco(number), generator="glide", dataset="cocoglide"), masks.get(number, [])
        )
    for path in files:
        if path.parent.name == "real" and (found := _GLIDE_REAL.match(path.stem)):
            yield Record(str(path), Variant.REAL, coco(found[1]), dataset="cocoglide")
    yield from orphan_masks(masks, {number for _, number in fakes})
    yield Guess("GLIDE works on pixels, without an auto-encoder: taken for sp", "variant", "glide")


@LAYOUTS.register("autosplice")
def autosplice_layout(root: Path, *, variant: str = "sp") -> Iterator[Item]:
    """Read AutoSplice (Jia et al., 2023): ``Authentic``, ``Forged_JPEG{100,90,75}``, ``Mask``; DALL-E 2.

    A forged image is ``{id}_{k}.jpg``; its mask is ``{id}_{k}_mask.png`` or, for all k, ``{id}_mask.png``. The JPEG
    quality stands behind the generator's name.

    Parameters
    ----------
    root : Path
        The folder with those folders.
    variant : str
        How the forged images came to be; no source says so, and the audit compares it with the pixels.

    Raises
    ------
    DataError
        If there is no forged image.
    """
    files, _ = contents(root)
    masks: dict[str, list[str]] = {}
    for path in files:
        if path.parent.name == "Mask":
            masks.setdefault(path.stem.removesuffix("_mask"), []).append(str(path))
    forged = [(path, found[1]) for path in files if (found := _AUTOSPLICE_FORGED.match(path.parent.name))]
    require(forged, root, "folder Forged_JPEG100, Forged_JPEG90 or Forged_JPEG75", "autosplice")
    used = set()
    for path, quality in forged:
        photograph = re.sub(r"_\d+$", "", path.stem)
        mask = path.stem if path.stem in masks else photograph
        used.add(mask)
        record = Record(
            str(path), variant, f"autosplice:{photograph}", generator=f"dalle2/q{quality}", dataset="autosplice"
        )
        yield paired(record, masks.get(mask, []))
    for path in files:
        if path.parent.name == "Authentic":
            yield Record(str(path), Variant.REAL, f"autosplice:{path.stem}", dataset="autosplice")
    yield from orphan_masks(masks, used)
    for quality in sorted({quality for _, quality in forged}):
        fact = f"what DALL-E 2 did to the background is unknown: taken for {variant} (JPEG quality {quality})"
        yield Guess(fact, "variant", f"dalle2/q{quality}")


@LAYOUTS.register("opensdi")
def opensdi_layout(root: Path, *, variant: str = "fr", split: str = "") -> Iterator[Item]:
    """Read OpenSDI as files named by its keys: ``{partial|full}/{generator}/{fake|real}/{name}.jpg``.

    Masks have the same key, and a folder ``masks`` or ``mask`` before it where images have ``images`` or nothing; other
    folders before it, such as ``train`` and ``test``, are the same for both.
    The published Parquet shards must be written out as files first. Wholly synthetic images (``full/*/fake``) have no
    photograph behind them: they are ignored and counted.

    Parameters
    ----------
    root : Path
        The folder.
    variant : str
        How the partial fakes came to be; no source says so, and the audit compares it with the pixels.
    split : str
        Split of everything, where no folder is called ``train`` or ``test``, with or without ``OpenSDI_`` before it.

    Raises
    ------
    DataError
        If there is no partial fake, or the folder holds Parquet shards only.
    """
    files, others = contents(root)
    shards = [path for path in others if path.suffix == ".parquet"]
    what = (
        f"files named by key (its {len(shards)} Parquet shards must be written out first)"
        if shards
        else "partial/*/fake"
    )
    keyed = [(path, key) for path in files if (key := _opensdi_key(path)) and not _is_opensdi_mask(path)]
    require([1 for _, key in keyed if key[0] == "partial" and key[2] == "fake"], root, what, "opensdi")
    masks: dict[tuple[str, ...], list[str]] = {}
    for path in files:
        if (key := _opensdi_key(path)) and _is_opensdi_mask(path):
            masks.setdefault(_opensdi_pair(path), []).append(str(path))
    for path, key in keyed:
        kind, generator, label = key[0], key[1], key[2]
        folders = (part.removeprefix("OpenSDI_") for part in path.parts[:-4])
        named = next((SPLIT_NAMES[part] for part in folders if part in {"train", "test"}), split)
        source = source_of(path.stem, "opensdi")
        if label == "real":
            yield Record(str(path), Variant.REAL, source, split=named, dataset="opensdi")
        elif kind == "full":
            yield Ignored(str(path), "wholly synthetic, no photograph behind it")
        else:
            record = Record(str(path), variant, source, generator=generator, split=named, dataset="opensdi")
            yield paired(record, masks.get(_opensdi_pair(path), []))
    yield from orphan_masks(masks, {_opensdi_pair(path) for path, _ in keyed})
    for generator in sorted({key[1] for _, key in keyed if key[0] == "partial"}):
        yield Guess(f"no source says how {generator} was applied: taken for {variant}", "variant", generator)


def _opensdi_key(path: PurePosixPath) -> tuple[str, ...]:
    parts = path.parts
    known = len(parts) >= 4 and parts[-4] in {"partial", "full"} and parts[-2] in {"fake", "real"}
    return parts[-4:] if known else ()


def _is_opensdi_mask(path: PurePosixPath) -> bool:
    return not _OPENSDI_MASKS.isdisjoint(path.parts[:-4])


def _opensdi_pair(path: PurePosixPath) -> tuple[str, ...]:
    """Return what an image and its mask share: the key without ending, and the folders that part train from test."""
    above = [part for part in path.parts[:-4] if part not in _OPENSDI_IMAGES | _OPENSDI_MASKS]
    return (*above, *path.parts[-4:-1], path.stem)


@LAYOUTS.register("br-gen")
def brgen_layout(root: Path) -> Iterator[Item]:
    """Read BR-Gen: ``Au/{photograph}``, ``Tp/{generator}_{Stuff|Background}_{photograph}``, ``Gt/{Tp stem}_mask.png``.

    Raises
    ------
    DataError
        If there is no such file in ``Tp``.
    """
    files, _ = contents(root)
    masks: dict[str, list[str]] = {}
    for path in files:
        if "Gt" in path.parts[:-1]:
            masks.setdefault(path.stem.removesuffix("_mask"), []).append(str(path))
    fakes = [path for path in files if "Tp" in path.parts[:-1]]
    require(
        [1 for path in fakes if _BRGEN_FAKE.match(path.stem)], root, "Tp/{generator}_{Stuff|Background}_*", "br-gen"
    )
    for path in fakes:
        if not (found := _BRGEN_FAKE.match(path.stem)):
            names = ", ".join(_BRGEN_VARIANTS)
            yield Reject(
                str(path), f"its name does not begin with {names} and Stuff or Background", "unknown-generator"
            )
            continue
        record = Record(
            str(path),
            _BRGEN_VARIANTS[found["generator"]],
            source_of(found["photograph"], "br-gen"),
            generator=found["generator"].lower(),
            mask_kind=found["kind"].lower(),
            dataset="br-gen",
        )
        yield paired(record, masks.get(path.stem, []))
    for path in files:
        if "Au" in path.parts[:-1]:
            yield Record(str(path), Variant.REAL, source_of(path.stem, "br-gen"), dataset="br-gen")
    yield from orphan_masks(masks, {path.stem for path in fakes})
    for name, variant in _BRGEN_VARIANTS.items():
        yield Guess(f"no source says whether {name} kept the background: taken for {variant}", "variant", name.lower())
