"""How every report becomes one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dlprobe.errors import OutputError
from dlprobe.publish import publish
from dlprobe.studies.displays import column_words, grid_words, method_words, metric_words
from dlprobe.studies.results import with_interval

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

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
    "On fakes, IoU (intersection over union of marked and generated), F1 and average precision are best at 1.",
    "On authentic images, the falsely marked share is best at 0.",
    "Marking everything marks the whole image, whatever it shows: what a probe has to beat.",
)
#: What the columns of a fit's scores are named after.
SCHEMES = (
    "Labelling schemes say what auto-encoded parts are to a probe in training: pristine (autoencoded-pristine), fake "
    "(autoencoded-fake), left out (autoencoded-ignored), or a class of their own (three-class). All are tested on one "
    "truth: inpainted against the rest."
)
#: Columns whose values are names that have words, and these words.
_VALUES: Mapping[str, Callable[[str], str]] = {
    "metric": metric_words,
    "grid": grid_words,
    "comparison": method_words,
    "method": method_words,
}
_BRACKETS = re.compile(r"\[[^\]]*\]")
_WORD_ENDS = re.compile(r"(?<=[a-zA-Z][_:/])(?=\w)")


def table_section(
    title: str,
    table: pd.DataFrame,
    *,
    text: Sequence[str] = (),
    figure: str = "",
    folded: bool = False,
    lost: Callable[[dict[str, Any]], bool] | None = None,
) -> Section:
    """Return a table in words, each value and its interval in one cell; `lost` tells which rows are tinted."""
    merged, bracketed = _merged(_without_lone_protocol(table))
    rows = [
        {"cells": [told(value, name) for name, value in cells.items()], "lost": lost is not None and lost(whole)}
        for cells, whole in zip(merged.to_dict("records"), table.to_dict("records"), strict=True)
    ]
    lines = [*text] if rows else [*text, "Nothing to show."]
    header = [column_words(str(name)) + (" [interval]" if name in bracketed else "") for name in merged.columns]
    return Section(title, header, rows, lines, figure, folded)


def _without_lone_protocol(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose scores do not name their protocol where all have the same."""
    if "metric" not in table or table["metric"].str.rsplit(".", n=2).str[0].nunique() != 1:
        return table
    return table.assign(metric=table["metric"].str.replace(r"^.+\.(\w+)\.(\w+)", r"\2@\1", regex=True))


def _merged(table: pd.DataFrame) -> tuple[pd.DataFrame, set[str]]:
    """Return a table whose columns of interval ends are put beside their value in brackets, and which have them."""
    found, pairs = table.copy(), _pairs([str(column) for column in table.columns])
    for name, low, high in pairs:
        ends = (table[name], table[low], table[high])
        signed = name in {"difference", "gain", "change"}
        found[name] = [with_interval(*numbers, signed=signed) for numbers in zip(*ends, strict=True)]
        found = found.drop(columns=[low, high])
    return found, {name for name, low, _ in pairs if table[low].notna().any()}


def _pairs(columns: list[str]) -> list[tuple[str, str, str]]:
    """Return which columns are the ends of which one's interval.

    ``NAME_low`` and ``NAME_high`` belong to ``NAME``; bare ``low`` and ``high`` to ``value``, and in a table that has
    none to ``difference``.
    """
    found = [(name, f"{name}_low", f"{name}_high") for name in columns if f"{name}_low" in columns]
    if "low" in columns and (owner := next((name for name in ("value", "difference") if name in columns), None)):
        found.append((owner, "low", "high"))
    return found


def told(value: object, column: object = "") -> str:
    """Return a cell as people read it: numbers short, and in words what has words in its column."""
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, float):
        if isnan(value):
            return ""
        if column in {"p", "p_holm"}:
            return "<0.0001" if value < 1e-4 else f"{value:.4f}"
        return f"{value:.3f}" if column == "everything" else f"{value:.4g}"
    words = _VALUES.get(str(column))
    return words(str(value)) if words else str(value)


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
    environment.filters["unbroken"] = _unbroken
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


def _unbroken(cell: object) -> Markup:
    """Return a cell whose interval no line break parts, and whose long names may be parted where a word ends."""
    from markupsafe import Markup, escape

    text = _BRACKETS.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), str(cell))
    return Markup("<wbr>").join(escape(part) for part in _WORD_ENDS.split(text))


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
