"""The folder of a run: tables, probes, and a record of everything that determined them."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dlprobe.errors import OutputError
from dlprobe.publish import publish

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dlprobe.probes import Probe

RUN_NAME = "run.json"
SCHEMA = {"kind": "dlprobe-run", "version": 1}
TABLES = ("results", "comparisons", "images")
_LIBRARIES = ("dlprobe", "numpy", "scikit-learn", "torch", "zarr")


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run's folder, read.

    Attributes
    ----------
    path : Path
        The folder.
    record : dict
        Settings, identities, notes and versions.
    tables : dict of str to DataFrame
        ``results``, ``comparisons`` and ``images``.
    """

    path: Path
    record: dict[str, Any]
    tables: dict[str, pd.DataFrame] = field(repr=False)


def prepare_run(out: str | os.PathLike[str]) -> Path:
    """Return the folder of a run to be; raise `OutputError` if something that is no run is there."""
    target = Path(out).resolve()
    above = next(parent for parent in target.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        msg = f"{target} cannot be written: {above} is {'not writable' if above.is_dir() else 'no folder'}"
        raise OutputError(msg)
    if target.is_mount():
        msg = f"{target} is a mount point, which cannot be replaced in one step; give a folder below it"
        raise OutputError(msg)
    empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not empty and not (target / RUN_NAME).is_file():
        msg = f"{target} exists and is no run of dlprobe; give another output folder"
        raise OutputError(msg)
    return target


def write_run(
    target: Path,
    record: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    probes: Mapping[str, Probe],
    overview: pd.DataFrame,
) -> None:
    """Write a run's folder, whole or not at all.

    Parameters
    ----------
    target : Path
        As `prepare_run` returned it.
    record : mapping
        Settings, identities and notes, ready for JSON.
    tables : mapping of str to DataFrame
        Each is written as Parquet and CSV.
    probes : mapping of str to Probe
        By their path below ``probes``, without ending.
    overview : DataFrame
        Written as ``results.md``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with publish(target) as scratch:
        scratch.mkdir()
        for name, table in tables.items():
            table.to_parquet(scratch / f"{name}.parquet", index=False)
            table.to_csv(scratch / f"{name}.csv", index=False)
        (scratch / "results.md").write_text(markdown(overview) + "\n")
        for name, probe in probes.items():
            path = scratch / "probes" / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            probe.save(path)
        whole = {"schema": SCHEMA, **record, "software": software()}
        (scratch / RUN_NAME).write_text(json.dumps(whole, indent=2, default=_plain) + "\n")


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run's folder.

    Raises
    ------
    OutputError
        If it is none, or was written by another release.
    """
    folder = Path(path)
    if not (folder / RUN_NAME).is_file():
        msg = f"{folder} is no run of dlprobe; make one with `dlprobe fit`"
        raise OutputError(msg)
    record = json.loads((folder / RUN_NAME).read_text())
    if record.get("schema") != SCHEMA:
        msg = f"{folder} holds {record.get('schema')}, this release reads {SCHEMA}; fit again"
        raise OutputError(msg)
    return Run(folder, record, {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES})


def software() -> dict[str, str]:
    """Return the versions that a record should name; they are no identity."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def settings_record(settings: Any) -> dict[str, Any]:
    """Return a settings dataclass as plain JSON values."""
    return dict(asdict(settings))


def markdown(table: pd.DataFrame) -> str:
    """Return a table in Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    msg = f"{type(value).__name__} has no place in {RUN_NAME}"
    raise TypeError(msg)
