"""Two layouts that any data set can be brought into: a table, or folders named after variants."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dlprobe.data.layouts.base import LAYOUTS, SPLIT_NAMES, Ignored, Item, Record, Reject, contents, orphan_masks
from dlprobe.data.manifest import MASK_READING, REQUIRED, TEXT_COLUMNS, as_text, read_csv, read_parquet, table_root
from dlprobe.data.provenance import VARIANTS, Variant
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Names of the table that the `csv` layout looks for when it is given a folder, in this order.
TABLE_NAMES = ("manifest.csv", "manifest.parquet", "index.csv")
_MASK_SUFFIX = "_mask"


@LAYOUTS.register("csv")
def csv_layout(root: Path, *, dataset: str = "") -> Iterator[Item]:
    """Read a table with one row an image.

    Parameters
    ----------
    root : Path
        A CSV or Parquet file, or a folder with one of `TABLE_NAMES`. Paths are relative to the file's folder, or to the
        root that a manifest of `dlprobe scan` names. Columns ``path`` and ``variant`` are needed; ``source_id``
        defaults to the file name without its ending.
    dataset : str
        Name of the data set where the table has none.

    Raises
    ------
    DataError
        If there is no table, it lacks a column, or the one in a folder names images in another.
    """
    table_path = root if root.is_file() else _table_in(root)
    if root.is_dir() and (images := table_root(table_path)).resolve() != root.resolve():
        msg = f"{table_path} is a manifest of images in {images.resolve()}; give the table itself"
        raise DataError(msg)
    table = read_parquet(table_path)[0] if table_path.suffix == ".parquet" else read_csv(table_path)
    if missing := [name for name in REQUIRED if name not in table and name != "source_id"]:
        msg = f"{table_path} lacks the column {' and '.join(missing)}; give path, variant, and mask for sp and fr"
        raise DataError(msg)
    if root.is_dir():
        yield Ignored(table_path.name, "table")
    columns = {name: as_text(table[name]) for name in (*TEXT_COLUMNS, MASK_READING) if name in table}
    for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
        yield _row(number, dict(zip(columns, values, strict=True)), dataset)


def _row(number: int, values: dict[str, str], dataset: str) -> Record | Reject:
    if not values["path"]:
        return Reject("", f"row {number} has no path", "no-path")
    values["path"] = _posix(values["path"])
    values["mask"] = _posix(values.get("mask", ""))
    split = values.get("split", "")
    if split.lower() not in SPLIT_NAMES:
        choice = "train, val, test or calibration, or leave it empty"
        return Reject(values["path"], f"no split {split!r}; write {choice}", "unknown-split")
    values["split"] = SPLIT_NAMES[split.lower()]
    values["source_id"] = values.get("source_id") or PurePosixPath(values["path"]).stem
    values["dataset"] = values.get("dataset") or dataset
    return Record(**values)


def _posix(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).as_posix() if path else ""


@LAYOUTS.register("folder")
def folder_layout(root: Path, *, variant: str = "", dataset: str = "") -> Iterator[Item]:
    """Read folders of images and masks.

    Either ``ROOT/<variant>/**/NAME.png`` with masks under ``ROOT/masks/<variant>/**`` or ``ROOT/masks/**``, or, with
    the option `variant`, ``ROOT/images/**`` with masks under ``ROOT/masks/**``. A mask has the relative path of its
    image, any ending, and may carry the suffix ``_mask``; an image with two of them is rejected. The source_id is the
    image's name without its ending, the generator its sub-folder.

    Parameters
    ----------
    root : Path
        The folder.
    variant : str
        Variant of everything under ``images``.
    dataset : str
        Name of the data set.

    Raises
    ------
    DataError
        If the variant is unknown, or the folder has none of the folders above.
    """
    if variant and variant not in VARIANTS:
        msg = f"no variant {variant!r}; write one of {', '.join(VARIANTS)}"
        raise DataError(msg)
    groups = {"images": variant} if variant else {str(v): str(v) for v in VARIANTS if (root / v).is_dir()}
    if not groups or not all((root / folder).is_dir() for folder in groups):
        names = ", ".join(VARIANTS)
        msg = f"{root} has neither folders named {names} nor, with --variant, a folder images; see --layout csv"
        raise DataError(msg)
    files, _ = contents(root)
    masks = _masks_by_stem(files)
    wanted: set[PurePosixPath] = set()
    for path in files:
        if path.parts[0] in groups:
            variant = Variant(groups[path.parts[0]])
            wanted.update(_mask_stems(variant, path))
            yield _folder_item(variant, path, masks, dataset)
    found = {mask for stem in wanted for mask in masks.get(stem, ())}
    yield from orphan_masks({str(path): [str(path)] for path in files if path.parts[0] == "masks"}, found)


def _masks_by_stem(files: list[PurePosixPath]) -> dict[PurePosixPath, list[str]]:
    masks: dict[PurePosixPath, list[str]] = {}
    for path in files:
        if path.parts[0] == "masks":
            below = path.relative_to("masks").with_suffix("")
            for stem in {below, below.with_name(below.name.removesuffix(_MASK_SUFFIX) or below.name)}:
                masks.setdefault(stem, []).append(str(path))
    return masks


def _mask_stems(variant: Variant, path: PurePosixPath) -> tuple[PurePosixPath, ...]:
    """Return where the mask of an image may lie below ``masks``, the first that is there; none if it has no mask."""
    below = path.relative_to(path.parts[0]).with_suffix("")
    return () if VARIANTS[variant].inside is None else (variant / below, below)


def _folder_item(
    variant: Variant, path: PurePosixPath, masks: dict[PurePosixPath, list[str]], dataset: str
) -> Record | Reject:
    below = path.relative_to(path.parts[0]).with_suffix("")
    stems = _mask_stems(variant, path)
    found = next((masks[stem] for stem in stems if stem in masks), [])
    if stems and not found:
        return Reject(str(path), f"variant {variant} needs a mask, and masks/ has none for {below}", "no-mask")
    if len(found) > 1:
        return Reject(str(path), f"two masks claim to be its own: {found[0]} and {found[1]}; keep one", "two-masks")
    return Record(
        path=str(path),
        variant=variant,
        source_id=below.name,
        mask=found[0] if found else "",
        generator=str(below.parent) if below.parent != PurePosixPath() else "",
        dataset=dataset,
    )


def _table_in(root: Path) -> Path:
    for name in TABLE_NAMES:
        if (root / name).is_file():
            return root / name
    msg = f"{root} is neither a table nor a folder with {', '.join(TABLE_NAMES)}; give a CSV file or another --layout"
    raise DataError(msg)
