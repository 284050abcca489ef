"""What other toolkits read: IMDLBenCo's Tp/Gt folders and JSON, ForensicHub's JSON, and lists of lines.

None of them says how an image was made: the option `variant` does. None knows photographs: `source_pattern` finds the
part of a file name that the images of one photograph share.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from dlprobe.data.images import IMAGE_SUFFIXES
from dlprobe.data.layouts.base import (
    LAYOUTS,
    Finding,
    Ignored,
    Item,
    Record,
    Reject,
    contents,
    require,
    source_of,
)
from dlprobe.data.provenance import VARIANTS, Variant
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEGATIVE = frozenset({"negative", "none", "null", ""})
_ENDING = "|".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
_TWO_PATHS = re.compile(rf"^(?P<image>.+?\.(?:{_ENDING})) (?P<mask>None|.+\.(?:{_ENDING}))$", re.IGNORECASE)


class _Line(NamedTuple):
    """One image of a list: ``label`` is 1, 0 or, where the list does not say, None."""

    image: str
    mask: str
    label: int | None = None


class _Options(NamedTuple):
    variant: str
    dataset: str
    source_pattern: str


def _options(variant: str, dataset: str, source_pattern: str) -> _Options:
    if variant not in VARIANTS or VARIANTS[Variant(variant)].inside is None:
        masked = ", ".join(v for v, regions in VARIANTS.items() if regions.inside is not None)
        msg = f"variant {variant!r} has no mask; write one of {masked} for the images with one"
        raise DataError(msg)
    return _Options(variant, dataset, source_pattern)


@LAYOUTS.register("manidataset")
def manidataset_layout(
    root: Path, *, variant: str = "sp", dataset: str = "", source_pattern: str = ""
) -> Iterator[Item]:
    r"""Read IMDLBenCo's ManiDataset: images in ``Tp``, masks in ``Gt``, and authentic images in ``Au`` if it is there.

    IMDLBenCo pairs the two folders by sorted order; here a mask has its image's name, with any ending and perhaps
    ``_gt`` or ``_mask`` behind it, and what has no partner is said.

    Parameters
    ----------
    root : Path
        The folder with ``Tp`` and ``Gt``.
    variant : str
        How the images of ``Tp`` came to be.
    dataset : str
        Name of the data set.
    source_pattern : str
        Regular expression whose first group the images of one photograph share, such as ``^(\d+)_``.

    Raises
    ------
    DataError
        If a folder is missing, or an option does not fit.
    """
    options = _options(variant, dataset, source_pattern)
    files, _ = contents(root)
    folders = {name: [path for path in files if path.parts[0] == name] for name in ("Tp", "Gt", "Au")}
    require(folders["Tp"] and folders["Gt"], root, "folder Tp with images and Gt with masks", "manidataset")
    masks: dict[PurePosixPath, list[str]] = {}
    for path in folders["Gt"]:
        below = path.relative_to("Gt").with_suffix("")
        for stem in {below.name, re.sub(r"_(?:gt|mask)$", "", below.name, flags=re.IGNORECASE) or below.name}:
            masks.setdefault(below.with_name(stem), []).append(str(path))
    paired = set()
    for path in folders["Tp"]:
        found = masks.get(path.relative_to("Tp").with_suffix(""), [])
        paired.update(found)
        if len(found) == 1:
            yield _record(_Line(str(path), found[0], 1), options)
        else:
            names = (
                f"several masks claim to be its own: {', '.join(found)}" if found else f"no mask in Gt for {path.stem}"
            )
            yield Reject(str(path), names, "two-masks" if found else "no-mask")
    yield from (_record(_Line(str(path), "", 0), options) for path in folders["Au"])
    orphans = sorted({str(path) for path in folders["Gt"]} - paired)
    yield from (Ignored(str(path), "mask" if str(path) in paired else "orphan mask") for path in folders["Gt"])
    if orphans:
        yield Finding("orphan-mask", "masks in Gt without an image in Tp", len(orphans), "warning", tuple(orphans[:5]))


@LAYOUTS.register("json")
def json_layout(
    root: Path, *, table: str = "", variant: str = "sp", dataset: str = "", source_pattern: str = ""
) -> Iterator[Item]:
    """Read JSON of IMDLBenCo (``[[image, mask or "Negative"], ...]``) or of ForensicHub.

    ForensicHub writes ``[{"path": ..., "mask": ... or "Negative", "label": 0 or 1}, ...]``.

    Parameters
    ----------
    root : Path
        The file, or the folder that its paths are relative to.
    table : str
        Name of the file below the folder, where it holds several.
    variant, dataset, source_pattern
        As for `manidataset_layout`.

    Raises
    ------
    DataError
        If the file is missing or holds something else, or an option does not fit.
    """
    options = _options(variant, dataset, source_pattern)
    path = _table(root, table, ".json", "json")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        msg = f"{path} is no JSON ({error}); give a list of [image, mask] or of objects with path, mask and label"
        raise DataError(msg) from error
    if not isinstance(rows, list):
        msg = f"{path} holds no list; give [[image, mask], ...] or [{{path, mask, label}}, ...]"
        raise DataError(msg)
    if balanced := [row for row in rows if isinstance(row, list) and row[:1] in (["ManiDataset"], ["JsonDataset"])]:
        msg = (
            f"{path} is a BalancedDataset; scan each of its {len(balanced)} parts by itself (first: {balanced[0][1:]})"
        )
        raise DataError(msg)
    yield from _records(root, path, [_json_line(row) for row in rows], options)


@LAYOUTS.register("list")
def list_layout(
    root: Path, *, table: str = "", variant: str = "sp", dataset: str = "", source_pattern: str = ""
) -> Iterator[Item]:
    """Read a list of lines, as TruFor, SAFIRE, MMFusion and CAT-Net use.

    A line is ``image,mask`` (TruFor, SAFIRE; more fields are left aside) or ``image mask label`` (MMFusion, TGIF's
    benchmark, CAT-Net); a pristine image has the mask ``None``. Spaces in names are understood by the endings of image
    files; a name that MMFusion wrote with underscores is found where the file has spaces.

    Parameters
    ----------
    root : Path
        The file, or the folder that its paths are relative to.
    table, variant, dataset, source_pattern
        As for `json_layout`.

    Raises
    ------
    DataError
        If the file is missing or no text, or an option does not fit.
    """
    options = _options(variant, dataset, source_pattern)
    path = _table(root, table, ".txt", "list")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        msg = f"{path} is no UTF-8 text ({error.reason}); save it as UTF-8"
        raise DataError(msg) from error
    yield from _records(root, path, [_text_line(line) for line in lines if line.strip()], options)


def _table(root: Path, name: str, suffix: str, layout: str) -> Path:
    if root.is_file():
        return root
    if name:
        require((root / name).is_file(), root, f"file {name}", layout)
        return root / name
    found = sorted(path for path in root.iterdir() if path.suffix == suffix)
    if len(found) != 1:
        names = (
            f"{len(found)} files {suffix} ({', '.join(path.name for path in found[:5])})" if found else f"no {suffix}"
        )
        msg = f"{root} has {names}; name one with the option table, or give the file itself"
        raise DataError(msg)
    return found[0]


def _json_line(row: Any) -> _Line | Reject:
    text = json.dumps(row)
    if isinstance(row, list) and len(row) == 2 and all(isinstance(value, str) for value in row):
        return _Line(row[0], _mask(row[1]))
    if isinstance(row, dict) and isinstance(row.get("path"), str):
        label = row.get("label")
        if label in {0, 1, None} and isinstance(mask := row.get("mask") or "", str):
            return _Line(row["path"], _mask(mask), label)
    return Reject(text[:200], "neither [image, mask] nor an object with path, mask and label 0 or 1", "bad-row")


def _text_line(line: str) -> _Line | Reject:
    text = line.strip()
    if "," in text:
        image, mask = (field.strip() for field in text.split(",")[:2])
        return _Line(image, _mask(mask))
    body, _, last = text.rpartition(" ")
    label = int(last) if last in {"0", "1"} else None
    if found := _TWO_PATHS.match(body if label is not None else text):
        return _Line(found["image"], _mask(found["mask"]), label)
    return Reject(text[:200], "neither 'image,mask' nor 'image mask label'", "bad-row")


def _mask(text: str) -> str:
    return "" if text.strip().lower() in _NEGATIVE else text.strip()


def _records(root: Path, path: Path, lines: list[_Line | Reject], options: _Options) -> Iterator[Item]:
    folder = path.parent if root.is_file() else root
    if root.is_dir():
        yield Ignored(path.relative_to(root).as_posix(), "table")
    spaced = {str(file).replace(" ", "_"): str(file) for file in contents(folder)[0]} if root.is_dir() else {}
    respaced = []
    for line in lines:
        if isinstance(line, Reject):
            yield line
            continue
        image, mask = (_found(name, folder, spaced) for name in (line.image, line.mask))
        if image != _posix(line.image, folder):
            respaced.append(image)
        yield _record(_Line(image, mask, line.label), options)
    if respaced:
        detail = "names were found only with spaces in the place of underscores"
        yield Finding("respaced-name", detail, len(respaced), "info", tuple(respaced[:5]))


def _posix(name: str, folder: Path) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.relative_to(folder.as_posix()).as_posix() if path.is_relative_to(folder.as_posix()) else path.as_posix()


def _found(name: str, folder: Path, spaced: dict[str, str]) -> str:
    if not name:
        return ""
    path = _posix(name, folder)
    return path if (folder / path).exists() else spaced.get(path.replace(" ", "_"), path)


def _record(line: _Line, options: _Options) -> Record | Reject:
    if line.label == 0 and line.mask:
        return Reject(line.image, f"label 0 but a mask, {line.mask}", "label-contradicts-mask")
    if line.label == 1 and not line.mask:
        return Reject(line.image, "label 1 but no mask", "no-mask")
    return Record(
        path=line.image,
        variant=options.variant if line.mask else Variant.REAL,
        source_id=source_of(PurePosixPath(line.image).stem, options.dataset, options.source_pattern),
        mask=line.mask,
        dataset=options.dataset,
    )
