"""One self-contained HTML file of an evaluation, with a threshold that the reader can move."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.data.images import read_image
from dlprobe.data.samples import mask_of
from dlprobe.errors import DataError
from dlprobe.metrics.intervals.studentized import MIN_SOURCES
from dlprobe.plotting import png
from dlprobe.publish import publish
from dlprobe.reports.page import (
    GLOSSARY,
    Section,
    jpeg_uri,
    png_uri,
    require_html,
    table_section,
    told,
    write_page,
    written_out,
)
from dlprobe.reports.slider import Exhibit, slider, threshold_levels
from dlprobe.studies import read_evaluation
from dlprobe.studies.designs.pairing import on_same_scores
from dlprobe.studies.displays import column_words, plot_robustness
from dlprobe.studies.results import FAKE_VARIANTS

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dlprobe.studies import Run

REPORT_NAME = "report.html"
CURVES_NAME = "curves.png"
#: Images of each variant at either end of its scores.
EXAMPLES = 3
#: Larger images are shown with every n-th pixel.
SIDE_PX = 640


def write_evaluation_report(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write one HTML file that needs nothing else: tables, curves, and the worst and best images under a threshold.

    Parameters
    ----------
    folder : path
        That `dlprobe.studies.evaluate` wrote; its images must still be where they were.
    out : path, optional
        File to write; ``report.html`` in the folder by default. The curves are also written beside it, as
        ``curves.png``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If the folder is no evaluation, or the file cannot be written.
    """
    run = read_evaluation(folder)
    target = require_html(out if out is not None else run.path / REPORT_NAME)
    own = run.record["protocols"][0]
    drawn = plot_robustness(run.tables["curves"], own["headline"])
    curves = b"" if drawn is None else png(drawn)
    page = write_page(
        target,
        "evaluation.html",
        title=f"dlprobe: evaluation of {run.record['backbone']['backbone']}",
        lead=_lead(run),
        notes=run.record["notes"],
        sections=list(_sections(run, curves)),
        exhibits=list(_exhibits(run, own)),
        threshold=slider(own["threshold"]),
        begins=f"protocol {own['label']} has it",
        footer=_footer(run),
    )
    if curves:
        with publish(target.parent / CURVES_NAME) as scratch:
            scratch.write_bytes(curves)
    return page


def _lead(run: Run) -> list[str]:
    of, card = run.record["accounting"], run.record["probe"]["card"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in run.record["ignored"].items())
    ignored = f"{of['ignored']} ignored" + (f" ({reasons})" if reasons else "")
    return [
        f"{of['images']} images in = {of['scored']} scored + {of['rejected']} rejected + {ignored}.",
        f"Probe: labelling scheme {card['scheme']}, objective {card['objective']}.",
        f"Threshold on its card: {card['threshold']:.6g} ({card['threshold_policy']}).",
    ]


def _sections(run: Run, curves: bytes) -> Iterator[Section]:
    tables = run.tables
    yield table_section(
        "Scores by kind of image",
        tables["overview"],
        text=[
            "Each score says under which protocol it was taken; beside it stands what marking everything gets.",
            f"Intervals are over photographs; below {MIN_SOURCES} there is none.",
            "An image is called generated where the 99th percentile of its map reaches the threshold.",
            "The AUC of whole images is 0.5 by chance. An oracle chose its threshold on these very images.",
            *([same] if (same := on_same_scores([tables["results"]])) else []),
            *GLOSSARY,
        ],
    )
    if curves:
        text = ["Mean over photographs with its interval, hollow where there is none; dotted: on clean images."]
        yield Section("Robustness", text=text, figure=png_uri(curves))
        yield table_section("Robustness in numbers", tables["curves"], folded=True)
    yield table_section(
        "Against marking everything",
        tables["comparisons"],
        text=[
            "Difference photograph by photograph, with its own interval and sign-flip p.",
            "p after Holm is corrected for the number of rows. Tinted: the interval does not show that the probe wins.",
        ],
        lost=lambda row: not (row["low"] if not isnan(row["low"]) else row["difference"]) > 0,
    )
    yield table_section(
        "Post-processing, step by step",
        tables["steps"],
        text=["IoU on fakes, falsely marked share elsewhere, after each step; its change against the step before."],
    )
    yield table_section(
        "Object prior: what the authentic photograph shows where its fake will be inpainted",
        tables["prior"],
        text=["Tinted: the photograph's own map gets more than half of the fake's IoU with the mask to be."],
        lost=lambda row: bool(row["explains"]),
    )
    yield table_section(
        "Marked where nothing was generated",
        tables["background"],
        text=["In fr the background went through the auto-encoder; images marked all over show no region."],
    )
    if len(tables["rejects"]):
        yield table_section("Rejected images", tables["rejects"])
    yield table_section("All numbers", tables["results"], folded=True)
    yield _protocols(run)


