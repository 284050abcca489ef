"""Beyond the Brush (BtB): inpainted photographs with masks of three sizes, the set for sensitivity to mask size."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from dlprobe.data.layouts.base import (
    LAYOUTS,
    SPLIT_NAMES,
    Finding,
    Guess,
    Item,
    Record,
    contents,
    orphan_masks,
    paired,
    require,
)
from dlprobe.data.manifest import as_text, read_csv
from dlprobe.data.provenance import Variant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FAKE = re.compile(r"^(?P<photograph>.+)_(?P<size>small|medium|large)_[0-4]_inpainted$")
_MASK = re.compile(r"^mask_(?P<photograph>.+)_(?P<size>small|medium|large)$")
_LIST = re.compile(r"^btb-(?P<subset>.+)-(?P<split>train|valid|test)$")
_SUBSETS = ("flickr30k", "floreview", "vision")


@LAYOUTS.register("btb")
def btb_layout(root: Path) -> Iterator[Item]:
    """Read Beyond the Brush: ``{flickr30k,floreview,vision}/{images,masks}`` and ``btb-{subset}-{split}.csv``.

    An inpainted image is ``{photograph}_{small|medium|large}_{k}_inpainted``, its mask
    ``mask_{photograph}_{size}.png``; the size is the mask_kind. The tables' columns are published nowhere: the split
    is that of the table in which any cell names the photograph or one of its images.

    Raises
    ------
    DataError
        If there is no such image.
    """
    files, others = contents(root)
    images = [(path, subset) for path in files if (subset := _below_subset(path, "images"))]
    require([1 for path, _ in images if _FAKE.match(path.stem)], root, "{subset}/images/*_inpainted.*", "btb")
    masks: dict[tuple[str, str, str], list[str]] = {}
    for path in files:
        if (subset := _below_subset(path, "masks")) and (found := _MASK.match(path.stem)):
            key = subset, re.sub(r"\.(?:jpe?g|png)$", "", found["photograph"], flags=re.IGNORECASE), found["size"]
            masks.setdefault(key, []).append(str(path))
    splits, findings = _splits(root, others)
    used = set()
    for path, subset in images:
        found = _FAKE.match(path.stem)
        photograph = found["photograph"] if found else path.stem
        record = Record(
            str(path),
            Variant.SP if found else Variant.REAL,
            f"{subset}:{photograph}",
            generator="fooocus-sdxl" if found else "",
            mask_kind=found["size"] if found else "",
            split=splits.get((subset, photograph), ""),
            dataset="btb",
        )
        key = subset, photograph, record.mask_kind
        used.add(key)
        yield paired(record, masks.get(key, [])) if found else record
    yield from findings
    yield from orphan_masks(masks, used)
    unlisted = [str(path) for path, subset in images if (subset, _photograph(path.stem)) not in splits]
    if unlisted:
        detail = "images of photographs that the tables of no split name, or of several"
        yield Finding("no-split", detail, len(unlisted), "warning", tuple(unlisted[:5]))
    yield Guess("the inpainted region is pasted back: taken for sp", "variant", "fooocus-sdxl")


def _below_subset(path: PurePosixPath, folder: str) -> str:
    parts = path.parts[:-1]
    return next((name for name, below in itertools.pairwise(parts) if below == folder and name in _SUBSETS), "")


def _photograph(stem: str) -> str:
    found = _FAKE.match(stem) or _MASK.match(stem)
    return found["photograph"] if found else stem


def _splits(root: Path, others: list[PurePosixPath]) -> tuple[dict[tuple[str, str], str], list[Finding]]:
    splits: dict[tuple[str, str], set[str]] = {}
    columns: Counter[str] = Counter()
    for path in others:
        if path.suffix != ".csv" or not (found := _LIST.match(path.stem)):
            continue
        table = read_csv(root / path)
        columns.update(table.columns)
        for name in table.columns:
            for cell in as_text(table[name]).unique():
                stem = PurePosixPath(cell.replace("\\", "/")).stem
                splits.setdefault((found["subset"], _photograph(stem)), set()).add(SPLIT_NAMES[found["split"]])
    findings = []
    if columns:
        detail = f"columns {', '.join(columns)}; no source documents them, so every cell that names an image counts"
        findings.append(Finding("table-columns", detail, len(columns), "info"))
    crossing = sorted("/".join(key) for key, found in splits.items() if len(found) > 1)
    if crossing:
        detail = "photographs that tables of several splits name; they are left without a split"
        findings.append(Finding("split-conflict", detail, len(crossing), "error", tuple(crossing[:5])))
    return {key: found.pop() for key, found in splits.items() if len(found) == 1}, findings
