"""The demo data set: families of sixteen photographs, written as files that any user's data could be."""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from dlprobe.data.manifest import TEXT_COLUMNS, Manifest
from dlprobe.data.scan import scan
from dlprobe.data.synthesis.autoencoders import (
    fit_pca,
    fit_super_resolution,
    pca_moments,
    super_resolution_moments,
)
from dlprobe.data.synthesis.families import HELD_OUT_AUTOENCODER, TRAINING_AUTOENCODER, family
from dlprobe.data.synthesis.photographs import PAIRS, load_photograph
from dlprobe.errors import DataError, OutputError
from dlprobe.publish import publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dlprobe.data.synthesis.autoencoders import Autoencoder, Moments
    from dlprobe.data.synthesis.families import Member
    from dlprobe.data.synthesis.photographs import Photograph

DATASET = "demo"
#: Shipped photographs, two to a pair.
PHOTOGRAPHS = 2 * len(PAIRS)
#: Longest side of a photograph: two windows of 504 px.
SIDE_PX = 1016
_PNG_LEVEL = 3


class _Task(NamedTuple):
    """A photograph with its donor, and auto-encoders fitted on neither."""

    photograph: Photograph
    donor: Photograph
    autoencoders: dict[str, Autoencoder]
    turn: int


def build_demo(
    root: Path,
    *,
    seed: int = 0,
    photographs: int = PHOTOGRAPHS,
    side_px: int = SIDE_PX,
    window_px: int = 504,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the demo data set and read it back.

    Every photograph's auto-encoders are fitted on the photographs of the other pairs. A photograph and its donor form
    a group (`dlprobe.data.manifest.source_groups`), which no split may part. Images of
    `dlprobe.data.synthesis.HELD_OUT_GENERATORS` are for testing only.

    Parameters
    ----------
    root : Path
        Folder to be made; it gets ``manifest.csv`` and one sub-folder a photograph.
    seed : int
        Of masks and of the place of donor content; the same seed gives the same bytes.
    photographs : int
        How many to use: even, 4 to 16. Few make a tiny set for tests.
    side_px : int
        Longest side of a photograph; larger ones are cut about the centre.
    window_px : int
        Side of the windows that the set is meant for: a mask covers 2 to 50 % of one.
    progress : callable, optional
        Called with the number of photographs done and in all.

    Returns
    -------
    Manifest
        As the layout ``csv`` reads it.

    Raises
    ------
    DataError
        If `photographs` is odd or out of range, or a shipped photograph is missing.
    OutputError
        If `root` exists.
    """
    if photographs % 2 or not 4 <= photographs <= PHOTOGRAPHS:
        msg = f"the demo was asked for {photographs} photographs; give an even number from 4 to {PHOTOGRAPHS}"
        raise DataError(msg)
    if root.exists():
        msg = f"{root} exists already; name a new folder for the demo data or remove it"
        raise OutputError(msg)
    root.parent.mkdir(parents=True, exist_ok=True)
    pairs = [[load_photograph(name, side_px) for name in pair] for pair in PAIRS[: photographs // 2]]
    tasks = list(_tasks(pairs))
    with publish(root) as scratch, ThreadPoolExecutor(min(len(tasks), os.cpu_count() or 1)) as pool:
        scratch.mkdir()
        rows: list[dict[str, object]] = []
        for done, part in enumerate(pool.map(lambda task: _write(scratch, task, seed, window_px), tasks), start=1):
            rows.extend(part)
            if progress:
                progress(done, len(tasks))
        pd.DataFrame(rows, columns=list(TEXT_COLUMNS)).to_csv(scratch / "manifest.csv", index=False)
    return scan(root, layout="csv", sample=0).manifest


def _tasks(pairs: Sequence[Sequence[Photograph]]) -> Iterator[_Task]:
    pca = [[pca_moments(photograph.pixels) for photograph in pair] for pair in pairs]
    enlarging = [[super_resolution_moments(photograph.pixels) for photograph in pair] for pair in pairs]
    for group, (left, right) in enumerate(pairs):
        autoencoders: dict[str, Autoencoder] = {
            TRAINING_AUTOENCODER: fit_pca(_without(pca, group)),
            HELD_OUT_AUTOENCODER: fit_super_resolution(_without(enlarging, group)),
        }
        yield _Task(left, right, autoencoders, 2 * group)
        yield _Task(right, left, autoencoders, 2 * group + 1)


def _without(moments: Sequence[Sequence[Moments]], group: int) -> list[Moments]:
    return [item for other, pair in enumerate(moments) if other != group for item in pair]


def _write(root: Path, task: _Task, seed: int, window_px: int) -> list[dict[str, object]]:
    photograph, donor, autoencoders, turn = task
    rng = np.random.default_rng([seed, zlib.crc32(photograph.source_id.encode())])
    folder = root / photograph.name
    folder.mkdir()
    members = family(photograph, donor, autoencoders, rng, window_px=window_px, turn=turn)
    return [_save(root, photograph, donor, member) for member in members]


def _save(root: Path, photograph: Photograph, donor: Photograph, member: Member) -> dict[str, object]:
    stem = "-".join(part for part in (member.variant, member.generator.replace("+", "-"), member.mask_kind) if part)
    row: dict[str, object] = {
        "path": f"{photograph.name}/{stem}.png",
        "mask": "",
        "variant": str(member.variant),
        "source_id": photograph.source_id,
        "donor_id": donor.source_id if member.generator.startswith("donor+") else "",
        "generator": member.generator,
        "mask_kind": member.mask_kind,
        "dataset": DATASET,
    }
    _png(root / f"{photograph.name}/{stem}.png", member.pixels)
    if member.mask is not None:
        filling = member.generator.partition("+")[0]
        row["mask"] = f"{photograph.name}/mask-{filling}-{member.mask_kind}.png"
        _png(root / f"{photograph.name}/mask-{filling}-{member.mask_kind}.png", member.mask.astype(np.uint8) * 255)
    return row


def _png(path: Path, pixels: NDArray[np.uint8]) -> None:
    if not path.exists():  # the members of a family share their masks
        Image.fromarray(pixels).save(path, compress_level=_PNG_LEVEL)
