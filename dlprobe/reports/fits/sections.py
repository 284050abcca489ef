"""Parts of a fit's page beside its tables: whether scores mean what they say, and how separable the classes are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dlprobe import plotting
from dlprobe.data.labels import TRUTH_SCHEME
from dlprobe.errors import OutputError
from dlprobe.metrics import Reliability
from dlprobe.plotting import png
from dlprobe.reports.page import Section, png_uri, table_section
from dlprobe.separability.results import RECORD_NAME, TABLE_NAME
from dlprobe.studies.results import grid_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

_CALIBRATION = (
    "{Units} of the tested images in bins of their score. On the dotted line the score is the chance of INPAINTED.",
    "Intervals are over sources; a hollow mark has none.",
    "Heads under Dice are not taught probabilities: compare the curves before a score is read as one.",
    "The calibration error is the mean distance from that line, weighted by {units}.",
)
_POOLED = (
    "Every {unit} of the tested images counts once, so that large regions count more than small ones; no intervals.",
    "At the score 0.5 and (suffix _val) at the threshold chosen on validation.",
    "AUC, AP and the best F1 are means over folds and seeds: logits of different probes do not compare.",
    "The best F1 is an oracle: its threshold was chosen on the tested {units} themselves.",
    "Tempered: with logits divided by the temperature, which was chosen on validation.",
)
#: What the grids of scores consist of, in the words of a page.
_UNITS = {
    "patch": {"unit": "patch", "units": "patches", "Units": "Patches"},
    "px": {"unit": "pixel", "units": "pixels", "Units": "Pixels"},
}
_MAPPED = {"class": "by provenance class", "source": "by source"}


def calibration_section(calibration: pd.DataFrame, grid: str) -> Iterator[Section]:
    """Yield the reliability of every method under one scheme, a panel a model, and all calibration errors."""
    if calibration.empty:
        return
    scheme = TRUTH_SCHEME if (calibration["scheme"] == TRUTH_SCHEME).any() else calibration["scheme"].iloc[0]
    models = list(dict.fromkeys(calibration["model"]))
    axes = plotting.panels(len(models), side_in=4.2)
    for ax, model in zip(axes, models, strict=True):
        part = calibration[(calibration["model"] == model) & (calibration["scheme"] == scheme)]
        for series, (method, table) in enumerate(part.groupby("method", sort=False)):
            Reliability(table).plot(ax, series=series, label=str(method))
        ax.set_title(f"{model}, {scheme}", fontsize="small", loc="left", pad=40 if part["method"].nunique() > 1 else 6)
        ax.set_xlabel("mean score of the bin")
        ax.set_ylabel("share that is INPAINTED")
    rows = [
        {**dict(zip(("model", "method", "scheme"), key, strict=True)), **_error(part)}
        for key, part in calibration.groupby(["model", "method", "scheme"], sort=False)
    ]
    found = table_section("Calibration", pd.DataFrame(rows), text=_in_units(_CALIBRATION, grid))
    yield Section(found.title, found.header, found.rows, found.text, png_uri(png(axes[0])))


def pooled_section(pooled: pd.DataFrame) -> Section:
    """Return the scores of all patches, or pixels, of a variant together; bounds are left to the file."""
    grid = grid_of(pooled)
    bounds = [name for name in pooled.columns if name.endswith(("_low", "_high"))]
    first = ["model", "method", "scheme", "variant"]
    table = pooled.drop(columns=[*bounds, "grid"])
    table = table[[*first, *(name for name in table.columns if name not in first)]]
    [title] = _in_units(["All {units} of a variant together"], grid)
    return table_section(title, table, text=_in_units(_POOLED, grid), folded=True)


def _in_units(lines: Iterable[str], grid: str) -> list[str]:
    return [line.format_map(_UNITS[grid]) for line in lines]


def _error(bins: pd.DataFrame) -> dict[str, float]:
    weights = bins["n"] / bins["n"].sum()
    gaps = (bins["frequency"] - bins["probability"]).abs()
    return {"calibration_error": float((weights * gaps).sum()), "n": int(bins["n"].sum())}


def separability_sections(folder: str | os.PathLike[str] | None) -> Iterator[Section]:
    """Yield the table, one picture of it and the maps that `dlprobe separate` wrote into a folder.

    Raises
    ------
    OutputError
        If it wrote nothing there.
    """
    if folder is None:
        return
    place = Path(folder)
    if not ((place / TABLE_NAME).is_file() and (place / RECORD_NAME).is_file()):
        msg = f"{place} was not written by `dlprobe separate -o` of this version; write it again"
        raise OutputError(msg)
    text = [
        "What is separable here can be learned; intervals are over sources.",
        "The reason says why a value or an interval is missing, or what to know of one that is there.",
    ]
    record = json.loads((place / RECORD_NAME).read_text(encoding="utf-8"))
    text += [f"{cache['name']}: {cache['windows']} windows, cache {cache['path']}." for cache in record["caches"]]
    text += record["notes"]
    table = table_section("Separability", pd.read_csv(place / TABLE_NAME), text=text)
    picture = place / "lda_accuracy.png"
    figure = png_uri(picture.read_bytes()) if picture.is_file() else ""
    yield Section(table.title, table.header, table.rows, table.text, figure)
    differences = pd.read_csv(place / "differences.csv")
    if len(differences):
        paired = ["The second features minus the first, on the same windows; intervals are over sources, unadjusted."]
        yield table_section("Separability: paired differences", differences, text=paired)
    for path in sorted([*place.glob("pca-*.png"), *place.glob("umap-*.png")]):
        method, number, by = path.stem.split("-", 2)
        title = f"{method.upper()} map {number} of a sample of patches, {_MAPPED.get(by, by)}"
        yield Section(title, figure=png_uri(path.read_bytes()))


def require_folder(images: str | os.PathLike[str]) -> Path:
    """Return the folder of images.

    Raises
    ------
    OutputError
        If there is none.
    """
    place = Path(images)
    if not place.is_dir():
        msg = f"no folder {place} with images; give the one that the manifest's paths start from"
        raise OutputError(msg)
    return place
