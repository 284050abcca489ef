"""One self-contained HTML file of an evaluation, with a threshold that the reader can move."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.data.images import read_image, read_mask
from dlprobe.errors import DataError
from dlprobe.publish import publish
from dlprobe.reports.figures import robustness_curves
from dlprobe.reports.page import Section, jpeg_uri, png_uri, require_html, write_page
from dlprobe.studies import read_evaluation
from dlprobe.studies.results import FAKE_VARIANTS, with_interval

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray

    from dlprobe.studies import Run

REPORT_NAME = "report.html"
CURVES_NAME = "curves.png"
#: Images of each variant at either end of its scores.
EXAMPLES = 3
#: Larger images are shown with every n-th pixel.
SIDE_PX = 640
#: Level of the embedded 8-bit maps that is the threshold itself, and the logit that one level stands for.
THRESHOLD_LEVEL = 128
LOGITS_PER_LEVEL = 12 / 128


@dataclass(frozen=True, slots=True)
class Exhibit:
    """An image of the page: pixels, levels of its map and its truth as data URIs, of one size, and words."""

    photo: str
    levels: str
    truth: str
    caption: str
    fake: bool


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
    curves = robustness_curves(run.tables["curves"], own["headline"])
    page = write_page(
        target,
        "evaluation.html",
        title=f"dlprobe: evaluation of {run.record['backbone']['backbone']}",
        lead=_lead(run),
        notes=run.record["notes"],
        sections=list(_sections(run, curves)),
        exhibits=list(_exhibits(run, own)),
        threshold={
            "logit": _logit(own["threshold"]),
            "level": THRESHOLD_LEVEL,
            "step": LOGITS_PER_LEVEL,
            "name": own["label"],
        },
        footer=_footer(run),
    )
    if curves:
        with publish(target.parent / CURVES_NAME) as scratch:
            scratch.write_bytes(curves)
    return page


def threshold_levels(scores: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return a map as 8-bit levels on the scale of logits, so that level 128 and above is exactly what is marked.

    Parameters
    ----------
    scores : ndarray of float32, shape (height, width)
        In [0, 1].
    threshold : float
        Score from which a pixel is marked, in (0, 1).
    """
    wide = np.asarray(scores, np.float64)
    with np.errstate(divide="ignore"):
        logits = np.log(wide) - np.log1p(-wide)
    steps = np.floor((logits - _logit(threshold)) / LOGITS_PER_LEVEL)
    steps = np.where(wide >= threshold, np.maximum(steps, 0), np.minimum(steps, -1))
    return np.asarray(np.clip(THRESHOLD_LEVEL + steps, 0, 255), np.uint8)


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
    yield _table(
        "Scores by kind of image",
        tables["overview"],
        text=[
            "Each number's name says protocol, pixel grid and metric; beside it stands what marking every pixel gets.",
            "Intervals are over sources; below 8 there is none. An oracle chose its threshold on these very images.",
        ],
    )
    if curves:
        text = ["Mean over sources with its interval; the dotted line is the clean images' value."]
        yield Section("Robustness", text=text, figure=png_uri(curves))
        yield _table("Robustness in numbers", tables["curves"], folded=True)
    yield _table(
        "Against marking everything",
        tables["comparisons"],
        text=[
            "Difference source by source, with interval and sign-flip p, adjusted by Holm. Tinted: not surely above."
        ],
        lost=lambda row: not (row["low"] if not isnan(row["low"]) else row["difference"]) > 0,
    )
    yield _table(
        "Post-processing, step by step",
        tables["steps"],
        text=["IoU on fakes, falsely marked share elsewhere, after each step; its change against the step before."],
    )
    yield _table(
        "Object prior: what the authentic photograph shows where its fake will be inpainted",
        tables["prior"],
        text=["Tinted: the photograph's own map gets more than half of the fake's IoU with the mask to be."],
        lost=lambda row: bool(row["explains"]),
    )
    yield _table(
        "Marked where nothing was generated",
        tables["background"],
        text=["In fr the background went through the auto-encoder; 'whole' is the share of images marked all over."],
    )
    if len(tables["rejects"]):
        yield _table("Rejected images", tables["rejects"])
    yield _table("All numbers", tables["results"], folded=True)
    yield _protocols(run)


def _table(
    title: str, table: pd.DataFrame, *, text: list[str] | None = None, folded: bool = False, lost: Any = None
) -> Section:
    """Return a table with each value and its interval in one cell."""
    merged = _merged(table)
    rows = [
        {"cells": [_cell(value) for value in cells.values()], "lost": lost is not None and lost(whole)}
        for cells, whole in zip(merged.to_dict("records"), table.to_dict("records"), strict=True)
    ]
    lines = list(text or []) if rows else [*(text or []), "Nothing to show."]
    return Section(title, [str(name).replace("_", " ") for name in merged.columns], rows, lines, folded=folded)


def _merged(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose columns of interval ends are put beside their value in brackets."""
    found = table.copy()
    for low in [name for name in table.columns if str(name).endswith("low")]:
        stem = str(low).removesuffix("low").removesuffix("_")
        name = stem or next(column for column in ("difference", "value") if column in table.columns)
        ends = (table[name], table[low], table[str(low).removesuffix("low") + "high"])
        signed = name in {"difference", "gain", "change"}
        found[name] = [with_interval(*numbers, signed=signed) for numbers in zip(*ends, strict=True)]
        found = found.drop(columns=[low, str(low).removesuffix("low") + "high"])
    return found


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if isnan(value) else f"{value:.4g}"
    return str(value)


def _protocols(run: Run) -> Section:
    records = run.record["protocols"]
    header = [name for name in records[0] if name != "headline"]
    rows = [{"cells": [_cell(record[name]) for name in header], "lost": False} for record in records]
    return Section("What each protocol does", [name.replace("_", " ") for name in header], rows, folded=True)


def _footer(run: Run) -> list[str]:
    record, model = run.record, run.record["backbone"]
    return [
        f"Probe {record['probe']['sha256']}; model_fingerprint {model['model_fingerprint']}.",
        f"Weights {model['weights']} ({model['weights_sha256']}).",
        f"Manifest {record['manifest']['sha256']}; settings {record['settings']}; sliding window {record['sliding']}.",
        f"Software {record['software']}.",
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
        truth = read_mask(root / row["mask"], (size[0], size[1])) if row["mask"] else np.zeros(size, bool)
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


def _logit(score: float) -> float:
    return float(np.log(score) - np.log1p(-score))
