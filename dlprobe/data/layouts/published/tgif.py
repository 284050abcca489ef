"""TGIF and TGIF2 (Mareen et al., 2024 and 2026): the file name says everything but the split and the category.

The patterns were read in ``IDLabMedia/tgif-dataset`` and seen on disk by a third party. Traps that this layout knows:
``<id>_mask_512.png`` is where the crop lay, no inpainting mask; spliced images were composited with the soft
``..._ps_mask.png``; a category may be called ``train`` and lies one level too deep in one archive; a photograph
stands under each of its categories.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from dlprobe.data.layouts.base import (
    LAYOUTS,
    SPLIT_NAMES,
    Finding,
    Ignored,
    Item,
    Record,
    Reject,
    coco,
    contents,
    orphan_masks,
    require,
)
from dlprobe.data.provenance import Variant
from dlprobe.spec import sha256_of_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path, PurePosixPath

_FAKE = re.compile(
    r"^(?P<id>\d+)_mask_(?P<kind>bbox|segm|random)\.png"
    r"(?P<infix>_ps_mask\.png|_blur_\d+_\d+\.png)?"
    r"_(?P<generator>sd2|ps|sdxl|flux1?[a-z]+)(?:-(?P<px>512|1024))?_\d+\.png$"
)
_ORIGINAL = re.compile(r"^(?P<id>\d+)_orig(?:_(?:512|1024))?\.png$")
_MASK = re.compile(r"^\d+_mask_(?:bbox|segm|random)(?:_(?:512|1024))?\.png(?:_ps_mask\.png|_blur_\d+_\d+\.png)?$")
_CROP = re.compile(r"^\d+_mask_(?:512|1024)\.png$")
_FIRST_GENERATORS = frozenset({"sd2", "ps", "sdxl"})
#: Names of generators in folder names, the longest first: some files of TGIF2 are all called ``sd2``.
_GENERATORS = ("flux1filldev", "flux1schnell", "flux1dev", "sdxl", "sd2", "ps")
_SOFT = "_ps_mask.png"


class _Place(NamedTuple):
    """Where a file lies: kind of folder, official split (ours), category."""

    folder: str
    split: str
    category: str


@LAYOUTS.register("tgif")
def tgif_layout(root: Path, *, masks: str = "soft") -> Iterator[Item]:
    """Read TGIF: ``{orig,masks,sd2-sp,ps-sp,sd2-fr,sdxl-fr}/{training,validation,testing}/{category}/file``.

    Parameters
    ----------
    root : Path
        The folder that holds those folders, at any depth.
    masks : {"soft", "plain"}
        Which mask a spliced image gets: the soft one that it was composited with (grey levels above 127 count), or the
        two-level one that the generator was given. Their intersection over union is .98 (bbox) and .85 (segm).

    Raises
    ------
    DataError
        If no file has a name of TGIF.
    """
    yield from _read(root, "tgif", masks)


@LAYOUTS.register("tgif2")
def tgif2_layout(root: Path, *, masks: str = "soft") -> Iterator[Item]:
    """Read TGIF2, which adds FLUX generators and random masks to TGIF, with folders such as ``masks-flux``.

    Parameters and errors are those of `tgif_layout`.
    """
    yield from _read(root, "tgif2", masks)


def _read(root: Path, dataset: str, masks: str) -> Iterator[Item]:
    require(masks in {"soft", "plain"}, root, f"masks called {masks!r} (write soft or plain)", dataset)
    files, others = contents(root)
    index: dict[tuple[str, str, str], list[PurePosixPath]] = {}
    for path in files:
        if _MASK.match(path.name):
            place = _place(path)
            index.setdefault((place.split, place.category, path.name), []).append(path)
    fakes = [(path, found) for path in files if (found := _FAKE.match(path.name))]
    originals = [(path, found) for path in files if (found := _ORIGINAL.match(path.name))]
    require(fakes or originals, root, "file named as in TGIF", dataset)
    used: Counter[str] = Counter()
    for path, found in fakes:
        item = _fake(path, found, index, dataset, masks)
        if isinstance(item, Record):
            used["soft" if item.mask.endswith(_SOFT) else "plain"] += 1
        yield item
    yield from _originals(root, originals, dataset)
    yield from _masks(files, {(_place(path).split, found["id"]) for path, found in (*fakes, *originals)})
    if used:
        detail = f"{used['soft']} images use the soft mask of their compositing, {used['plain']} the two-level one"
        yield Finding("mask-used", detail, used.total(), "info")
    yield from _twin_tables(root, [path for path in others if path.suffix == ".csv"])


def _place(path: PurePosixPath) -> _Place:
    """Find the split as the first folder with a split's name: a category called ``train`` lies below it."""
    for depth, name in enumerate(path.parts[:-2]):
        if name in {"training", "validation", "testing"}:
            return _Place(path.parts[depth - 1] if depth else "", SPLIT_NAMES[name], path.parent.name)
    return _Place(path.parts[0], "", path.parent.name)


