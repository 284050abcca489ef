"""One self-contained HTML file of a run: tables, a figure, pictures, and where every number comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dlprobe.metrics.intervals.studentized import MIN_SOURCES
from dlprobe.plotting import png
from dlprobe.reports.fits.examples import worst_and_best
from dlprobe.reports.fits.sections import calibration_section, pooled_sections, require_folder, separability_sections
from dlprobe.reports.page import (
    GLOSSARY,
    SCHEMES,
    Section,
    png_uri,
    require_html,
    shrunk,
    table_section,
    write_page,
    written_out,
)
from dlprobe.reports.slider import slider
from dlprobe.studies import read_run
from dlprobe.studies.designs.pairing import on_same_scores
from dlprobe.studies.designs.telling import UNADJUSTED, VARIANTS, ahead, known_metric
from dlprobe.studies.displays import MARKING_EVERYTHING, grid_words, plot_comparisons, plot_results
from dlprobe.studies.fitting.scoring import EVERYTHING
from dlprobe.studies.results import (
    AUTHENTIC_VARIANTS,
    FAKE_VARIANTS,
    by_scheme,
    grid_of,
    lost_to_everything,
    methods_of,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from dlprobe.studies import Run

REPORT_NAME = "report.html"
_PICTURE_PX = 360


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One localized image for the gallery: RGB image with the truth drawn, score map in [0, 1], overlay, caption."""

    image: NDArray[np.uint8]
    score: NDArray[np.float32]
    overlay: NDArray[np.uint8]
    caption: str


def write_report(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    title: str = "dlprobe: linear probes compared",
    lead: Sequence[str] = (),
    more_runs: Sequence[tuple[str, str | os.PathLike[str]]] = (),
    pictures: Sequence[Picture] = (),
    separability: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
) -> Path:
    """Write one HTML file that needs nothing else.

    Parameters
    ----------
    run : path
        Folder that `dlprobe.studies.fit_caches` wrote.
    out : path, optional
        File to write; ``report.html`` in the run's folder by default.
    title : str
        Heading.
    lead : sequence of str
        Paragraphs below the heading.
    more_runs : sequence of (str, path)
        Further runs whose comparisons are shown, each under its own title.
    pictures : sequence of Picture
        Gallery.
    separability : path, optional
        Folder that `dlprobe.separability.separate` wrote, whose table and maps are shown.
    images : path, optional
        Folder that the paths of the manifest start from, for photographs behind the score maps.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If a folder is no run, `out` is a folder, or `separability` or `images` is not there.
    """
    main = read_run(run)
    target = require_html(out if out is not None else main.path / REPORT_NAME)
    others = [(name, read_run(path)) for name, path in more_runs]
    sections = [
        *_sections(main),
        *(_comparisons(other, name, other.record["notes"]) for name, other in others),
        *separability_sections(separability),
    ]
    examples = worst_and_best(main, None if images is None else require_folder(images))
    return write_page(
        target,
        "report.html",
        title=title,
        lead=[*lead, _tested(main)],
        answer=_answer(main),
        notes=main.record["notes"],
        lost=_lost(main),
        sections=sections,
        pictures=[_embedded(picture) for picture in pictures],
        exhibits=examples.exhibits,
        exhibit_notes=examples.notes,
        threshold=slider(0.5),
        footer=[line for one in (main, *(other for _, other in others)) for line in _provenance(one)],
    )


def _tested(run: Run) -> str:
    """Return what the scores rest on, and what the kinds of image in the answer are."""
    images = run.tables["images"]
    number = len(images.drop_duplicates(["dataset", "path"]))
    sources = images["source_id"].nunique()
    told = ", ".join(f"{name} = {VARIANTS[name]}" for name in VARIANTS if (images["variant"] == name).any())
    models = " and ".join(dict.fromkeys(images["model"]))
    return f"Probes on {models}, tested on {number} images of {sources} photographs. Kinds of image: {told}."


def _answer(run: Run) -> list[str]:
    """Return in a sentence for each model and kind of fake whether its Dice probe beats marking everything."""
    table = run.tables["comparisons"]
    table = table[(table["comparison"] == f"dice - {EVERYTHING}") & table["kind"].isin(FAKE_VARIANTS)]
    table = table[table["metric"].map(known_metric) == "iou"]
    several = table["model"].nunique() > 1
    ours = [f"the Dice probe on {model}" if several else "the Dice probe" for model in table["model"]]
    said = table.assign(comparison=[f"{name} - {MARKING_EVERYTHING}" for name in ours])
    lines = [ahead(row) for _, row in said.iterrows()]
    return [*lines, UNADJUSTED] if lines else []


