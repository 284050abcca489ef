"""Run every check of the auditor over a manifest, the expensive ones on a seeded sample."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from dlprobe.data.audit.duplicates import Look, look, near_duplicates
from dlprobe.data.audit.examine import Examination, Subject, examine
from dlprobe.data.audit.masks import mask_findings, settle, variant_findings
from dlprobe.data.audit.shortcuts import read_wrapping, shortcut_findings
from dlprobe.data.audit.sources import source_findings
from dlprobe.data.images import MAX_PIXELS, read_image
from dlprobe.data.layouts.base import Finding, Guess
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from dlprobe.data.manifest import Manifest

#: Images that are decoded with mask and partner, unless all are asked for.
SAMPLE = 300
#: Photographs that are decoded and hashed, and headers that are read again, for each image of the sample.
HASHED_FACTOR, HEADERS_FACTOR = 4, 8
#: Decoders at work: each holds some images, so that memory stays bounded on machines with many cores.
THREADS = min(4, os.cpu_count() or 1)


def audit(
    manifest: Manifest,
    *,
    sample: int | None = SAMPLE,
    seed: int = 0,
    seen: Mapping[str, Collection[str]] | None = None,
    guesses: Sequence[Guess] = (),
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Look for what would bend a number.

    Parameters
    ----------
    manifest : Manifest
        The images, whose files lie below its root.
    sample : int or None
        How many images to decode with mask and authentic partner, spread over data sets, generators and variants;
        4 times as many photographs are hashed, 8 times as many headers read. None takes all, 0 none.
    seed : int
        Of the sample.
    seen : mapping of str to collection of str, optional
        source_ids of other manifests or of a backbone's training, by name.
    guesses : sequence of Guess
        What the layout assumed: each becomes a finding that says what the pixels say.
    max_pixels : int
        Larger images count as unreadable.
    progress : callable, optional
        Called with the number of images examined and in all.

    Returns
    -------
    list of Finding
        Errors first, then warnings, then information.
    """
    findings = list(source_findings(manifest.frame, seen or {}))
    examined: list[Examination] = []
    if sample != 0:
        examined = _examined(manifest, sample, seed, max_pixels, progress)
        findings += mask_findings(examined)
        findings += variant_findings(examined)
        findings += _duplicate_findings(manifest, _times(sample, HASHED_FACTOR), seed, max_pixels)
        findings += _shortcut_findings(manifest, _times(sample, HEADERS_FACTOR), seed)
    findings += [settle(guess, examined) for guess in guesses]
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def _times(sample: int | None, factor: int) -> int | None:
    return None if sample is None else sample * factor


def _examined(
    manifest: Manifest, sample: int | None, seed: int, max_pixels: int, progress: Callable[[int, int], None] | None
) -> list[Examination]:
    frame = manifest.frame
    real = frame[frame["variant"] == "real"]
    partners = {key: tuple(group["path"]) for key, group in real.groupby(["source_id", "width", "height"], sort=False)}
    chosen = spread_sample(frame, ["dataset", "generator", "variant"], sample, seed)
    subjects = [
        Subject.of(
            row,
            () if row["variant"] == "real" else partners.get((row["source_id"], row["width"], row["height"]), ()),
        )
        for row in chosen.to_dict("records")
    ]
    examined = []
    with ThreadPoolExecutor(THREADS) as pool:
        for each in pool.map(lambda subject: examine(manifest.root, subject, max_pixels), subjects):
            examined.append(each)
            if progress:
                progress(len(examined), len(subjects))
    return examined


def spread_sample(frame: pd.DataFrame, groups: list[str], sample: int | None, seed: int) -> pd.DataFrame:
    """Return a seeded sample that takes from each group in turn, in the frame's order.

    Parameters
    ----------
    frame : DataFrame
        Rows to choose from.
    groups : list of str
        Columns whose combinations are the groups.
    sample : int or None
        Rows in all; None takes every row.
    seed : int
        Of the permutation.
    """
    if sample is None or len(frame) <= sample:
        return frame
    shuffled = frame.iloc[np.random.default_rng(seed).permutation(len(frame))]
    turn = shuffled.groupby(groups, sort=False).cumcount()
    return frame.loc[turn.sort_values(kind="stable").index[:sample]].sort_index()


def _duplicate_findings(manifest: Manifest, sample: int | None, seed: int, max_pixels: int) -> Iterator[Finding]:
    """Compare photographs, one image each, across splits, or across data sets where there are no splits."""
    frame = manifest.frame.assign(made=manifest.frame["variant"] != "real")
    column = "split" if (frame["split"] != "").any() else "dataset"
    frame = frame[frame[column] != ""].sort_values(["made", "path"], kind="stable").drop_duplicates("source_id")
    if frame[column].nunique() < 2:
        return
    chosen = spread_sample(frame.sort_index(), [column], sample, seed)
    with ThreadPoolExecutor(THREADS) as pool:
        looks = list(pool.map(lambda path: _look(manifest.root / path, max_pixels), chosen["path"]))
    kept = [
        (each, path, group) for each, path, group in zip(looks, chosen["path"], chosen[column], strict=True) if each
    ]
    pairs = list(near_duplicates([each for each, _, _ in kept if each], [group for _, _, group in kept]))
    if pairs:
        first, second = kept[pairs[0][0]], kept[pairs[0][1]]
        detail = (
            f"pairs of photographs under different source_ids look alike across {column}s, such as {first[1]} "
            f"({first[2]}) and {second[1]} ({second[2]}); {len(kept)} of {len(frame)} were compared"
        )
        paths = tuple(kept[i][1] for pair in pairs[:3] for i in pair)
        yield Finding("near-duplicate", detail, len(pairs), "warning", paths)


def _look(path: Path, max_pixels: int) -> Look | None:
    try:
        return look(read_image(path, max_pixels=max_pixels))
    except DataError:
        return None


def _shortcut_findings(manifest: Manifest, sample: int | None, seed: int) -> Iterator[Finding]:
    frame = manifest.frame.assign(fake=manifest.frame["variant"] != "real")
    chosen = spread_sample(frame, ["fake"], sample, seed)
    rows = zip(chosen["path"], chosen["source_id"], chosen["fake"], chosen["width"], chosen["height"], strict=True)
    found = [read_wrapping(manifest.root / path, source, fake, (w, h)) for path, source, fake, w, h in rows]
    yield from shortcut_findings([wrapping for wrapping in found if wrapping])