def _fake(
    path: PurePosixPath,
    found: re.Match[str],
    index: dict[tuple[str, str, str], list[PurePosixPath]],
    dataset: str,
    masks: str,
) -> Record | Reject:
    place = _place(path)
    if not place.split:
        return Reject(str(path), "it lies in no folder training, validation or testing", "no-split")
    new = found["kind"] == "random" or found["generator"] not in _FIRST_GENERATORS
    if dataset == "tgif" and new:
        return Reject(str(path), "a file of TGIF2; scan with --layout tgif2", "other-layout")
    name = _mask_name(found, masks)
    candidates = index.get((place.split, place.category, name), [])
    if not candidates:
        return Reject(str(path), f"no mask {name} under {place.split}, {place.category}", "no-mask")
    generator = _generator(found["generator"], place.folder)
    family = re.sub(r"\d.*", "", generator) if generator.startswith("flux") else generator
    mask = min(candidates, key=lambda mask: _preference(mask, family))
    return Record(
        path=str(path),
        variant=Variant.FR if found["px"] else Variant.SP,
        source_id=coco(found["id"]),
        mask=str(mask),
        generator=generator,
        mask_kind=found["kind"] + ("-soft" if name.endswith(_SOFT) else ""),
        split=place.split,
        dataset=dataset,
    )


def _mask_name(found: re.Match[str], masks: str) -> str:
    """Return the name of the mask that an image was made with."""
    stem = f"{found['id']}_mask_{found['kind']}"
    if found["px"]:
        return f"{stem}_{found['px']}.png"
    if found["infix"] and found["infix"] != _SOFT:
        return f"{stem}.png{found['infix']}"
    soft = masks == "soft" and found["kind"] != "random"
    return f"{stem}.png{_SOFT if soft else ''}"


def _generator(named: str, folder: str) -> str:
    """Return the generator; the README writes ``sd2`` in the names of SDXL's and FLUX's, where the folder tells."""
    told = next((name for name in _GENERATORS if name in folder.lower()), "")
    return told if named == "sd2" and told else named


def _preference(mask: PurePosixPath, family: str) -> tuple[bool, bool, str]:
    """Order equal names: the mask folder of the generator's family, then the plain one, then by name."""
    folders = {part.lower() for part in mask.parts if part.lower().startswith("mask")}
    return f"masks-{family}" not in folders, "masks" not in folders, str(mask)


def _originals(root: Path, files: list[tuple[PurePosixPath, re.Match[str]]], dataset: str) -> Iterator[Item]:
    """Take a photograph under several categories once where the files are equally long; its crops differ."""
    seen: set[tuple[str, str, str, int]] = set()
    again: list[str] = []
    for path, found in files:
        place = _place(path)
        if not place.split:
            yield Reject(str(path), "it lies in no folder training, validation or testing", "no-split")
            continue
        key = (place.folder, place.split, path.name, (root / path).stat().st_size)
        if key in seen:
            again.append(str(path))
            yield Ignored(str(path), "same photograph under another category")
            continue
        seen.add(key)
        yield Record(
            path=str(path), variant=Variant.REAL, source_id=coco(found["id"]), split=place.split, dataset=dataset
        )
    if again:
        detail = "photographs that stand under several categories were taken once"
        yield Finding("same-photograph", detail, len(again), "info", tuple(again[:5]))


def _masks(paths: Iterable[PurePosixPath], photographs: set[tuple[str, str]]) -> Iterator[Item]:
    """Tell masks whose photograph is there, in whatever sub-set, from orphans."""
    masks: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        if _CROP.match(path.name):
            yield Ignored(str(path), "crop location, no inpainting mask")
        elif _MASK.match(path.name):
            masks.setdefault((_place(path).split, path.name.partition("_")[0]), []).append(str(path))
    yield from orphan_masks(masks, photographs)


def _twin_tables(root: Path, tables: list[PurePosixPath]) -> Iterator[Finding]:
    """Tables of different splits that hold the same bytes say nothing of one of them (seen in metadata-flux)."""
    by_hash: dict[tuple[str, str], list[str]] = {}
    for path in tables:
        by_hash.setdefault((str(path.parent), sha256_of_file(root / path)), []).append(str(path))
    twins = [name for names in by_hash.values() if len(names) > 1 for name in names]
    if twins:
        detail = "tables of different splits are byte-identical; this layout uses none of them"
        yield Finding("twin-tables", detail, len(twins), "info", tuple(twins[:5]))
