"""The demo: the whole flow, offline, on photographs that ship with scikit-image and scikit-learn.

It runs exactly what a user's data runs: files with a manifest, scan, extraction into caches, one-pass fit with nested
folds of sources, localization, report.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dlprobe.backbones import load_backbone
from dlprobe.data import Manifest, scan, tile, working_size
from dlprobe.data.images import read_image
from dlprobe.data.labels import TRUTH_SCHEME
from dlprobe.data.samples import mask_of
from dlprobe.data.synthesis import HELD_OUT_GENERATORS, build_demo
from dlprobe.errors import OutputError
from dlprobe.extraction import extract
from dlprobe.localization import overlay, score_map
from dlprobe.reports import Picture, write_report
from dlprobe.studies import FitSettings, fit_caches
from dlprobe.studies.fit import FOLDS_FOLDER, slug
from dlprobe.studies.results import with_interval

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from dlprobe.backbones import Backbone
    from dlprobe.studies import FitResult

BACKBONE = "residual:srm"
FLOOR = "timm:vit_small_patch14_dinov2"
FLOOR_WEIGHTS = "random:0"
#: What the floor is measured on: a ViT-S takes half a second a window on two cores.
FLOOR_GENERATORS = ("", "pca", "telea+pca", "ns+pca", "donor+pca")
FLOOR_SOURCES = 10
#: Of the sliding window, at windows of 504 px; twice the recipe's, which is enough for pictures.
STRIDE_PX = 252
#: Longest side of a photograph in the demo: larger ones would only add windows.
SIDE_PX = 640
FIT = FitSettings(
    hold_out=HELD_OUT_GENERATORS,
    learning_rates=(0.03, 0.1, 0.3),
    weight_decays=(1e-2, 1e-1),
    epochs=12,
    patience=None,
    baselines=("logistic",),
    baseline_c=(0.01,),
    baseline_patches=10_000,
)
#: The floor has a fifth of the windows; the heads get as many steps by smaller batches and more epochs.
FLOOR_FIT = replace(FIT, hold_out=(), schemes=(TRUTH_SCHEME,), epochs=30, batch_windows=8)
_MARK = "dlprobe-demo"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo prints (`text`) and where its report is."""

    text: str
    report: Path


def run_demo(
    out: str | os.PathLike[str],
    *,
    photographs: int = 16,
    side_px: int = SIDE_PX,
    window_px: int = 504,
    say: Callable[[str], None] = lambda _: None,
) -> DemoResult:
    """Build the demo data, extract, fit, localize, report; what an earlier run finished is used again.

    Parameters
    ----------
    out : path
        Folder to write into.
    photographs, side_px, window_px
        See `dlprobe.data.synthesis.build_demo`; small ones make a demo for a test.
    say : callable
        Told in a line what is being done.

    Returns
    -------
    DemoResult

    Raises
    ------
    OutputError
        If `out` exists and is no demo.
    """
    folder = _prepared(Path(out))
    data = folder / "data"
    if not data.exists():
        say("building the data set from photographs that ship with scikit-image and scikit-learn")
        build_demo(data, photographs=photographs, side_px=side_px, window_px=window_px)
    found = scan(data)
    found.manifest.write(folder / "manifest.parquet")
    say(f"{len(found.manifest)} images of {found.manifest.frame['source_id'].nunique()} photographs")
    cache, floor_cache = folder / "cache-residual", folder / "cache-random-vit"
    backbone = load_backbone(BACKBONE, window_px=window_px)
    say(f"extracting {BACKBONE}")
    extract(found.manifest, backbone, cache, stride_px=window_px)
    say(f"extracting {FLOOR} with {FLOOR_WEIGHTS}, the floor, on a subset")
    floor_backbone = load_backbone(FLOOR, weights=FLOOR_WEIGHTS, window_px=window_px)
    extract(floor_subset(found.manifest, window_px), floor_backbone, floor_cache, stride_px=window_px)
    say("fitting all heads and the baselines")
    fit = fit_caches([cache], folder / "run", settings=FIT)
    floor = fit_caches([cache, floor_cache], folder / "run-floor", settings=FLOOR_FIT)
    say("localizing")
    report = write_report(
        folder / "run",
        folder / "report.html",
        title="dlprobe demo: is inpainting linearly visible in residual statistics?",
        lead=[
            "Photographs that ship with scikit-image and scikit-learn, inpainted by OpenCV or pasted from a donor.",
            "What is generated went through a linear auto-encoder; that of generators with 'sr' trained no probe.",
            "sp: only the masked region is generated; fr: the whole image went through the auto-encoder as well.",
        ],
        more_runs=[(f"Against the floor: {BACKBONE} and {FLOOR} ({FLOOR_WEIGHTS}) on common windows", floor.out)],
        pictures=list(_pictures(fit, found.manifest, backbone)),
        images=data,
    )
    return DemoResult(_text(fit, floor), report)


