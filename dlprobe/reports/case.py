"""One self-contained HTML file of one localized image: what was measured, by what, and what it does not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dlprobe import __version__
from dlprobe.data.images import read_image
from dlprobe.errors import DataError, OutputError, ProbeError
from dlprobe.localization.outputs.pictures import HATCHED_FROM, centred
from dlprobe.plotting import SCORE_MAP
from dlprobe.probes import Probe
from dlprobe.probes.probe import FILES
from dlprobe.reports.page import Section, jpeg_uri, png_uri, require_html, shrunk, write_page
from dlprobe.spec import sha256_of_file

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray

REPORT_NAME = "report.html"
RESULT_NAME = "result.json"
SIDE_PX = 900
#: Disagreement that is drawn at the upper end of the colours: scores in [0, 1] cannot spread further.
MOST_DISAGREEMENT = 0.5

STATEMENT = (
    "This is a measurement and not by itself evidence of manipulation. It says that some pixels resemble, for one "
    "probe, those that it was shown as generated. A conclusion needs other findings, made by whoever can judge them."
)
LIMITS = (
    "A probe knows the generators, auto-encoders, masks and photographs that it was fitted on, and no others.",
    "Its error elsewhere is unknown unless it was evaluated there.",
    "An unmarked image is not thereby authentic: weak traces vanish under compression, resizing and re-encoding.",
    "Smooth, enlarged, retouched or heavily compressed parts of authentic photographs can be marked.",
    "An image that was generated or re-encoded as a whole can be marked anywhere, or nowhere.",
    "The border of the mask is uncertain by about a patch; small regions can be missed.",
    "The score is no probability that the image was manipulated.",
)


def write_case_report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    probe: str | os.PathLike[str] | None = None,
) -> Path:
    """Write one HTML file that needs nothing else about one image that was localized.

    Parameters
    ----------
    folder : path
        With the ``result.json`` that `dlprobe.localization.localize` wrote.
    out : path, optional
        File to write; ``report.html`` in the folder by default.
    probe : path, optional
        The probe's file, whose card says what it was trained on.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If the folder holds no result, or the file cannot be written.
    ProbeError
        If `probe` is not the one that made the result.
    """
    place = Path(folder)
    record = _read(place)
    target = require_html(out if out is not None else place / REPORT_NAME)
    card = None if probe is None else _card(Path(probe), record)
    return write_page(
        target,
        "case.html",
        title=f"dlprobe: {Path(record['image']['path']).name}",
        statement=STATEMENT,
        verdict=record.get("verdict", {}),
        shots=list(_shots(place, record)),
        sections=list(_sections(record, card)),
        limits=LIMITS,
        footer=[f"Written by dlprobe {__version__}."],
    )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / RESULT_NAME
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{folder} holds no readable {RESULT_NAME}; make one with `dlprobe localize`"
        raise OutputError(msg) from error
    if missing := {"image", "image_score", "area", "threshold", "probe_sha256"} - set(record):
        msg = f"{path} lacks {', '.join(sorted(missing))}; localize the image again with this release"
        raise OutputError(msg)
    return record


def _card(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    probe = Probe.load(path)
    if probe.sha256 != record["probe_sha256"]:
        msg = f"{path} is not the probe that made this result (sha256 {record['probe_sha256'][:16]}...); give that one"
        raise ProbeError(msg)
    return probe.card


def _shots(folder: Path, record: dict[str, Any]) -> Iterator[dict[str, str]]:
    original = _original(Path(record["image"]["path"]), record["image"]["sha256"])
    if original is None:
        yield {"label": "The image is no longer where it was, or has changed since; its hash stands below.", "uri": ""}
    else:
        yield {"label": "Image", "uri": jpeg_uri(shrunk(original, SIDE_PX))}
    if (picture := _picture(folder / "overlay.png")) is not None:
        label = (
            f"Overlay: tinted by the score, the mask outlined; hatched where windows disagree by {HATCHED_FROM:g} or "
            "more, dotted where one window alone looked"
        )
        yield {"label": label, "uri": jpeg_uri(shrunk(picture, SIDE_PX))}
    if (score := _scores(folder / "score.npy")) is not None:
        label = (
            f"Score map on the scale of logits: mid-green is the threshold {record['threshold']:.6g}, brighter is above"
        )
        colours = _coloured(centred(score, record["threshold"]))
        yield {"label": label, "uri": png_uri(shrunk(colours, SIDE_PX))}
    if (spread := _levels(folder / "disagreement.png")) is not None:
        label = f"How far overlapping windows disagree: dark is agreement, bright {MOST_DISAGREEMENT:g} and more"
        yield {"label": label, "uri": png_uri(shrunk(_coloured(spread / MOST_DISAGREEMENT), SIDE_PX))}


def _original(path: Path, sha256: str) -> NDArray[np.uint8] | None:
    try:
        return read_image(path) if sha256_of_file(path) == sha256 else None
    except (DataError, OSError):
        return None


def _picture(path: Path) -> NDArray[np.uint8] | None:
    try:
        return read_image(path)
    except DataError:
        return None


def _levels(path: Path) -> NDArray[np.float32] | None:
    """Return a map that was written with 16 bits, in [0, 1]."""
    try:
        with Image.open(path) as image:
            return np.asarray(np.asarray(image, np.float64) / 65535, np.float32)
    except OSError:
        return None


def _scores(path: Path) -> NDArray[np.float32] | None:
    """Return a map as it was scored: 16 bits do not tell scores near 1 apart."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False), np.float32)
    except (OSError, ValueError):
        return None