def _sections(run: Run) -> list[Section]:
    results, grid = run.tables["results"], grid_of(run.tables["images"])
    main, *others = methods_of(results)
    text = [
        (
            f"Of the method {main}, a column for each labelling scheme: IoU of what is INPAINTED on fakes (higher is "
            "better), falsely marked share on authentic images (lower is better)."
        ),
        f"Taken {grid_words(grid)}, at the score 0.5, and where a row says so at the threshold chosen on validation.",
        "Means over photographs with their 95 % studentized bootstrap intervals; what marking everything gets beside.",
        SCHEMES,
        *_without_intervals(results),
        *([same] if (same := on_same_scores([results])) else []),
        *GLOSSARY,
    ]
    figure = png_uri(png(plot_results(results)))
    found = [table_section("Scores by kind of image", by_scheme(results, [main]), text=text, figure=figure)]
    if others:
        found.append(table_section(f"Scores of {', '.join(others)}", by_scheme(results, others), folded=True))
    calibration = calibration_section(run.tables["calibration"], grid)
    pooled = pooled_sections(run.tables["pooled"])
    return [*found, _comparisons(run, "Paired comparisons"), *calibration, *pooled, _other_metrics(results)]


def _lost(run: Run) -> list[Section]:
    """Return the kinds of fake that the note on marking everything counts, folded."""
    table = lost_to_everything(run.tables["comparisons"])
    if table.empty:
        return []
    columns = ["kind", *(["model"] if table["model"].nunique() > 1 else []), "difference", "low", "high", "n_sources"]
    title = f"The {len(table)} kinds of fake on which marking everything is not surely beaten"
    text = ["IoU of the probe minus that of marking everything, photograph by photograph, with unadjusted intervals."]
    return [table_section(title, table[columns], text=text, folded=True)]


def _without_intervals(results: pd.DataFrame) -> list[str]:
    """Return why no value has an interval, where none has."""
    most = int(results["n_sources"].max())
    return [f"No intervals: {most} photographs, {MIN_SOURCES} needed."] if most < MIN_SOURCES else []


def _comparisons(run: Run, title: str, notes: Sequence[str] = ()) -> Section:
    table = run.tables["comparisons"]
    apart = ["model"] if len(table) and table["model"].nunique() > 1 else []
    columns = ["kind", "comparison", *apart, "metric", "difference", "low", "high", "p", "p_holm", "n_sources"]
    text = [
        "Differences photograph by photograph, with 95 % intervals and sign-flip p.",
        "p after Holm is corrected for the number of differences in this table; intervals are each row's own.",
        "Tinted: kinds in which the interval does not show that the probe beats marking everything.",
        *notes,
    ]
    figure = png_uri(png(plot_comparisons(table))) if len(table) else ""
    shown = table[columns] if len(table) else table
    return table_section(title, shown, text=text, figure=figure, lost=_is_lost)


def _is_lost(row: dict[str, Any]) -> bool:
    return row["comparison"].endswith(f" - {EVERYTHING}") and not row["low"] > 0


def _other_metrics(results: pd.DataFrame) -> Section:
    apart = ["model"] if results["model"].nunique() > 1 else []
    columns = ["kind", *apart, "method", "scheme", "metric", "value", "low", "high", "everything"]
    rows = results[results["kind"].isin([*FAKE_VARIANTS, *AUTHENTIC_VARIANTS]) & (results["method"] != EVERYTHING)]
    text = ["'Against what the scheme taught': scored on the scheme's own target instead of on what is inpainted."]
    table = rows[[*columns, "n_sources", "n_images", "setting"]]
    return table_section("All scores by kind of image", table, text=text, folded=True)


def _provenance(run: Run) -> list[str]:
    record = run.record
    lines = [
        f"Run {run.path.name}.",
        f"Settings: {written_out(record['settings'])}.",
        f"Software: {written_out(record['software'])}.",
    ]
    for name, model in record["models"].items():
        caches = ", ".join(cache["cache_fingerprint"] for cache in model["caches"])
        lines.append(
            f"{name}: model_fingerprint {model['model_fingerprint']}; cache_fingerprint {caches}; "
            f"{model['windows']} windows; {model['split']}."
        )
    return lines


def _embedded(picture: Picture) -> dict[str, str]:
    score = np.rint(np.clip(picture.score, 0, 1) * 255).astype(np.uint8)
    return {
        "image": png_uri(shrunk(picture.image, _PICTURE_PX)),
        "score": png_uri(shrunk(score, _PICTURE_PX)),
        "overlay": png_uri(shrunk(picture.overlay, _PICTURE_PX)),
        "caption": picture.caption,
    }
