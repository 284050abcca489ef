"""Which images are to be looked at, and where the results of each go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dlprobe.data.images import IMAGE_SUFFIXES, read_image
from dlprobe.errors import DataError, OutputError
from dlprobe.spec import sha256_of_file

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

RESULT_NAME = "result.json"
#: Table of all images of a folder of results; no image's folder is called so.
TABLE_NAMES = ("results.parquet", "results.csv")


class Decoded(NamedTuple):
    """An image that is to be localized: path as given, sha256 of the file, where its results go, RGB pixels."""

    path: str
    sha256: str
    folder: Path
    pixels: NDArray[np.uint8]


class Known(NamedTuple):
    """An image whose result is there already, or is being made for another file of the same bytes."""

    path: str
    folder: Path


class Rejected(NamedTuple):
    """An image that cannot be read: path as given, and why."""

    path: str
    reason: str


def image_paths(given: Iterable[str | os.PathLike[str]], *, recursive: bool = False) -> list[str]:
    """Return files as given, and the images of folders by their suffix, sorted.

    Raises
    ------
    DataError
        If a folder holds no image.
    """
    found: list[str] = []
    for entry in given:
        folder = Path(entry)
        if not folder.is_dir():
            found.append(str(entry))
            continue
        inside = sorted(
            str(path)
            for path in (folder.rglob("*") if recursive else folder.iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        )
        if not inside:
            deeper = "" if recursive else "; look into its folders with --recursive"
            msg = f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}){deeper}"
            raise DataError(msg)
        found += inside
    return found


def check_target(target: Path, paths: Iterable[str]) -> None:
    """Refuse, before the first image is looked at, to write among what is not ours.

    Raises
    ------
    OutputError
        If a path is taken by a file, or a folder by something else than a result.
    """
    above = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not above.is_dir():
        msg = f"{above} exists and is no folder; give another output folder"
        raise OutputError(msg)
    for folder in {target / _stem(path) for path in paths}:
        if folder.exists() and not (folder / RESULT_NAME).is_file():
            msg = f"{folder} exists and holds no result of dlprobe; give another output folder"
            raise OutputError(msg)


class Folders:
    """Gives each image its folder: of its name, or of its name and hash where another image has that one.

    Parameters
    ----------
    target : Path
        Folder of all results.
    identity : str
        Of probe and settings; a result of the same image under another identity is replaced.
    overwrite : bool
        Replace also those of the same one.
    max_pixels : int
        Larger images are rejected.
    """

    def __init__(self, target: Path, identity: str, *, overwrite: bool, max_pixels: int) -> None:
        self._target, self._identity = target, identity
        self._overwrite, self._max_pixels = overwrite, max_pixels
        self._given: dict[Path, str] = {}

    def open(self, path: str) -> Decoded | Known | Rejected:
        """Read an image unless its result is there."""
        try:
            if not Path(path).is_file():
                read_image(Path(path))  # says what is wrong
            sha256 = sha256_of_file(Path(path))
            folder, known = self._place(path, sha256)
            if known:
                return Known(path, folder)
            return Decoded(path, sha256, folder, read_image(Path(path), max_pixels=self._max_pixels))
        except DataError as error:
            return Rejected(path, str(error))
        except OSError as error:
            return Rejected(path, f"image {path} cannot be read ({error.strerror}); check its permissions")

    def _place(self, path: str, sha256: str) -> tuple[Path, bool]:
        stem = _stem(path)
        for name in (stem, f"{stem}-{sha256[:8]}", f"{stem}-{sha256}"):
            folder = self._target / name
            if self._given.get(folder) == sha256:
                return folder, True
            record = read_record(folder)
            owner = self._given.get(folder) or (record or {}).get("image", {}).get("sha256")
            if name in TABLE_NAMES or owner not in {None, sha256} or (folder.exists() and record is None):
                continue
            self._given[folder] = sha256
            same = record is not None and record.get("identity") == self._identity
            return folder, same and not self._overwrite
        msg = f"{self._target / stem} and its like are taken by other images; give another output folder"
        raise OutputError(msg)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what stands in a folder's result.json; None if there is none."""
    try:
        found = json.loads((folder / RESULT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _stem(path: str) -> str:
    return Path(path).stem or "image"
