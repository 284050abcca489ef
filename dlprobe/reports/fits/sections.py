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
from dlprobe.separability.results import RECORD_NAME, STATISTICS, TABLE_NAME
from dlprobe.studies.fitting.scoring.tallies import DECISIONS
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
    "At the score 0.5, and where the column says so at the threshold chosen on validation.",
    "AUC, average precision and the best F1 are means over folds and seeds: logits of different probes do not compare.",
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
    figure = png_uri(png(axes[0]))
    yield table_section("Calibration", pd.DataFrame(rows), text=_in_units(_CALIBRATION, grid), figure=figure)


def pooled_sections(pooled: pd.DataFrame) -> Iterator[Section]:
    """Yield the scores of all patches, or pixels, of a variant together, in two tables that fit a screen.

    Bounds are left to the file.
    """
    grid = grid_of(pooled)
    known = ["variant", *(["model"] if pooled["model"].nunique() > 1 else []), "method", "scheme", "n", "share"]
    bounds = [name for name in pooled.columns if name.endswith(("_low", "_high"))]
    scores = [name for name in pooled.columns if name not in {*known, *bounds, "model", "grid"}]
    decided = [name for name in scores if name.removesuffix("_val") in DECISIONS]
    [title] = _in_units(["All {units} of a variant together"], grid)
    text = _in_units(_POOLED, grid)
    yield table_section(f"{title}: decisions", pooled[[*known, *decided]], text=text, folded=True)
    others = pooled[[*known, *(name for name in scores if name not in decided)]]
    yield table_section(f"{title}: rankings and probabilities", others, text=text, folded=True)


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
    picture = place / "lda_accuracy.png"
    figure = png_uri(picture.read_bytes()) if picture.is_file() else ""
    yield table_section("Separability", _in_words(pd.read_csv(place / TABLE_NAME)), text=text, figure=figure)
    differences = _in_words(pd.read_csv(place / "differences.csv"))
    if len(differences):
        paired = ["The second features minus the first, on the same windows; intervals are over sources, unadjusted."]
        yield table_section("Separability: paired differences", differences, text=paired)
    for path in sorted([*place.glob("pca-*.png"), *place.glob("umap-*.png")]):
        method, number, by = path.stem.split("-", 2)
        title = f"{method.upper()} map {number} of a sample of patches, {_MAPPED.get(by, by)}"
        yield Section(title, figure=png_uri(path.read_bytes()))


def _in_words(statistics: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose statistics are named as their pictures name them."""
    words = {name: meaning.words for name, meaning in STATISTICS.items()}
    return statistics.assign(statistic=statistics["statistic"].replace(words))


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
