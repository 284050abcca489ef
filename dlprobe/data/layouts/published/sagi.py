"""SAGI-D (Giakoumoglou et al., 2025): six inpainters over COCO, RAISE and OpenImages, as JPEG files."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from dlprobe.data.layouts.base import (
    COCO_STEM,
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
    orphan_masks,
    require,
)
from dlprobe.data.manifest import as_text, read_csv
from dlprobe.data.provenance import Variant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Read in the generators' pipelines and measured on 3 published pairs each: what each does to the background.
MODELS = {
    "brushnet": Variant.FR,
    "powerpaint": Variant.FR,
    "controlnet": Variant.FR,
    "hdpainter": Variant.SP,
    "inpaintanything": Variant.SP,
    "removeanything": Variant.SP,
}
COLUMNS = ("img_path", "mask_path", "inpainting_model")
_NAME = re.compile(
    r"^(?P<subset>coco|raise|openimages)_(?P<photograph>.+?)_(?P<model>" + "|".join(MODELS) + r")"
    r"_(?P<weights>[^_]+)_\d+_(?:None|Upscaled)$"
)
#: SAGI's generator writes ``{photograph}_{model}.png``, the model perhaps with more behind it.
_MADE_OF = re.compile(r"^(?P<photograph>.+?)_(?:" + "|".join(MODELS) + r")(?:[_-].*)?$", re.IGNORECASE)
_PLAIN_NAME = re.compile(r"^(?P<subset>coco|raise|openimages)_(?P<photograph>.+)$")
_SUBSETS = ("coco", "raise", "openimages")
_AUTHENTIC = frozenset({"", "none", "nan", "original", "real", "authentic"})
_MASK_FOLDERS = frozenset({"mask", "masks"})


class _Entry(NamedTuple):
    """What a row or a name says of one image."""

    path: PurePosixPath
    mask: str
    model: str


@LAYOUTS.register("sagi")
def sagi_layout(root: Path) -> Iterator[Item]:
    r"""Read SAGI-D by its tables, or by the names of its files where there is no table.

    A table has the columns ``img_path``, ``mask_path`` and ``inpainting_model``, with paths such as
    ``sagid\train\coco\original\0000.jpg``, which may begin above `root`. Without a table, images are called
    ``{coco|raise|openimages}_{photograph}_{model}_{weights}_{k}_{None|Upscaled}.jpg`` and masks lie in ``mask`` or
    ``masks`` under the same name, the photograph's, or either with ``_mask``.

    Parameters
    ----------
    root : Path
        The data set's folder, or the one above it.

    Raises
    ------
    DataError
        If there is neither a table with those columns nor such a name.
    """
    files, others = contents(root)
    tables = {path: read_csv(root / path) for path in others if path.suffix == ".csv"}
    tables = {path: table for path, table in tables.items() if {*COLUMNS} <= {*table.columns}}
    if tables:
        known = {str(path) for path in files}
        entries = [
            _Entry(_below(image, known), str(_below(mask, known)) if mask else "", model)
            for table in tables.values()
            for image, mask, model in zip(*(as_text(table[name]) for name in COLUMNS), strict=True)
        ]
        yield from (Ignored(str(path), "table") for path in tables)
    else:
        entries = _named(files)
    require(entries, root, f"table with the columns {', '.join(COLUMNS)}, and no image named as in SAGI-D", "sagi")
    items = [_item(entry) for entry in entries]
    yield from items
    masks = {str(path): [str(path)] for path in files if path.parent.name in _MASK_FOLDERS}
    yield from orphan_masks(masks, {entry.mask for entry in entries})
    records = [item for item in items if isinstance(item, Record)]
    yield from _source_findings(records)
    for model in sorted({item.generator.split("/")[0] for item in records if item.generator}):
        count = sum(item.generator.split("/")[0] == model for item in records)
        fact = f"{model} is taken for {MODELS[model]} on the evidence of 3 published pairs ({count} images)"
        yield from (
            Guess(fact, "variant", name)
            for name in sorted({r.generator for r in records if r.generator.split("/")[0] == model})
        )
    yield Guess("white is manipulated (a third party says so)", "polarity")


def _below(text: str, known: set[str]) -> PurePosixPath:
    """Return a table's path below the root: of the ways to cut its head, the first that names a file."""
    path = PurePosixPath(text.strip().replace("\\", "/"))
    parts = [part for part in path.parts if part not in {"/", "."}]
    for cut in range(len(parts)):
        if (shorter := "/".join(parts[cut:])) in known:
            return PurePosixPath(shorter)
    return PurePosixPath(*parts)