def floor_subset(manifest: Manifest, window_px: int) -> Manifest:
    """Return the images that the floor is measured on: some generators of the sources with the fewest windows."""
    frame = manifest.frame
    first = frame.drop_duplicates("source_id").set_index("source_id")
    sizes = [working_size(h, w, window_px) for h, w in zip(first["height"], first["width"], strict=True)]
    windows = pd.Series([len(tile(*size, window_px, window_px)) for size in sizes], index=first.index)
    chosen = windows.sort_values(kind="stable").index[:FLOOR_SOURCES]
    return manifest.select(frame["source_id"].isin(chosen) & frame["generator"].isin(FLOOR_GENERATORS))


def _prepared(folder: Path) -> Path:
    mark = folder / f".{_MARK}"
    if folder.exists() and not mark.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} exists and is no demo of dlprobe; give another folder (-o)"
        raise OutputError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text("made by `dlprobe demo`; remove the folder to begin anew\n")
    return folder


def _pictures(fit: FitResult, manifest: Manifest, backbone: Backbone) -> Iterator[Picture]:
    """Localize, of each kind, the image whose score is the median, and the best and worst of the spliced ones."""
    stride_px = round(STRIDE_PX * backbone.spec.window_px / 504)
    for row in _examples(fit.images):
        image = manifest.frame.set_index("path").loc[row.path]
        pixels = read_image(manifest.root / row.path)
        mask = mask_of(image, manifest.root, (pixels.shape[0], pixels.shape[1]))
        truth = np.zeros(pixels.shape[:2], bool) if mask is None else mask
        probe = fit.probes[f"{slug(BACKBONE)}/{FOLDS_FOLDER}/dice-{TRUTH_SCHEME}-{row.fold}"]
        scores = score_map(pixels, backbone, probe, stride_px=stride_px).inpainted
        marked = scores >= 0.5
        union = (marked | truth).sum()
        quality = f"IoU {(marked & truth).sum() / union:.2f}" if truth.any() else f"false area {marked.mean():.3f}"
        yield Picture(
            overlay(pixels, np.zeros_like(scores), truth),
            scores,
            overlay(pixels, scores, marked),
            f"{row.variant} {row.generator} {row.mask_kind} ({row.source_id}): {quality} in pixels",
        )


def _examples(images: pd.DataFrame) -> Iterator[pd.Series]:
    rows = images[(images["method"] == "dice") & (images["scheme"] == TRUTH_SCHEME)]
    for (variant, _), part in rows.groupby(["variant", "generator"]):
        column = "iou" if variant in {"sp", "fr"} else "false_area"
        ranked = part.sort_values([column, "path"], kind="stable")
        yield next(ranked.iloc[[len(ranked) // 2]].itertuples())
    spliced = rows[rows["variant"] == "sp"].sort_values(["iou", "path"], kind="stable")
    yield from spliced.iloc[[0, -1]].itertuples()


def _text(fit: FitResult, floor: FitResult) -> str:
    lines = [fit.summary().to_string(index=False), ""]
    for title, run in (("paired comparisons", fit), ("against the floor, on common windows", floor)):
        table = run.comparisons
        if run is floor:
            table = table[table["comparison"].str.startswith(BACKBONE)]
        lines.append(f"{title} (difference, 95 % interval, p after Holm):")
        lines += [
            f"  {row.comparison:48} {row.kind:20} {row.metric:16} "
            f"{with_interval(row.difference, row.low, row.high, signed=True)}  p {row.p_holm:.4f}"
            for row in table.itertuples()
        ]
        lines.append("")
    return "\n".join([*lines, *fit.notes])
