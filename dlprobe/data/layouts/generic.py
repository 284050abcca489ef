"""Two layouts that any data set can be brought into: a table, or folders named after variants."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dlprobe.data.images import IMAGE_SUFFIXES
from dlprobe.data.layouts.base import LAYOUTS, Record, Reject, relative
from dlprobe.data.manifest import REQUIRED, TEXT_COLUMNS, read_csv, read_parquet
from dlprobe.data.provenance import VARIANTS, Variant
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Names of the table that the `csv` layout looks for when it is given a folder, in this order.
TABLE_NAMES = ("manifest.csv", "manifest.parquet", "index.csv")


@LAYOUTS.register("csv")
def csv_layout(root: Path, *, dataset: str = "") -> Iterator[Record | Reject]:
    """Read a table with one row an image.

    Parameters
    ----------
    root : Path
        A CSV or Parquet file, or a folder with one of `TABLE_NAMES`. Paths are relative to the file's folder. Columns
        ``path`` and ``variant`` are needed; ``source_id`` defaults to the file name without its ending.
    dataset : str
        Name of the data set where the table has none.
    """
    table_path = root if root.is_file() else _table_in(root)
    table = read_parquet(table_path)[0] if table_path.suffix == ".parquet" else read_csv(table_path)
    if missing := [name for name in REQUIRED if name not in table and name != "source_id"]:
        msg = f"{table_path} lacks the column {' and '.join(missing)}; give path, variant, and mask for sp and fr"
        raise DataError(msg)
    columns = [name for name in TEXT_COLUMNS if name in table]
    for values in table[columns].fillna("").astype(str).to_dict("records"):
        values["path"] = values["path"].replace("\\", "/")
        values["mask"] = values.get("mask", "").replace("\\", "/")
        if not values["path"]:
            yield Reject("", "a row without a path")
            continue
        values["source_id"] = values.get("source_id") or PurePosixPath(values["path"]).stem
        values["dataset"] = values.get("dataset") or dataset
        yield Record(**values)


@LAYOUTS.register("folder")
def folder_layout(root: Path, *, variant: str = "", dataset: str = "") -> Iterator[Record | Reject]:
    """Read folders of images and masks.

    Either ``ROOT/<variant>/**/NAME.png`` with masks under ``ROOT/masks/<variant>/**`` or ``ROOT/masks/**``, or, with
    the option `variant`, ``ROOT/images/**`` with masks under ``ROOT/masks/**``. A mask has the relative path of its
    image, any ending, and may carry the suffix ``_mask``. The source_id is the image's name without its ending, the
    generator its sub-folder.

    Parameters
    ----------
    root : Path
        The folder.
    variant : str
        Variant of everything under ``images``.
    dataset : str
        Name of the data set.
    """
    if variant and variant not in VARIANTS:
        msg = f"no variant {variant!r}; write one of {', '.join(VARIANTS)}"
        raise DataError(msg)
    groups = {variant: root / "images"} if variant else {v: root / v for v in VARIANTS if (root / v).is_dir()}
    if not groups or not all(folder.is_dir() for folder in groups.values()):
        names = ", ".join(VARIANTS)
        msg = f"{root} has neither folders named {names} nor, with --variant, a folder images; see --layout csv"
        raise DataError(msg)
    for name, folder in groups.items():
        masks = [found for found in (root / "masks" / name, root / "masks") if found.is_dir()]
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            below = path.relative_to(folder)
            mask = next((m for where in masks for m in _mask_candidates(where, below)), None)
            yield _folder_item(
                Variant(name), relative(path, root), below, relative(mask, root) if mask else None, dataset
            )


def _folder_item(variant: Variant, path: str, below: Path, mask: str | None, dataset: str) -> Record | Reject:
    if below.suffix.lower() not in IMAGE_SUFFIXES:
        return Reject(path, f"{below.suffix or 'no ending'} is no image format that is read")
    masked = VARIANTS[variant].inside is not None
    if masked and mask is None:
        return Reject(path, f"variant {variant} needs a mask, and masks/ has none for {below.stem}")
    return Record(
        path=path,
        variant=variant,
        source_id=below.stem,
        mask=(mask or "") if masked else "",
        generator=below.parent.as_posix() if below.parent != Path() else "",
        dataset=dataset,
    )


def _mask_candidates(where: Path, below: Path) -> Iterator[Path]:
    for stem in (below.stem, f"{below.stem}_mask"):
        for suffix in sorted({below.suffix, *IMAGE_SUFFIXES}, key=lambda s: (s != ".png", s)):
            candidate = where / below.parent / f"{stem}{suffix}"
            if candidate.is_file():
                yield candidate


def _table_in(root: Path) -> Path:
    for name in TABLE_NAMES:
        if (root / name).is_file():
            return root / name
    msg = f"{root} is neither a table nor a folder with {', '.join(TABLE_NAMES)}; give a CSV file or another --layout"
    raise DataError(msg)
