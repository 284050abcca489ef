"""Run a study, keep what it found, read it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dlprobe.errors import OutputError
from dlprobe.plotting import png
from dlprobe.publish import publish
from dlprobe.studies.designs.base import STUDIES
from dlprobe.studies.designs.definition import read_study
from dlprobe.studies.designs.workshop import Workshop
from dlprobe.studies.runs import markdown, software

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from matplotlib.axes import Axes

STUDY_NAME = "study.json"
DEFINITION_NAME = "study.toml"
FINDINGS_FOLDER = "findings"
SCHEMA = {"kind": "dlprobe-study", "version": 2}


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
        """The question answered in sentences."""
        return list(self.record["answer"])

    def frame(self) -> pd.DataFrame:
        """Return the table to read."""
        return next(iter(self.tables.values()))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw it, on new axes where none are given."""
        return STUDIES[self.record["study"]["kind"]].plot(self.tables, ax)


def run_study(
    study: str | os.PathLike[str], out: str | os.PathLike[str], *, say: Callable[[str], None] = lambda _: None
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

    Returns
    -------
    StudyResult

    Raises
    ------
    DataError
        If the TOML file or the data are not what they must be.
    OutputError
        If `out` exists and is no study.
    RegistryError
        If no kind of study has that name.
    """
    file = ready_studies().get(str(study), Path(study))
    definition, base = read_study(file)
    kind = STUDIES[definition.kind]
    folder = _prepared(Path(out))
    found = kind.run(Workshop(definition, base, folder, say))
    record = {
        "schema": SCHEMA,
        "study": asdict(definition),
        "answer": found.answer,
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


def _prepared(folder: Path) -> Path:
    """Return the folder of a study, made and without links, so that cells and findings are named from one place."""
    mark = folder / ".dlprobe-study"
    if folder.exists() and not mark.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} exists and is no study of dlprobe; give another folder (-o)"
        raise OutputError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text("made by `dlprobe study run`; remove the folder to begin anew\n")
    return folder.resolve()
