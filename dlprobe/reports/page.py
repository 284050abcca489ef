"""How every report becomes one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dlprobe.errors import OutputError
from dlprobe.publish import publish
from dlprobe.studies.results import with_interval

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    import pandas as pd
    from markupsafe import Markup
    from numpy.typing import NDArray

_JPEG_QUALITY_PCT = 88


@dataclass(frozen=True, slots=True)
class Section:
    """A titled table, with a figure or not, folded away or not; `lost` rows are tinted."""

    title: str
    header: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    figure: str = ""
    folded: bool = False


#: What the names of images and scores in tables stand for; pages of fits and evaluations begin their scores with it.
GLOSSARY = (
    "Kinds of image: real is a photograph as it was; ae went through an auto-encoder; in aesp only a region did.",
    "In sp (spliced) only a region was generated; in fr (fully regenerated) a region, and the rest auto-encoded.",
    "What follows a kind is the generator, the kind of mask, or the share of the image that the mask covers.",
    "On fakes, iou (intersection over union of marked and generated), f1 and ap (average precision) are best at 1.",
    "On authentic images, false_area is the share that is marked, best at 0.",
)


def table_section(
    title: str,
    table: pd.DataFrame,
    *,
    text: list[str] | None = None,
    folded: bool = False,
    lost: Callable[[dict[str, Any]], bool] | None = None,
) -> Section:
    """Return a table with each value and its interval in one cell; `lost` tells which rows are tinted."""
    merged = _merged(table)
    rows = [
        {"cells": [told(value) for value in cells.values()], "lost": lost is not None and lost(whole)}
        for cells, whole in zip(merged.to_dict("records"), table.to_dict("records"), strict=True)
    ]
    lines = list(text or []) if rows else [*(text or []), "Nothing to show."]
    return Section(title, [str(name).replace("_", " ") for name in merged.columns], rows, lines, folded=folded)


def _merged(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose columns of interval ends are put beside their value in brackets."""
    found = table.copy()
    for name, low, high in _pairs([str(column) for column in table.columns]):
        ends = (table[name], table[low], table[high])
        signed = name in {"difference", "gain", "change"}
        found[name] = [with_interval(*numbers, signed=signed) for numbers in zip(*ends, strict=True)]
        found = found.drop(columns=[low, high])
    return found


def _pairs(columns: list[str]) -> list[tuple[str, str, str]]:
    """Return which columns are the ends of which one's interval.

    ``NAME_low`` and ``NAME_high`` belong to ``NAME``; bare ``low`` and ``high`` to ``value``, and in a table that has
    none to ``difference``.
    """
    found = [(name, f"{name}_low", f"{name}_high") for name in columns if f"{name}_low" in columns]
    if "low" in columns and (owner := next((name for name in ("value", "difference") if name in columns), None)):
        found.append((owner, "low", "high"))
    return found


def told(value: object) -> str:
    """Return a cell as people read it."""
    if isinstance(value, float):
        return "" if isnan(value) else f"{value:.4g}"
    return str(value)


def written_out(record: Mapping[str, Any]) -> str:
    """Return a record in words, as footers have it."""
    return ", ".join(f"{str(name).replace('_', ' ')} {_plainly(value)}" for name, value in record.items())


def _plainly(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " / ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return f"({written_out(value)})"
    return "none" if value is None or value == "" else str(value)


def require_html(out: str | os.PathLike[str]) -> Path:
    """Return the path of a report to be.

    Raises
    ------
    OutputError
        If it is a folder, lies in a file, or does not end in ``.html``: a slip shall not replace an image.
    """
    target = Path(out)
    if target.suffix.lower() not in {".html", ".htm"}:
        msg = f"no report can be written to {target}; name a file that ends in .html"
        raise OutputError(msg)
    if target.is_dir() or (target.parent.exists() and not target.parent.is_dir()):
        msg = f"{target} is a folder, or lies in a file; name an HTML file"
        raise OutputError(msg)
    return target


def write_page(target: Path, template: str, **content: Any) -> Path:
    """Write a report from a template of this package, whole or not at all; all that is put in is escaped.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("dlprobe.reports"), autoescape=select_autoescape(["html"]))
    environment.filters["spans"] = _spans
    html = environment.get_template(template).render(**content)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with publish(target) as scratch:
            scratch.write_text(html, encoding="utf-8")
    except OSError as error:
        msg = f"no report can be written to {target} ({error.strerror}); give a file in a folder that can be written"
        raise OutputError(msg) from error
    return target


def _spans(text: str) -> Markup:
    """Return text as HTML, what stands between backticks as code."""
    from markupsafe import Markup, escape

    parts = str(text).split("`")
    if len(parts) % 2 == 0:  # a backtick without its fellow is itself
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part) for number, part in enumerate(parts)
    )


def png_uri(pixels: NDArray[np.uint8] | bytes) -> str:
    """Return pixels, or the bytes of a PNG, as a data URI; the levels stay as they are."""
    if isinstance(pixels, bytes):
        return f"data:image/png;base64,{base64.b64encode(pixels).decode()}"
    return png_uri(_encoded(pixels, "PNG"))


def jpeg_uri(pixels: NDArray[np.uint8]) -> str:
    """Return a photograph as a data URI, an eighth of the size of a PNG."""
    encoded = _encoded(pixels, "JPEG", quality=_JPEG_QUALITY_PCT)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"


def shrunk(pixels: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """Return pixels whose longer side is at most `side_px`, each the mean of those that it stands for."""
    import cv2

    height, width = pixels.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _encoded(pixels: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
