"""Run a study, keep what it found, read it again."""

from __future__ import annotations

import difflib
import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dlprobe.cache import open_cache
from dlprobe.errors import DataError, OutputError
from dlprobe.finetune import FinetuneSettings
from dlprobe.plotting import png
from dlprobe.publish import publish
from dlprobe.studies.designs.base import STUDIES
from dlprobe.studies.designs.definition import Extraction, Question, read_study
from dlprobe.studies.designs.pairing import on_same_scores
from dlprobe.studies.designs.telling import VARIANTS, banner, is_random, known_metric, lead, shown_name
from dlprobe.studies.designs.workshop import Workshop
from dlprobe.studies.fitting.settings import FitSettings
from dlprobe.studies.runs import markdown, read_run, software

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes

    from dlprobe.studies.designs.base import Findings, StudyKind
    from dlprobe.studies.designs.definition import Study

STUDY_NAME = "study.json"
DEFINITION_NAME = "study.toml"
FINDINGS_FOLDER = "findings"
SCHEMA = {"kind": "dlprobe-study", "version": 5}


@dataclass(frozen=True, slots=True, eq=False)
class StudyResult:
    """A study and what it found.

    Attributes
    ----------
    path : Path
        The study's folder.
    record : dict
        Definition, answer, cells and versions.
    tables : dict of str to DataFrame
        The first is the one to read.
    """

    path: Path
    record: dict[str, Any]
    tables: dict[str, pd.DataFrame]

    @property
    def answer(self) -> list[str]:
        """The question answered in sentences; the first is a warning where backbones had random weights."""
        return list(self.record["answer"])

    @property
    def notes(self) -> list[str]:
        """What must be known to read the answer and the tables."""
        return list(self.record["notes"])

    def head(self) -> dict[str, Any]:
        """Return what stands above the tables: title, question, what was looked at, answer and notes."""
        study = self.record["study"]
        told = {name: self.record[name] for name in ("lead", "answer", "notes")}
        return {"title": study["title"], "question": study["question"], **told}

    def frame(self) -> pd.DataFrame:
        """Return the table to read."""
        return next(iter(self.tables.values()))

    def short(self) -> pd.DataFrame:
        """Return of that table the whole variants and the scores at one half, where it tells kinds and metrics."""
        table = self.frame()
        if {"kind", "metric"} <= set(table.columns):
            main = table["metric"].map(known_metric).isin(["iou", "false_area"])
            table = table[main & table["kind"].str.partition(",")[0].isin(list(VARIANTS))]
        return table

    @property
    def legend(self) -> str:
        """What marks, lines and bands of the figures are."""
        legend = STUDIES[self.record["study"]["kind"]].legend
        return f"{legend} {on_same_scores(self.tables.values())}".rstrip()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw it, on new axes where none are given."""
        return STUDIES[self.record["study"]["kind"]].plot(self.tables, ax)

    def plot_details(self) -> Axes | None:
        """Draw what the first figure leaves out; None where that is nothing."""
        draw = STUDIES[self.record["study"]["kind"]].details
        return None if draw is None else draw(self.tables)


def run_study(
    study: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    say: Callable[[str], None] = lambda _: None,
    bar: Callable[[str, str], AbstractContextManager[Callable[[int, int], None] | None]] = lambda *_: nullcontext(),
) -> StudyResult:
    """Run a study; cells that an earlier run finished under the same key are used again.

    Parameters
    ----------
    study : path or str
        A TOML file, or the name of one that is ready (`ready_studies`).
    out : path
        Folder of the study: absent, empty, or one of an earlier run.
    say : callable
        Told in a line what is being done.
    bar : callable
        ``(label, unit)`` to a context manager that yields what is told the steps done and in all, or None; called for
        each extraction, fit and evaluation.

    Returns
    -------
    StudyResult

    Raises
    ------
    DataError
        If the TOML file or the data are not what they must be, or the file has a section that its kind has no use for.
    OutputError
        If `out` exists and is no study.
    RegistryError
        If no kind of study has that name.
    """
    file = find_study(study)
    definition, base = read_study(file)
    kind = STUDIES[definition.kind]
    _require_used(definition, kind, file)
    folder = _prepared(Path(out))
    workshop = Workshop(definition, base, folder, say, bar)
    found = kind.run(workshop)
    record = {
        "schema": SCHEMA,
        "study": asdict(definition),
        **_told(workshop, found),
        "tables": list(found.tables),
        "cells": [str(cell.resolve().relative_to(folder)) for cell in found.cells],
        "software": software(),
    }
    with publish(folder / FINDINGS_FOLDER) as scratch:
        scratch.mkdir()
        for name, table in found.tables.items():
            table.to_parquet(scratch / f"{name}.parquet", index=False)
            table.to_csv(scratch / f"{name}.csv", index=False)
            (scratch / f"{name}.md").write_text(markdown(table) + "\n")
        (scratch / "figure.png").write_bytes(png(kind.plot(found.tables, None)))
        (scratch / DEFINITION_NAME).write_bytes(file.read_bytes())
        (scratch / STUDY_NAME).write_text(json.dumps(record, indent=2) + "\n")
    return StudyResult(folder, record, found.tables)


def _told(workshop: Workshop, found: Findings) -> dict[str, Any]:
    """Return what stands above the tables."""
    study, weights = workshop.study, workshop.weights()
    drawn = banner(shown_name(name, given) for name, given in weights if is_random(given))
    shown = [shown_name(name, given) for name, given in weights]
    split = found.split or next(iter(read_run(found.cells[0]).record["models"].values()))["split"].partition(";")[0]
    first = study.backbones[0]
    if first.cache:
        frames = [open_cache(workshop.base / path).manifest.frame for path in (first.cache, first.test_cache) if path]
    else:
        frames = [workshop.manifest(source).frame for source in (study.data, study.test) if source]
    of = "demo " if study.data.demo else ""
    return {
        "lead": lead(frames, of, shown, split),
        "answer": [drawn, *found.answer] if drawn else found.answer,
        "notes": found.notes,
        "banner": drawn,
    }


def _require_used(study: Study, kind: StudyKind, file: Path) -> None:
    """Refuse what the file says and its kind would not hear, before anything is computed."""
    idle = {"fit": FinetuneSettings(), "finetune": FitSettings()}[kind.trains]
    section = {"fit": "finetune", "finetune": "fit"}[kind.trains]
    blank = Question()
    options = [
        entry.name
        for entry in fields(Question)
        if entry.name not in kind.reads and getattr(study.options, entry.name) != getattr(blank, entry.name)
    ]
    complaint = ""
    if len(study.backbones) > 1 and not kind.several:
        complaint = f"[[backbones]] {len(study.backbones)} times, and looks at one; keep one, or run a study for each"
    elif study.test and not kind.tests:
        complaint = "[test], which it cannot use: it trains on images and tests by the manifest's split; leave it out"
    elif any(bool(entry.test_cache) != bool(entry.cache and study.test) for entry in study.backbones):
        complaint = (
            "only one of [test] and test_cache; where [[backbones]] has a cache, name that of the tested data set as "
            "test_cache, and its manifest in [test]"
        )
    elif getattr(study, section) != idle:
        complaint = f"[{section}], which it does not read; it trains as [{kind.trains}] says"
    elif kind.trains == "finetune" and replace(study.extract, device="auto", engine="torch") != Extraction():
        complaint = "[extract], of which it reads device and engine; windows are placed by [finetune]"
    elif options:
        complaint = f"{', '.join(options)} in [options], which it does not read; it reads {', '.join(kind.reads)}"
    if complaint:
        msg = f"{file}: a study of {kind.name} has {complaint}"
        raise DataError(msg)


def read_study_result(path: str | os.PathLike[str]) -> StudyResult:
    """Read what a study found.

    Raises
    ------
    OutputError
        If the folder holds no finished study of this release.
    """
    findings = Path(path) / FINDINGS_FOLDER
    if not (findings / STUDY_NAME).is_file():
        msg = f"{path} holds no finished study; make one with `dlprobe study run`"
        raise OutputError(msg)
    record = json.loads((findings / STUDY_NAME).read_text())
    if record.get("schema") != SCHEMA:
        msg = f"{path} holds {record.get('schema')}, this release reads {SCHEMA}; run the study again"
        raise OutputError(msg)
    tables = {name: pd.read_parquet(findings / f"{name}.parquet") for name in record["tables"]}
    return StudyResult(Path(path), record, tables)


def ready_studies() -> dict[str, Path]:
    """Return the TOML files that come with dlprobe, by name."""
    folder = Path(str(resources.files("dlprobe.studies"))) / "ready"
    return {file.stem: file for file in sorted(folder.glob("*.toml"))}


def find_study(study: str | os.PathLike[str]) -> Path:
    """Return the TOML file of a study: of the ready one that has the name, else the file itself.

    Raises
    ------
    DataError
        If there is neither; the message names the ready studies that are called much like it.
    """
    ready, file = ready_studies(), Path(study)
    if str(study) in ready:
        return ready[str(study)]
    if not file.exists():
        near = difflib.get_close_matches(file.stem, ready, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"ready are {', '.join(ready)}"
        msg = f"no ready study is named {str(study)!r}, and there is no such file; {hint}"
        raise DataError(msg)
    return file


def _prepared(folder: Path) -> Path:
    """Return the folder of a study, made and without links, so that cells and findings are named from one place."""
    mark = folder / ".dlprobe-study"
    if folder.exists() and not mark.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} exists and is no study of dlprobe; give another folder (-o)"
        raise OutputError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text("made by `dlprobe study run`; remove the folder to begin anew\n")
    return folder.resolve()
