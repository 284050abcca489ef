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
    seen, known = seen_sources(probe), _known_files(frame, manifest.root, probe)
    if seen is None and known is None:
        found.notes.append("the probe's card names no training sources, so that none could be left out")
        return frame
    groups = source_groups(manifest.frame)
    parted = manifest.frame["source_id"].isin(seen or ()) | manifest.frame["donor_id"].isin(seen or ())
    named = groups.loc[frame.index].isin(set(groups[parted]))
    trained = named if known is None else groups.loc[frame.index].isin({*groups[parted], *groups[known]})
    count, sources = int(trained.sum()), frame.loc[trained, "source_id"].nunique()
    if not count:
        which = "" if seen is None else f"{len(seen)} "
        found.notes.append(f"none of the images is of the {which}sources that trained or chose the probe")
        return frame
    what = f"{count} images of {sources} sources that trained or chose the probe, or share a donor with such"
    if renamed := sorted(set(frame.loc[trained & ~named, "source_id"])):
        more = f" and {len(renamed) - 1} more" if len(renamed) > 1 else ""
        what += f" ({renamed[0]}{more} under other names: the probe's card lists files of the same bytes)"
    if settings.seen == "refuse":
        msg = f"the manifest holds {what}; leave them out (--seen leave-out), or evaluate on other sources"
        raise DataError(msg)
    if settings.seen == "keep":
        found.notes.append(f"WARNING: {what} are scored as asked (--seen keep): these numbers flatter the probe")
        return frame
    found.ignored["of a source that trained or chose the probe"] += count
    found.notes.append(f"left out: {what}")
    return frame[~trained]


def _known_files(frame: pd.DataFrame, root: Path, probe: Probe) -> pd.Index | None:
    """Return the rows whose files had a part in the probe, whatever their sources are called; None if none are listed.

    A file that cannot be read is none of them: it becomes a reject when it is to be scored.
    """
    files = probe.seen_files()
    if files is None:
        return None

    def known(path: str) -> bool:
        try:
            return sha256_of_file(root / path)[:FILE_DIGITS] in files
        except OSError:
            return False

    with ThreadPoolExecutor() as pool:
        return frame.index[list(pool.map(known, frame["path"]))]
