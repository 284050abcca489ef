"""What a kind of study is, what one finds, and the registry of kinds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dlprobe.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

    from dlprobe.studies.designs.workshop import Workshop


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """What a study found.

    Attributes
    ----------
    tables : dict of str to DataFrame
        The first is the one to read and to draw.
    answer : list of str
        The question answered in sentences, with intervals; and what must be known to read them.
    cells : list of Path
        Folders of the fits and evaluations behind the tables.
    """

    tables: dict[str, pd.DataFrame]
    answer: list[str]
    cells: list[Path] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StudyKind:
    """A kind of study.

    Parameters
    ----------
    name : str
        Under which it is registered.
    asks : str
        The question it answers, in one line.
    run : callable
        ``(workshop) -> Findings``.
    plot : callable
        ``(tables, ax) -> Axes``: draws the first table.
    """

    name: str
    asks: str
    run: Callable[[Workshop], Findings]
    plot: Callable[[dict[str, pd.DataFrame], Axes | None], Axes]


#: Kinds of study by name; other packages announce theirs in the entry-point group.
STUDIES: Registry[StudyKind] = Registry("kind of study", group="dlprobe.studies")


def register(kind: StudyKind) -> StudyKind:
    """Register a kind of study under its own name and return it."""
    return STUDIES.register(kind.name)(kind)
