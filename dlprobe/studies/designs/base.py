"""What a kind of study is, what one finds, and the registry of kinds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

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
        The question answered in a few plain sentences, with intervals.
    notes : list of str
        What must be known to read them.
    cells : list of Path
        Folders of the fits and evaluations behind the tables.
    split : str
        Who trained, chose and was tested, where the first cell does not say it for all.
    """

    tables: dict[str, pd.DataFrame]
    answer: list[str]
    notes: list[str] = field(default_factory=list)
    cells: list[Path] = field(default_factory=list)
    split: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
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
    legend : str
        What marks, lines and bands of the figures are, for readers who see one for the first time.
    details : callable, optional
        ``(tables) -> Axes or None``: a second figure, of what the first leaves out.
    several : bool
        Whether it looks at every [[backbones]]; others refuse a second one.
    tests : bool
        Whether it can test on another data set; others refuse a [test].
    trains : {"fit", "finetune"}
        The section that says how it trains; the other one is refused.
    reads : tuple of str
        The [options] that it reads; others are refused.
    """

    name: str
    asks: str
    run: Callable[[Workshop], Findings]
    plot: Callable[[dict[str, pd.DataFrame], Axes | None], Axes]
    legend: str
    details: Callable[[dict[str, pd.DataFrame]], Axes | None] | None = None
    several: bool = False
    tests: bool = True
    trains: Literal["fit", "finetune"] = "fit"
    reads: tuple[str, ...] = ("method", "scheme")


#: Kinds of study by name; other packages announce theirs in the entry-point group.
STUDIES: Registry[StudyKind] = Registry("kind of study", group="dlprobe.studies")


def register(kind: StudyKind) -> StudyKind:
    """Register a kind of study under its own name and return it."""
    return STUDIES.register(kind.name)(kind)
