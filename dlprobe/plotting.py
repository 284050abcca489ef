"""How dlprobe draws: one palette, marks that differ in black and white too, intervals, and figures as bytes.

Colours are those of Okabe and Ito (2008), which people with any of the common colour deficiencies tell apart. Nothing
here touches pyplot: a figure is an object, and is gone when nobody holds it.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray
    from pandas.core.groupby import SeriesGroupBy

#: Okabe and Ito's colours without the yellow, which is lost on white; neighbours also differ in lightness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "+++", "ooo")
#: Map of a score or a share: lightness rises evenly, so that it keeps its order in black and white.
SCORE_MAP = "viridis"
#: Of a vertical step that the series of one row share.
_ROW_SPREAD = 0.7
_DOTS_PER_INCH = 110
#: Values of a reference that differ by less are one.
_SAME = 5e-4
#: Longer sides of maps are thinned to about this.
_SHOWN_PX = 1200
#: Small letters in an inch, and the room that a legend's handle takes among them.
_CHARACTERS_PER_INCH, _HANDLE_CHARACTERS = 14, 8


class Mark(NamedTuple):
    """How one series looks; any two of the first seven differ in each of the four fields."""

    colour: str
    marker: str
    line: Any
    hatch: str


def mark(number: int) -> Mark:
    """Return how series `number` looks; after seven colours the other fields are shifted, so that 49 differ."""
    turn, at = divmod(number, len(PALETTE))
    other = (at + turn) % len(PALETTE)
    return Mark(PALETTE[at], MARKERS[other], LINES[other], HATCHES[other])


def axes(ax: Axes | None = None, *, width_in: float = 7.0, height_in: float = 4.0) -> Axes:
    """Return the axes to draw on: those given, or the only ones of a new figure.

    Parameters
    ----------
    ax : matplotlib Axes, optional
        The caller's own.
    width_in, height_in : float
        Size of a new figure, in inches.
    """
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=_DOTS_PER_INCH, layout="constrained")
    return figure.add_subplot()


def panels(
    count: int, *, columns: int = 3, side_in: float = 3.6, width_in: float | None = None, height_in: float | None = None
) -> list[Axes]:
    """Return `count` axes on one new figure, row by row.

    Parameters
    ----------
    count : int
        At least 1.
    columns : int
        Panels in a row.
    side_in : float
        Width and height of a panel, in inches.
    width_in, height_in : float, optional
        Where a panel is no square.
    """
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    size = (width_in or side_in) * columns, (height_in or side_in) * rows
    figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, layout="constrained")
    return [figure.add_subplot(rows, columns, number + 1) for number in range(count)]


def figure_of(ax: Axes) -> Figure:
    """Return the figure that axes stand on."""
    figure = ax.get_figure(root=True)
    if figure is None:
        msg = "the axes belong to no figure; draw on new ones"
        raise ValueError(msg)
    return figure


def png(ax: Axes, *, dpi: int = _DOTS_PER_INCH) -> bytes:
    """Return the whole figure of some axes as a PNG; equal figures give equal bytes."""
    return _saved(ax, format="png", dpi=dpi, metadata={"Software": None})


def svg(ax: Axes) -> bytes:
    """Return the whole figure of some axes as an SVG with text as text; equal figures give equal bytes."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dlprobe"}):
        return _saved(ax, format="svg", metadata={"Date": None, "Creator": None})


