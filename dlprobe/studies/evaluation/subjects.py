"""Which images of a manifest are evaluated, and why the others are not: every image is accounted for."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dlprobe.data.manifest import source_groups
from dlprobe.errors import DataError
from dlprobe.probes.probe import FILE_DIGITS
from dlprobe.spec import sha256_of_file

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    import pandas as pd

    from dlprobe.data.manifest import Manifest
    from dlprobe.probes import Probe
    from dlprobe.studies.evaluation.settings import EvaluateSettings

#: Upper ends of the bins of the mask's share of the image, and their names.
SIZE_BINS = (
    (0.01, "mask below 1 %"),
    (0.05, "mask 1 to 5 %"),
    (0.2, "mask 5 to 20 %"),
    (1.0, "mask from 20 %"),
)
#: Ending of the fields of a card's ``data`` that list sources that had a part in the probe.
_SOURCES = "_sources"


@dataclass(frozen=True, slots=True, eq=False)
class Subjects:
    """The images to evaluate.

    Attributes
    ----------
    frame : DataFrame
        Their rows of the manifest.
    root : Path
        Folder that paths are relative to.
    ignored : Counter of str
        How many images are left out, by reason.
    notes : list of str
        What a reader of the numbers has to know.
    """

    frame: pd.DataFrame
    root: Path
    ignored: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def choose_subjects(manifest: Manifest, probe: Probe, settings: EvaluateSettings) -> Subjects:
    """Return the images of the split, without those that had a part in the probe.

    Parameters
    ----------
    manifest : Manifest
        All images.
    probe : Probe
        Whose card names the sources, and lists the files, that trained, chose or calibrated it.
    settings : EvaluateSettings
        `split` and `seen` count.

    Raises
    ------
    DataError
        If nothing is left, or sources were seen and `seen` is ``refuse``.
    """
    found = Subjects(manifest.frame, manifest.root)
    frame = manifest.frame
    split = settings.split or ("test" if (frame["split"] == "test").any() else "all")
    if split != "all":
        wanted = frame["split"] == split
        found.ignored[f"not in split {split}"] += int((~wanted).sum())
        frame = frame[wanted]
        if frame.empty:
            msg = f"the manifest has no image in split {split}; choose another (--split), or all"
            raise DataError(msg)
    found.notes.append(f"split: {split}")
    kept = _without_seen(manifest, frame, probe, settings, found)
    if kept.empty:
        msg = (
            f"all {len(frame)} images are of sources that trained or chose this probe; evaluate it on others, "
            "or say --seen keep for numbers that flatter it"
        )
        raise DataError(msg)
    return Subjects(kept.reset_index(drop=True), found.root, +found.ignored, found.notes)


def seen_sources(probe: Probe) -> set[str] | None:
    """Return the sources that a card says had a part in the probe; None if it does not say."""
    data = probe.card["data"]
    lists = [value for name, value in data.items() if name.endswith(_SOURCES) and isinstance(value, list)]
    return {str(source) for sources in lists for source in sources} if lists else None


def size_bin(mask_share: float) -> str:
    """Return the name of the bin of a mask's share of its image."""
    return next(name for end, name in SIZE_BINS if mask_share < end or end == 1.0)


def _without_seen(
    manifest: Manifest, frame: pd.DataFrame, probe: Probe, settings: EvaluateSettings, found: Subjects
) -> pd.DataFrame:
    seen, files = seen_sources(probe), probe.seen_files()
    if seen is None and not files:
        found.notes.append("the probe's card names no training sources, so that none could be left out")
        return frame
    table, groups = manifest.frame, source_groups(manifest.frame)
    named = set(groups[table["source_id"].isin(seen or ()) | table["donor_id"].isin(seen or ())])
    asked = groups.isin(set(groups[frame.index]) - named)  # of other splits, too: one file tells of its whole group
    known = _known_files(table.loc[asked, "path"], manifest.root, files or {})
    trained = groups[frame.index].isin({*named, *groups[known]})
    count, sources = int(trained.sum()), frame.loc[trained, "source_id"].nunique()
    if not count:
        which = "" if seen is None else f"{len(seen)} "
        found.notes.append(f"none of the images is of the {which}sources that trained or chose the probe")
        return frame
    what = f"{count} images of {sources} sources that trained or chose the probe, or share a donor with such"
    if byte_known := sorted(set(table.loc[known, "source_id"])):
        more = f" and {len(byte_known) - 1} more" if len(byte_known) > 1 else ""
        what += f" (known by the bytes of a file alone: {byte_known[0]}{more})"
    if settings.seen == "refuse":
        msg = f"the manifest holds {what}; leave them out (--seen leave-out), or evaluate on other sources"
        raise DataError(msg)
    if settings.seen == "keep":
        found.notes.append(f"WARNING: {what} are scored as asked (--seen keep): these numbers flatter the probe")
        return frame
    found.ignored["of a source that trained or chose the probe"] += count
    found.notes.append(f"left out: {what}")
    return frame[~trained]


def _known_files(paths: pd.Series, root: Path, files: Collection[str]) -> pd.Index:
    """Return the rows whose files had a part in a probe, by the first digits of their sha256, whatever they are called.

    A file that cannot be read is none of them: it becomes a reject when it is to be scored.
    """

    def known(path: str) -> bool:
        try:
            return sha256_of_file(root / path)[:FILE_DIGITS] in files
        except OSError:
            return False

    if not files:
        return paths.index[:0]
    with ThreadPoolExecutor() as pool:
        return paths.index[list(pool.map(known, paths))]
