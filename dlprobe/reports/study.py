"""One self-contained HTML file of a study: what was asked, what was found, and from what."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dlprobe import __version__
from dlprobe.plotting import png
from dlprobe.reports.page import Section, png_uri, require_html, table_section, write_page, written_out
from dlprobe.studies.designs import read_study_result
from dlprobe.studies.designs.running import DEFINITION_NAME, FINDINGS_FOLDER

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

    from dlprobe.studies.designs import StudyResult

REPORT_NAME = "report.html"


def write_study_report(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write one HTML file that needs nothing else about a study that was run.

    Parameters
    ----------
    folder : path
        That `dlprobe.studies.designs.run_study` wrote.
    out : path, optional
        File to write; ``report.html`` in the folder by default.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If the folder holds no finished study, or the file cannot be written.
    """
    result = read_study_result(folder)
    target = require_html(out if out is not None else result.path / REPORT_NAME)
    study = result.record["study"]
    return write_page(
        target,
        "study.html",
        title=f"dlprobe: {study['title']}{' (random weights)' if result.record['banner'] else ''}",
        question=study["question"],
        lead=result.record["lead"],
        banner=result.record["banner"],
        answer=result.answer,
        notes=result.notes,
        figure=png_uri(png(result.plot())),
        legend=result.legend,
        real=study["real"],
        sections=list(_sections(result)),
        definition=(result.path / FINDINGS_FOLDER / DEFINITION_NAME).read_text(encoding="utf-8"),
        cells=result.record["cells"],
        footer=list(_footer(result)),
    )


def _sections(result: StudyResult) -> Iterator[Section]:
    """Yield the tables, folded: the answer and the figure stand above them; and the second figure with the first."""
    details = result.plot_details()
    for number, (name, table) in enumerate(result.tables.items()):
        section = table_section(f"Table: {name.replace('_', ' ')}", _value_second(table), folded=True)
        if number == 0 and details is not None:
            figure = png_uri(png(details))
            yield Section("Figure: what the first one leaves out", figure=figure, folded=True)
        yield section


def _value_second(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose second column is its number, which a narrow screen then shows."""
    number = next((name for name in ("value", "difference", "half_share") if name in table.columns), None)
    if number is None:
        return table
    first, *others = [str(name) for name in table.columns if name != number]
    return table[[first, number, *others]]


def _footer(result: StudyResult) -> Iterator[str]:
    for cell in result.record["cells"]:
        run = result.path / cell / "run.json"
        if run.is_file():
            for name, model in json.loads(run.read_text())["models"].items():
                caches = ", ".join(cache["cache_fingerprint"] for cache in model["caches"])
                of = f", cache_fingerprint {caches}" if caches else ""
                yield f"{cell}: {name}, model_fingerprint {model['model_fingerprint']}{of}."
    yield f"Study made with {written_out(result.record['software'])}; page by dlprobe {__version__}."
