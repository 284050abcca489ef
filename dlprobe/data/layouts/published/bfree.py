"""B-Free's training data (Guillaro et al., CVPR 2025): one folder per variant, 512x512 px, all from COCO train2017."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from dlprobe.data.layouts.base import (
    LAYOUTS,
    SPLIT_NAMES,
    Finding,
    Guess,
    Ignored,
    Item,
    Record,
    Reject,
    coco,
    contents,
    require,
)
from dlprobe.data.manifest import as_text, read_csv
from dlprobe.data.provenance import Variant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pandas as pd


class _Family(NamedTuple):
    variant: Variant
    mask_kind: str = ""


#: Folder names of ``grip-unina/B-Free/training_data/README.md``; ``origBG`` means that the background was restored.
FAMILIES = {
    "COCO_real_512": _Family(Variant.REAL),
    "SD2.1_selfconditioned": _Family(Variant.AE),
    "SD2.1_selfconditioned_origBG": _Family(Variant.AESP, "segm"),
    "SD2.1_inpainted_samecat": _Family(Variant.FR, "segm"),
    "SD2.1_inpainted_samecat_origBG": _Family(Variant.SP, "segm"),
    "SD2.1_inpainted_diffcat": _Family(Variant.FR, "bbox"),
    "SD2.1_inpainted_diffcat_origBG": _Family(Variant.SP, "bbox"),
}
GENERATOR = "sd2.1"
MASK_FOLDERS = {"mask": "segm", "masks": "segm", "bbox": "bbox", "bboxes": "bbox"}
LISTS = ("train_list.csv", "valid_list.csv")


@LAYOUTS.register("bfree")
def bfree_layout(root: Path) -> Iterator[Item]:
    """Read B-Free's folders, as they lie in any folder below `root`.

    Images are ``<folder>/<id>.png`` with the folders of `FAMILIES`; masks lie in ``mask`` or ``masks`` (the object)
    and ``bbox`` (its box) under the same name. ``train_list.csv`` and ``valid_list.csv`` give the split by their column
    ``id``.

    Parameters
    ----------
    root : Path
        Where the archives were unpacked.

    Raises
    ------
    DataError
        If there is none of the folders, or a list has no column ``id``.
    """
    images: dict[str, list[PurePosixPath]] = {}
    masks: dict[tuple[str, str], str] = {}
    files, others = contents(root)
    for path in files:
        folder = path.parent.name
        if folder in FAMILIES:
            images.setdefault(folder, []).append(path)
        elif folder in MASK_FOLDERS:
            masks[MASK_FOLDERS[folder], path.stem] = str(path)
    require(images, root, f"folder {' or '.join(FAMILIES)}", "bfree")
    tables = {path.name: read_csv(root / path) for path in others if path.name in LISTS}
    splits: dict[str, str] = {}
    for name, table in tables.items():
        require("id" in table, root / name, "column id", "bfree")
        splits |= dict.fromkeys(map(_number, as_text(table["id"])), SPLIT_NAMES[name.split("_")[0]])
    yield from _image_items(images, masks, splits)
    yield from _mask_items(images, masks)
    yield from _list_findings(images, tables, splits)
    yield Guess("white of mask and bbox is the object (no source says so)", "polarity")


def _image_items(
    images: dict[str, list[PurePosixPath]], masks: dict[tuple[str, str], str], splits: dict[str, str]
) -> Iterator[Item]:
    for folder, paths in images.items():
        variant, kind = FAMILIES[folder]
        for path in paths:
            mask = masks.get((kind, path.stem), "")
            if not path.stem.isdecimal():
                yield Reject(str(path), "its name is no COCO number, so its photograph is unknown", "no-source")
            elif kind and not mask:
                yield Reject(str(path), f"no {kind} mask named {path.stem} in mask, masks or bbox", "no-mask")
            else:
                yield Record(
                    path=str(path),
                    variant=variant,
                    source_id=coco(path.stem),
                    mask=mask,
                    generator="" if variant is Variant.REAL else GENERATOR,
                    mask_kind=kind,
                    split=splits.get(_number(path.stem), ""),
                    dataset="bfree",
                )


def _mask_items(
    images: dict[str, list[PurePosixPath]], masks: dict[tuple[str, str], str]
) -> Iterator[Ignored | Finding]:
    """Tell spare masks, whose photograph is there while some folder was not unpacked, from orphans."""
    present = {path.stem for paths in images.values() for path in paths}
    orphans = [path for (_, stem), path in masks.items() if stem not in present]
    yield from (Ignored(path, "mask" if stem in present else "orphan mask") for (_, stem), path in masks.items())
    if orphans:
        yield Finding("orphan-mask", "masks without an image", len(orphans), "warning", tuple(sorted(orphans)[:5]))


def _list_findings(
    images: dict[str, list[PurePosixPath]], tables: dict[str, pd.DataFrame], splits: dict[str, str]
) -> Iterator[Finding]:
    if not tables:
        detail = f"neither {' nor '.join(LISTS)} is there, so no image has an official split"
        yield Finding("no-split", detail, sum(map(len, images.values())), "info")
        return
    stems = {_number(path.stem) for paths in images.values() for path in paths}
    yield from _difference("unlisted-image", "photographs that no list names, so without a split", stems - {*splits})
    yield from _difference("listed-without-image", "numbers of the lists without an image", {*splits} - stems)
    lists = [set(map(_number, as_text(table["id"]))) for table in tables.values()]
    both = set.intersection(*lists) if len(lists) > 1 else set()
    yield from _difference("list-overlap", "photographs that stand in both lists", both)


def _difference(name: str, detail: str, numbers: Iterable[str]) -> Iterator[Finding]:
    if found := sorted(numbers):
        yield Finding(name, detail, len(found), "warning", tuple(found[:5]))


def _number(text: str) -> str:
    """Return an id without leading zeros or ending, as both forms are in use."""
    return PurePosixPath(text).stem.lstrip("0") or "0"