def _protocols(run: Run) -> Section:
    records = run.record["protocols"]
    header = [name for name in records[0] if name != "headline"]
    rows = [{"cells": [told(record[name]) for name in header], "lost": False} for record in records]
    return Section("What each protocol does", [column_words(name) for name in header], rows, folded=True)


def _footer(run: Run) -> list[str]:
    record, model = run.record, run.record["backbone"]
    return [
        f"Probe {record['probe']['sha256']}; model_fingerprint {model['model_fingerprint']}.",
        f"Weights {model['weights']} ({model['weights_sha256']}).",
        f"Manifest {record['manifest']['sha256']}; settings {record['settings']}; sliding window {record['sliding']}.",
        f"Software: {written_out(record['software'])}.",
        *record["probe"]["card"]["notes"],
    ]


def _exhibits(run: Run, own: dict[str, Any]) -> Iterator[Exhibit]:
    from dlprobe.studies.evaluation.maps import MapStore

    images = run.tables["images"]
    clean = images[images["chain"] == "clean"]
    store = MapStore(run.path / "maps", {}, run.record["backbone"]["window_px"])
    root = Path(run.record["manifest"]["root"])
    for variant, part in clean.groupby("variant", sort=False):
        fake = variant in FAKE_VARIANTS
        column = own["headline"] if fake else own["headline"].rsplit(".", 1)[0] + ".marked_share"
        ranked = part.dropna(subset=[column]).sort_values([column, "path"], kind="stable")
        ends = [*range(EXAMPLES), *range(len(ranked) - EXAMPLES, len(ranked))]
        for at in sorted({at for at in ends if 0 <= at < len(ranked)}):
            row = ranked.iloc[at].to_dict()
            scores = store.read(store.folder / row["map"]).original
            yield _exhibit(row, root, threshold_levels(scores, own["threshold"]), fake)


def _exhibit(row: dict[str, Any], root: Path, levels: NDArray[np.uint8], fake: bool) -> Exhibit:
    words = [row["variant"], row["generator"], row["mask_kind"], row["source_id"], row["path"]]
    size = levels.shape
    try:
        photo = read_image(root / row["path"])
        found = mask_of(row, root, (size[0], size[1]))
        truth = np.zeros(size, bool) if found is None else found
    except DataError:
        photo, truth = np.full((*size, 3), 128, np.uint8), np.zeros(size, bool)
        words.append("(the image is no longer where it was)")
        fake = False
    step = max(1, -(-max(size) // SIDE_PX))
    if step > 1:
        words.append(f"(every {step}th pixel)")
    return Exhibit(
        jpeg_uri(np.ascontiguousarray(photo[::step, ::step])),
        png_uri(np.ascontiguousarray(levels[::step, ::step])),
        png_uri(np.ascontiguousarray(truth[::step, ::step]) * np.uint8(255)),
        " ".join(word for word in words if word),
        fake,
    )