def _coloured(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    from matplotlib import colormaps

    return np.asarray(colormaps[SCORE_MAP](np.clip(values, 0, 1), bytes=True)[..., :3])


def _sections(record: dict[str, Any], card: dict[str, Any] | None) -> Iterator[Section]:
    image, working = record["image"], record.get("working_size", {})
    yield _facts(
        "What was measured",
        {
            "image score": f"{record['image_score']:.4f} ({record.get('image_score_is', '')})",
            "marked share": f"{record['area']:.2%} of the map at working size",
            **({"has the probe seen it": record["seen"]["says"]} if "seen" in record else {}),
            "threshold": f"{record['threshold']:.6g} ({record.get('threshold_policy') or 'no policy known'})",
            "size": f"{image['width']} x {image['height']} px, looked at as "
            f"{working.get('width', '?')} x {working.get('height', '?')} px",
            **{_CONFIDENCE.get(name, name): value for name, value in record.get("confidence", {}).items()},
        },
    )
    if regions := record.get("regions"):
        header = list(regions[0])
        rows = [{"cells": [_text(region[name]) for name in header], "lost": False} for region in regions]
        number = record.get("n_regions", len(regions))
        text = ["1 connected region." if number == 1 else f"{number} connected regions, the largest first."]
        text.append("Boxes and areas are in pixels of the image; y and x are the upper left corner's.")
        yield Section("Marked regions", [name.replace("_", " ") for name in header], rows, text)
    yield _training(card)
    yield _facts(
        "Where these numbers come from",
        {
            "file": image["path"],
            "sha256 of the file": image["sha256"],
            "sha256 of the probe": record["probe_sha256"],
            **{name: record[name] for name in _ORIGIN if name in record},
        },
    )


#: Endings of what a card lists and a page only counts.
_COUNTED = {"_sources": "photographs", FILES: "files"}
#: What `localize` records of how sure a map is, in words.
_CONFIDENCE = {
    "disagreement_mean": "confidence: how far windows disagree (standard deviation of their scores), mean over pixels",
    "disagreement_p99": "confidence: how far windows disagree, not exceeded on 99 % of pixels",
    "n_windows_min": "confidence: fewest windows that saw a pixel",
    "n_windows_max": "confidence: most windows that saw a pixel",
    "one_window_share": "confidence: share of pixels that one window alone saw, where none can disagree",
}
_ORIGIN = (
    "backbone",
    "weights",
    "weights_sha256",
    "model_fingerprint",
    "sliding",
    "postprocessing",
    "software",
)


def _training(card: dict[str, Any] | None) -> Section:
    title = "What the probe was trained on"
    if card is None:
        return Section(
            title, text=["Not given: write this report with the probe's file (--probe) to have its card here."]
        )
    facts: dict[str, object] = {
        "labelling scheme": card["scheme"],
        "objective": card["objective"],
        "scores at selection": card["metrics"],
    }
    for name, value in card["data"].items():
        counted = next((what for end, what in _COUNTED.items() if name.endswith(end)), None)
        facts[name.replace("_", " ")] = f"{len(value)} {counted}" if counted and isinstance(value, list) else value
    for number, note in enumerate(card["notes"], 1):
        facts[f"note {number}"] = note
    return _facts(title, facts)


def _facts(title: str, facts: dict[str, object]) -> Section:
    rows = [{"cells": [name, _text(value)], "lost": False} for name, value in facts.items()]
    return Section(title, ["", ""], rows)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