def _named(files: list[PurePosixPath]) -> list[_Entry]:
    masks: dict[str, str] = {}
    for path in files:
        if path.parent.name in _MASK_FOLDERS:
            masks[path.stem.removesuffix("_mask")] = str(path)
    entries = []
    for path in files:
        if path.parent.name in _MASK_FOLDERS or not (plain := _PLAIN_NAME.match(path.stem)):
            continue
        if found := _NAME.match(path.stem):
            photograph = f"{found['subset']}_{found['photograph']}"
            entries.append(_Entry(path, masks.get(path.stem) or masks.get(photograph, ""), found["model"]))
        elif plain:
            entries.append(_Entry(path, "", ""))
    return entries


def _item(entry: _Entry) -> Record | Reject:
    path = str(entry.path)
    if not entry.path.parts:
        return Reject("", "a row without img_path", "no-path")
    named = _NAME.match(entry.path.stem)
    squeezed = re.sub(r"[^a-z0-9]", "", entry.model.lower())
    model = next((name for name in MODELS if squeezed.startswith(name)), "")
    authentic = entry.model.lower() in _AUTHENTIC or "original" in entry.path.parts
    if not authentic and not model:
        return Reject(path, f"no model {entry.model!r}; known are {', '.join(MODELS)}", "unknown-generator")
    if not authentic and not entry.mask:
        return Reject(path, f"made by {model}, but no mask is named for it", "no-mask")
    source = _source(entry.path)
    if not source:
        return Reject(path, "neither name nor folders say whether it is of coco, raise or openimages", "no-source")
    return Record(
        path=path,
        variant=Variant.REAL if authentic else MODELS[model],
        source_id=source,
        mask="" if authentic else entry.mask,
        generator="" if authentic else (f"{model}/{named['weights']}" if named else model),
        split=_split(entry.path),
        dataset="sagi",
    )


def _source(path: PurePosixPath) -> str:
    """Return the photograph; a mere running number counts within its split and subset."""
    made = _MADE_OF.match(path.stem)
    photograph = made["photograph"] if made else path.stem
    if named := _PLAIN_NAME.match(photograph):
        subset, photograph = named["subset"], named["photograph"]
    else:
        subset = next((part for part in path.parts if part.lower() in _SUBSETS), "").lower()
    if not subset:
        return ""
    photograph = re.sub(r"_Q\d+$", "", photograph)
    if subset == "coco" and (number := COCO_STEM.match(photograph)):
        return coco(number[1])
    split = _split(path)
    running = photograph.isdecimal() and len(photograph) < 12
    return f"sagi-{subset}:{split}/{photograph}" if running else f"{subset}:{photograph}"


def _split(path: PurePosixPath) -> str:
    return next((SPLIT_NAMES[part.lower()] for part in path.parts[:-1] if part.lower() in SPLIT_NAMES), "")


def _source_findings(records: list[Record]) -> Iterator[Finding]:
    running = [item.path for item in records if item.source_id.startswith("sagi-")]
    if running:
        detail = (
            "images have a running number, not their photograph's: photographs shared with B-Free, TGIF or CocoGlide "
            "cannot be told by source_id; trust near-duplicates alone"
        )
        yield Finding("source-unknown", detail, len(running), "warning", tuple(running[:5]))
    count = Counter(item.split for item in records)
    if count[""] and len(count) > 1:
        paths = [item.path for item in records if not item.split]
        yield Finding("no-split", "images lie in no folder of a split", len(paths), "warning", tuple(paths[:5]))