def _saved(ax: Axes, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure_of(ax).savefig(buffer, **options)
    return buffer.getvalue()


def intervals(
    ax: Axes,
    places: ArrayLike,
    values: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    series: int = 0,
    label: str | None = None,
    horizontal: bool = False,
) -> None:
    """Draw values with their intervals; a hollow mark says that a value has none.

    Parameters
    ----------
    ax : Axes
    places, values, low, high : array_like of float, shape (n,)
        Position on the other axis, value, ends of its interval. A nan value is not drawn; nan ends are no interval.
    series : int
        Which `mark` to use.
    label : str, optional
        For the legend.
    horizontal : bool
        Values run along x, places along y.
    """
    at, middle = np.asarray(places, np.float64), np.asarray(values, np.float64)
    ends = np.stack([np.asarray(low, np.float64), np.asarray(high, np.float64)])
    known = np.isfinite(middle)
    sure = known & np.isfinite(ends).all(axis=0)
    look = mark(series)
    for there, face in ((sure, look.colour), (known & ~sure, "white")):
        if there.any():
            x, y = (middle[there], at[there]) if horizontal else (at[there], middle[there])
            ax.plot(x, y, look.marker, color=look.colour, markerfacecolor=face, markersize=5, label=label, zorder=3)
            label = None
    # drawn as lines from end to end: an estimate may lie outside its interval, which error bars cannot say
    draw = ax.hlines if horizontal else ax.vlines
    draw(at[sure], ends[0, sure], ends[1, sure], color=look.colour, linewidth=1.4)


def curve(
    ax: Axes,
    x: ArrayLike,
    values: ArrayLike,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    *,
    series: int = 0,
    label: str | None = None,
    marked: bool = True,
) -> None:
    """Draw a curve with the band of its interval.

    Parameters
    ----------
    ax : Axes
    x, values : array_like of float, shape (n,)
    low, high : array_like of float, shape (n,), optional
        Ends of the interval at each x.
    series : int
        Which `mark` to use.
    label : str, optional
        For the legend.
    marked : bool
        Whether it has marks; a line that was fitted has none, because marks look like data.
    """
    look = mark(series)
    every = max(1, np.size(x) // 12)
    ax.plot(
        x,
        values,
        color=look.colour,
        linestyle=look.line,
        marker=look.marker if marked else "",
        markersize=4,
        markevery=every,
        label=label,
    )
    if low is not None and high is not None:
        ax.fill_between(x, low, high, facecolor=look.colour, edgecolor=look.colour, alpha=0.2, linewidth=0.5)


def dots(
    frame: pd.DataFrame,
    *,
    rows: str,
    series: str,
    ax: Axes | None = None,
    reference: str | None = None,
    reference_label: str = "reference",
) -> Axes:
    """Draw a dot-and-interval chart: one row a name, in it one dot a series.

    Parameters
    ----------
    frame : DataFrame
        With columns ``value``, ``low``, ``high``; one row for each pair of `rows` and `series`.
    rows, series : str
        Columns that name the rows from top to bottom and the series.
    ax : Axes, optional
        New ones otherwise, as high as the rows need.
    reference : str, optional
        Column with a value that the series stand beside; drawn as one black bar a row, or, where it differs from series
        to series, as a bar in the colour of each.
    reference_label : str
        For the legend.

    Returns
    -------
    Axes
    """
    names = list(dict.fromkeys(frame[rows].astype(str)))
    groups = list(dict.fromkeys(frame[series].astype(str)))
    lines = max((name.count("\n") + 1 for name in names), default=1)
    ax = axes(ax, width_in=8.0, height_in=1.4 + 0.08 * len(groups) + 0.17 * max(1.5, lines, len(groups)) * len(names))
    place = {name: len(names) - 1 - number for number, name in enumerate(names)}
    step = _ROW_SPREAD / len(groups) if groups else 0.0
    shared = reference is not None and _agree(frame.groupby(rows)[reference])
    for number, name in enumerate(groups):
        part = frame[frame[series].astype(str) == name]
        at = part[rows].astype(str).map(place).to_numpy(np.float64) - step * (number - (len(groups) - 1) / 2)
        intervals(ax, at, part["value"], part["low"], part["high"], series=number, label=name, horizontal=True)
        if reference is not None and not shared:
            _bars_upright(ax, part[reference], at, mark(number).colour, f"{name}: {reference_label}")
    if reference is not None and shared:
        first = frame.dropna(subset=[reference]).drop_duplicates(rows)
        _bars_upright(ax, first[reference], first[rows].astype(str).map(place), "black", reference_label)
    ax.set_yticks(list(place.values()), names)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(axis="x", alpha=0.3)
    legend(ax)
    return ax


def _agree(groups: SeriesGroupBy) -> bool:
    """Return whether all groups hold one value each."""
    return bool((groups.max() - groups.min()).fillna(0.0).lt(_SAME).all())


def _bars_upright(ax: Axes, values: ArrayLike, places: ArrayLike, colour: str, label: str) -> None:
    """Draw upright bars, whole at the end of the axis too, where marking everything lies on authentic images."""
    (bar,) = ax.plot(values, places, "|", color=colour, markersize=14, label=label, clip_on=False)
    bar.set_markeredgewidth(2)


def bars(names: Sequence[str], values: ArrayLike, *, words: str, ax: Axes | None = None) -> Axes:
    """Draw one horizontal bar a name, with its value written at the end.

    Parameters
    ----------
    names : sequence of str
        From top to bottom.
    values : array_like of float, shape (n,)
        At least 0.
    words : str
        What the values are.
    ax : Axes, optional
        New ones otherwise, as high as the names need.

    Returns
    -------
    Axes
    """
    ax = axes(ax, width_in=7.0, height_in=0.9 + 0.28 * len(names))
    lengths = np.asarray(values, np.float64)
    places = np.arange(len(names))[::-1]
    drawn = ax.barh(places, lengths, color=PALETTE[0], height=_ROW_SPREAD)
    ax.bar_label(drawn, [f"{length:.4g}" for length in lengths], padding=3, fontsize="small")
    ax.set_yticks(places, names)
    ax.set_xlim(0, 1.12 * lengths.max(initial=0) or 1.0)
    ax.set_xlabel(words)
    return ax


def score_image(scores: NDArray[np.floating], *, words: str, ax: Axes | None = None) -> Axes:
    """Draw a map of values in [0, 1] with a colour bar; every n-th pixel of a large one.

    Parameters
    ----------
    scores : ndarray of float, shape (height, width)
    words : str
        What the values are.
    ax : Axes, optional
        New ones otherwise, of the map's proportions.

    Returns
    -------
    Axes
        Its units are pixels of the whole map.
    """
    height, width = scores.shape
    ax = axes(ax, width_in=6.0, height_in=float(np.clip(5.0 * height / width, 1.5, 10.0)))
    step = max(1, max(height, width) // _SHOWN_PX)
    drawn = ax.imshow(
        scores[::step, ::step], cmap=SCORE_MAP, vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="nearest"
    )
    figure_of(ax).colorbar(drawn, ax=ax, label=words)
    ax.set_xlabel("x, pixels")
    ax.set_ylabel("y, pixels")
    return ax


def legend(ax: Axes) -> None:
    """Put the legend above the axes, where it hides nothing; none where one series needs no name."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) > 1:
        width = figure_of(ax).get_size_inches()[0] * _CHARACTERS_PER_INCH
        columns = int(np.clip(width // (max(map(len, labels)) + _HANDLE_CHARACTERS), 1, 3))
        style: dict[str, Any] = {"ncols": columns, "fontsize": "small", "frameon": False}
        ax.legend(handles, labels, loc="lower right", bbox_to_anchor=(1.0, 1.01), **style)
