"""The folder of a run: tables, probes, and a record of everything that determined them."""

from __future__ import annotations

import json
import os
import platform
import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dlprobe.errors import DlprobeError, OutputError
from dlprobe.publish import publish
from dlprobe.studies.displays import plot_comparisons, plot_results

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes

    from dlprobe.probes import Probe

RUN_NAME = "run.json"
SCHEMA = {"kind": "dlprobe-run", "version": 3}
TABLES = ("results", "comparisons", "images", "calibration", "pooled")
#: Folder, within that of the run to be, of what an interrupted fit goes on from.
DESK_NAME = ".dlprobe-fit"
#: Made from a run, and wrong once the run is another.
_DERIVED = ("report.html",)
_TEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
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
        ``results``, ``comparisons``, ``images``, ``calibration`` (how often what a method's score calls probable is
        INPAINTED on the tested images: see `dlprobe.metrics.Reliability`) and ``pooled`` (scores of all patches of a
        variant together: see `dlprobe.studies.fitting.scoring.Pooled`).
    """

    path: Path
    record: dict[str, Any]
    tables: dict[str, pd.DataFrame] = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """Return the table of results."""
        return self.tables["results"]

    def plot(self, ax: Axes | None = None, scheme: str | None = None) -> Axes:
        """Draw the IoU by kind and method; see `dlprobe.studies.displays.plot_results`."""
        return plot_results(self.frame(), ax, scheme=scheme)

    def plot_comparisons(self, ax: Axes | None = None) -> Axes:
        """Draw the paired differences; see `dlprobe.studies.displays.plot_comparisons`."""
        return plot_comparisons(self.tables["comparisons"], ax)


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
    empty = target.is_dir() and not {path.name for path in target.iterdir()} - {DESK_NAME}
    if target.exists() and not empty and not (target / RUN_NAME).is_file():
        msg = f"{target} exists and is no run of dlprobe; give another output folder"
        raise OutputError(msg)
    return target


@contextmanager
def desk(target: Path, identity: str) -> Iterator[Path]:
    """Yield a folder for what an interrupted fit goes on from; of another fit nothing is left there.

    It stays if the fit is interrupted or fails by surprise, and goes if it ends or cannot be done at all.

    Parameters
    ----------
    target : Path
        As `prepare_run` returned it; it is made, and removed again if nothing else comes into it.
    identity : str
        Fingerprint of all that determines the fit.
    """
    place = target / DESK_NAME
    mine = place / identity[:16]
    if place.is_dir() and not mine.is_dir():
        shutil.rmtree(place)
    mine.mkdir(parents=True, exist_ok=True)
    try:
        yield mine
    except DlprobeError:
        _clear(place)
        raise
    _clear(place)


def _clear(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    with suppress(OSError):
        place.parent.rmdir()  # only if it is empty


def write_run(
    target: Path,
    record: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    texts: Mapping[str, str],
    probes: Mapping[str, Probe],
    *,
    files: Mapping[str, Path] | None = None,
) -> None:
    """Write a run's folder, whole or not at all; what somebody else put there stays.

    Parameters
    ----------
    target : Path
        As `prepare_run` returned it.
    record : mapping
        Settings, identities and notes, ready for JSON.
    tables : mapping of str to DataFrame
        Each is written as Parquet and CSV.
    texts : mapping of str to str
        Further files by name.
    probes : mapping of str to Probe
        By their path below ``probes``, without ending.
    files : mapping of str to Path, optional
        Further files to copy, by their path in the run's folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with publish(target) as scratch:
        scratch.mkdir()
        for name, table in tables.items():
            table.to_parquet(scratch / f"{name}.parquet", index=False)
            table.to_csv(scratch / f"{name}.csv", index=False)
        for name, text in texts.items():
            (scratch / name).write_text(text, encoding="utf-8")
        for name, probe in probes.items():
            path = scratch / "probes" / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            probe.save(path)
        for name, source in (files or {}).items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, scratch / name)
        written = sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file())
        whole = {"schema": SCHEMA, **record, "software": software(), "files": [*written, RUN_NAME]}
        (scratch / RUN_NAME).write_text(json.dumps(whole, indent=2, default=_plain) + "\n")
        if target.is_dir():
            _keep_what_is_not_ours(target, scratch)


def _keep_what_is_not_ours(old: Path, new: Path) -> None:
    """Carry over files that no fit wrote; where a new one has the name, under that name and ``.kept``."""
    try:
        ours = {*json.loads((old / RUN_NAME).read_text())["files"], *_DERIVED}
    except (OSError, ValueError, KeyError, TypeError):
        ours = set(_DERIVED)
    for folder, folders, names in os.walk(old):
        if Path(folder) == old and DESK_NAME in folders:
            folders.remove(DESK_NAME)
        place = new / Path(folder).relative_to(old)
        if not folders and not names:
            place.mkdir(parents=True, exist_ok=True)
        for name in [*names, *(name for name in folders if (Path(folder) / name).is_symlink())]:
            source = Path(folder) / name
            if source.relative_to(old).as_posix() in ours:
                continue
            place.mkdir(parents=True, exist_ok=True)
            goal = place / name
            _link(source, goal if not goal.exists() else goal.with_name(f"{name}.kept"))


def _link(source: Path, goal: Path) -> None:
    try:
        os.link(source, goal, follow_symlinks=False)
    except OSError:  # no links on this file system
        shutil.copy2(source, goal, follow_symlinks=False)


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


def texts_of(tables: Mapping[str, pd.DataFrame], below: Sequence[str]) -> dict[str, str]:
    """Return tables as files in Markdown and LaTeX, with lines below that say what determined them."""
    found = {}
    for name, table in tables.items():
        found[f"{name}.md"] = "\n".join([markdown(table), "", *(f"- {line}" for line in below), ""])
        found[f"{name}.tex"] = "\n".join([latex(table), *(f"% {line}" for line in below), ""])
    return found


def markdown(table: pd.DataFrame) -> str:
    """Return a table in Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def latex(table: pd.DataFrame) -> str:
    """Return a table in LaTeX, for the package booktabs."""
    header, *rows = [
        " & ".join(_tex(cell) for cell in line) + r" \\" for line in [list(table.columns), *table.to_numpy().tolist()]
    ]
    begin = rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}"
    return "\n".join([begin, r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"])


def _tex(cell: object) -> str:
    return "".join(_TEX.get(letter, letter) for letter in str(cell))


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    msg = f"{type(value).__name__} has no place in {RUN_NAME}"
    raise TypeError(msg)
