"""Read a data set's layout into a manifest: every image opened as far as its header, every mask compared in size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dlprobe import plotting
from dlprobe.data.audit import SAMPLE, audit
from dlprobe.data.images import (
    IMAGE_SUFFIXES,
    INVERTED,
    MASK_READINGS,
    MAX_PIXELS,
    RESIZED,
    image_size,
    same_view,
    stretch,
)
from dlprobe.data.layouts import LAYOUTS, Finding, Guess, Ignored, Record, Reject
from dlprobe.data.layouts.base import walk
from dlprobe.data.manifest import MASK_READING, UNSTORABLE, Manifest, Noted, table_root
from dlprobe.data.provenance import VARIANTS, Variant
from dlprobe.errors import DataError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    from matplotlib.axes import Axes

    from dlprobe.data.layouts.base import Item, Layout

Progress = Callable[[int, int], None]
Size = tuple[int, int]

#: Files that hold pictures but that no reader here opens: they become rejects, never silence.
FOREIGN_SUFFIXES = frozenset({".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".psd", ".dng", ".nef", ".cr2"})
_TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".md", ".toml", ".yaml", ".yml"})
_ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
_ORPHAN, _ARCHIVE = "image that the layout does not name", "packed archive"
_BATCH = 256


@dataclass(frozen=True, slots=True)
class ScanResult:
    """A manifest, what was left out of it, and what was noticed.

    Parameters
    ----------
    manifest : Manifest
        Every image that can be used.
    rejects : list of Reject
        Images that cannot, with reasons.
    findings : list of Finding
        What a user should know before trusting a number.
    ignored : list of Ignored
        Every other file below the root: masks, tables, files that the layout does not name.
    files : int
        Files below the root, counted without the layout's help; 0 where the root is a table.
    listed : int
        Records and rejects that are no file of their own below the root: rows of a table whose image is missing,
        named twice or kept elsewhere.
    """

    manifest: Manifest
    rejects: list[Reject]
    findings: list[Finding]
    ignored: list[Ignored] = field(default_factory=list)
    files: int = 0
    listed: int = 0

    @property
    def accounting(self) -> dict[str, int]:
        """Where everything went: ``files + listed == records + rejects + ignored``."""
        return {
            "files": self.files,
            "listed": self.listed,
            "records": len(self.manifest),
            "rejects": len(self.rejects),
            "ignored": len(self.ignored),
        }

    @property
    def counts(self) -> pd.DataFrame:
        """Images and photographs for each combination of variant, generator and split."""
        kinds = self.manifest.frame.groupby(["variant", "generator", "split"])
        return kinds.agg(images=("path", "size"), sources=("source_id", "nunique")).reset_index()

    def frame(self) -> pd.DataFrame:
        """Return the findings, one a row: ``name``, ``severity``, ``count``, ``detail``, ``examples``."""
        fields = ["name", "severity", "count", "detail", "examples"]
        return pd.DataFrame([[getattr(finding, name) for name in fields] for finding in self.findings], columns=fields)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how many photographs each variant and generator has: what a table of scores will rest on."""
        kinds = self.manifest.frame.groupby(["variant", "generator"])["source_id"].nunique().reset_index()
        names = [" ".join(filter(None, key)) for key in zip(kinds["variant"], kinds["generator"], strict=True)]
        return plotting.bars(names, kinds["source_id"], ax=ax, words="photographs (source_ids)")

    @property
    def faults(self) -> list[Finding]:
        """The findings that are more than information."""
        return [finding for finding in self.findings if finding.severity != "info"]

    @property
    def errors(self) -> list[Finding]:
        """The findings that will bend a number."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def ignored_reasons(self) -> dict[str, int]:
        """Number of ignored files for each reason, the most frequent first."""
        return dict(Counter(item.reason for item in self.ignored).most_common())


def scan(
    root: str | os.PathLike[str],
    layout: str = "csv",
    *,
    progress: Progress | None = None,
    sample: int | None = SAMPLE,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    mask_inverted: bool = False,
    mask_resize: bool = False,
    **options: Any,
) -> ScanResult:
    """Read a data set and audit it.

    Parameters
    ----------
    root : path
        Folder (or, for layouts that read a table, the table itself).
    layout : str
        Name of a registered layout.
    progress : callable, optional
        Called with the number of images done and in all; images that the audit decodes count once more.
    sample, seed : int
        Of the audit's checks on pixels, see `dlprobe.data.audit.audit`; a sample of None takes all images, 0 none.
    max_pixels : int
        Images and masks with more pixels are rejects; raise it for files that you trust.
    mask_inverted : bool
        Black, and not white, is what was manipulated, in every mask.
    mask_resize : bool
        Bring masks of another size than their image to it, by nearest neighbour, where they can show the whole of it.
        The manifest says of each image how its mask is read (``mask_reading``), which is part of its identity.
    **options
        Options of the layout.

    Returns
    -------
    ScanResult
        Each record of the layout is in the manifest or a reject, and each file below the root is one of the two or
        ignored with a reason.

    Raises
    ------
    DataError
        If the folder is missing, the layout does not fit it or lacks an option, or not one image can be used.
    RegistryError
        If no layout has that name.
    """
    place = Path(root)
    if not place.exists():
        msg = f"nothing at {place}; give the folder of the data set"
        raise DataError(msg)
    read = LAYOUTS[layout]
    _require_options(layout, read, options)
    found = list(read(place, **options))
    folder = table_root(place)
    rejects = [item for item in found if isinstance(item, Reject)]
    files = list(walk(place)) if place.is_dir() else []
    records = _sound(found, rejects)
    if mask_inverted:
        records = [each._replace(mask_reading=_read_as(each, INVERTED)) if each.mask else each for each in records]
    headers = _Headers(folder, max_pixels, resize=mask_resize)
    manifest = headers.manifest(records, rejects, progress)
    if not len(manifest):
        first = f"; the first: {rejects[0].path}: {rejects[0].reason}" if rejects else ""
        msg = f"{place} has no image that can be used ({len(rejects)} rejected{first})"
        raise DataError(msg)
    ignored = _leftovers(files, found, manifest, rejects)
    named = {*manifest.frame["path"], *(item.path for item in rejects)}
    listed = len(manifest) + len(rejects) - len(named.intersection(files))
    about_images = [item for item in found if isinstance(item, Finding)]
    about_files = [*_findings_on_files(rejects, ignored), *_findings_on_readings(manifest, headers.most_stretch)]
    guesses = [item for item in found if isinstance(item, Guess)]
    audited = audit(
        manifest,
        sample=sample,
        seed=seed,
        guesses=guesses,
        max_pixels=max_pixels,
        progress=_offset(progress, len(records)),
    )
    manifest.noted = _noted([*about_images, *audited])
    findings = [_told(each) for each in (*about_images, *about_files, *audited)]
    rejects = [item._replace(path=_printable(item.path), reason=_printable(item.reason)) for item in rejects]
    return ScanResult(manifest, rejects, findings, ignored, len(files), listed)


def _told(finding: Finding) -> Finding:
    """Return a finding as it can be printed, whatever files are called."""
    return replace(finding, detail=_printable(finding.detail), examples=tuple(map(_printable, finding.examples)))


def _noted(findings: Iterable[Finding]) -> tuple[Noted, ...]:
    """Return what a manifest carries of the findings on its images: all but information."""
    told = (_told(each) for each in findings if each.severity != "info")
    return tuple(Noted(each.name, each.severity, each.count, each.detail) for each in told)


def _require_options(name: str, read: Layout, given: Mapping[str, object]) -> None:
    known = list(signature(read).parameters.values())[1:]
    names = [option.name for option in known]
    if any(option.kind is Parameter.VAR_KEYWORD for option in known):
        return
    if unknown := next((option for option in given if option not in names), None):
        msg = f"layout {name} has no option {unknown!r}; it has {', '.join(names) or 'none'}"
        raise DataError(msg)


def _sound(found: Iterable[Item], rejects: list[Reject]) -> list[Record]:
    """Return the records that a manifest can hold; the others become rejects."""
    sound: dict[str, Record] = {}
    for item in found:
        if not isinstance(item, Record):
            continue
        if item.variant not in VARIANTS:
            fault, reason = "unknown-variant", f"no variant {item.variant!r}; write one of {', '.join(VARIANTS)}"
        elif (VARIANTS[Variant(item.variant)].inside is not None) != bool(item.mask):
            fault = "surplus-mask" if item.mask else "no-mask"
            verb = "has no mask, but one is named" if item.mask else "needs a mask and has none"
            reason = f"variant {item.variant} {verb}; correct the row"
        elif item.mask_reading not in MASK_READINGS or (item.mask_reading and not item.mask):
            choice = f"write one of {', '.join(filter(None, MASK_READINGS))}, or leave it empty; empty without a mask"
            fault, reason = "bad-row", f"no {MASK_READING} {item.mask_reading!r}: {choice}"
        elif any(UNSTORABLE.search(text) for text in item):
            fault, reason = "unstorable-name", "a name with a control character, or bytes that are no UTF-8; rename it"
        elif item.path in sound:
            fault, reason = "doubled", "named twice; keep one row an image"
        else:
            sound[item.path] = item
            continue
        rejects.append(Reject(item.path, reason, fault))
    return list(sound.values())


class _Fault(NamedTuple):
    name: str
    reason: str


class _Headers:
    """Reads sizes from headers, in threads; remembers masks, which images share."""

    def __init__(self, root: Path, max_pixels: int, *, resize: bool) -> None:
        self._root = root
        self._max_pixels = max_pixels
        self._resize = resize
        self._masks: dict[str, Size | _Fault] = {}
        self.most_stretch = 0.0

    def manifest(self, records: list[Record], rejects: list[Reject], progress: Progress | None) -> Manifest:
        """Return the manifest of the records that can be used; the others join the rejects."""
        sizes: list[Size] = []
        kept: list[Record] = []
        batches = [records[at : at + _BATCH] for at in range(0, len(records), _BATCH)]
        with ThreadPoolExecutor() as pool:
            done = 0
            for batch, found in zip(batches, pool.map(self._sizes, batches), strict=True):
                for record, (size, resized) in zip(batch, found, strict=True):
                    if isinstance(size, _Fault):
                        rejects.append(Reject(record.path, size.reason, size.name))
                    else:
                        kept.append(self._resized(record, size) if resized else record)
                        sizes.append(size)
                done += len(batch)
                if progress:
                    progress(done, len(records))
        frame = pd.DataFrame(kept, columns=Record._fields)
        height, width = np.array(sizes, np.int64).reshape(-1, 2).T
        return Manifest(frame.assign(height=height, width=width), self._root)

    def _resized(self, record: Record, size: Size) -> Record:
        if not isinstance(mask := self._masks[record.mask], _Fault):
            self.most_stretch = max(self.most_stretch, stretch(mask, size))
        return record._replace(mask_reading=_read_as(record, RESIZED))

    def _sizes(self, records: list[Record]) -> list[tuple[Size | _Fault, bool]]:
        return [self._fitting_size(record) for record in records]

    def _fitting_size(self, record: Record) -> tuple[Size | _Fault, bool]:
        """Return the size of an image, and whether its mask is to be brought to it."""
        size = self._size(record.path)
        if not record.mask or isinstance(size, _Fault):
            return size, False
        if record.mask not in self._masks:
            self._masks[record.mask] = self._size(record.mask)
        mask = self._masks[record.mask]
        wanted = self._resize or RESIZED in record.mask_reading
        if wanted and not isinstance(mask, _Fault) and mask != size and same_view(mask, size):
            return size, True
        return _compared(size, mask, self._root / record.mask), False

    def _size(self, name: str) -> Size | _Fault:
        path = self._root / name
        try:
            return image_size(path, max_pixels=self._max_pixels)
        except DataError as error:
            return _Fault("unreadable" if path.exists() else "missing", str(error))


def _compared(size: Size, mask: Size | _Fault, path: Path) -> Size | _Fault:
    if isinstance(mask, _Fault):
        return _Fault(f"mask-{mask.name}", f"its mask: {mask.reason}")
    if mask == size:
        return size
    turned = mask == size[::-1]
    reason = f"mask {path} is {mask[1]}x{mask[0]} px, its image {size[1]}x{size[0]} px"
    if turned:
        return _Fault("mask-transposed", f"{reason}, transposed; turn the mask")
    if same_view(mask, size):
        return _Fault("mask-size", f"{reason}; if it shows the whole image, scan with --mask-resize")
    return _Fault("mask-size", f"{reason}, of another shape; bring it to the image's size, or leave the row out")


def _leftovers(files: list[str], found: Iterable[Item], manifest: Manifest, rejects: list[Reject]) -> list[Ignored]:
    """Return every file that is neither record nor reject, with a reason; foreign pictures are added to `rejects`."""
    own = {*manifest.frame["path"], *(item.path for item in rejects)}
    reasons: dict[str, str] = {}
    for item in found:
        if isinstance(item, Ignored):
            reasons[item.path] = item.reason
        elif isinstance(item, Record) and item.mask:
            reasons.setdefault(item.mask, "mask")
    ignored = []
    for path in files:
        if path in own:
            continue
        suffix = PurePosixPath(path).suffix.lower()
        if suffix in FOREIGN_SUFFIXES and path not in reasons:
            reason = f"{suffix} is no image format that is read; convert it to PNG"
            rejects.append(Reject(path, reason, "foreign-format"))
        else:
            ignored.append(Ignored(_printable(path), reasons.get(path) or _kind(path, suffix)))
    return ignored


def _kind(path: str, suffix: str) -> str:
    if any(part.startswith(".") for part in PurePosixPath(path).parts):
        return "hidden"
    kinds = {_ORPHAN: IMAGE_SUFFIXES, _ARCHIVE: _ARCHIVE_SUFFIXES, "table or text": _TABLE_SUFFIXES}
    return next((kind for kind, suffixes in kinds.items() if suffix in suffixes), "no image")


def _findings_on_files(rejects: list[Reject], ignored: list[Ignored]) -> Iterator[Finding]:
    for fault, count in Counter(item.fault for item in rejects).most_common():
        paths = [_printable(item.path) for item in rejects if item.fault == fault]
        reason = next(item.reason for item in rejects if item.fault == fault)
        yield Finding(fault, f"rejected; the first: {paths[0]}: {reason}", count, "error", tuple(paths[:5]))
    advice = {
        _ORPHAN: ("orphan-image", "image files that the layout does not name: neither image, mask nor known extra"),
        _ARCHIVE: ("packed-archive", "packed archives lie beside the images; what is in them was not scanned"),
    }
    for kind, (name, detail) in advice.items():
        if paths := [item.path for item in ignored if item.reason == kind]:
            yield Finding(name, detail, len(paths), "warning", tuple(paths[:5]))


def _read_as(record: Record, how: str) -> str:
    """Return how the mask of a record is read if it is read in this way, too."""
    return "+".join(each for each in (INVERTED, RESIZED) if each in record.mask_reading or each == how)


def _findings_on_readings(manifest: Manifest, most_stretch: float) -> Iterator[Finding]:
    frame = manifest.frame
    if MASK_READING not in frame:
        return
    brought = "masks of another size, brought to that of their image by nearest neighbour"
    for how, name, detail in (
        (INVERTED, "mask-read-inverted", "masks whose black is taken for what was manipulated"),
        (RESIZED, "mask-resized", f"{brought}, stretched by up to {most_stretch:.1%}"),
    ):
        if paths := frame.loc[frame[MASK_READING].str.contains(how), "path"].tolist():
            yield Finding(name, detail, len(paths), "info", tuple(paths[:5]))


def _offset(progress: Progress | None, start: int) -> Progress | None:
    return None if progress is None else lambda done, total: progress(start + done, start + total)


def _printable(text: str) -> str:
    """Return a name as any terminal, page and file can hold it."""
    return UNSTORABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
