"""Figures: drawn without pyplot, the same bytes twice, told apart without colour, no interval where there is none."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from dlprobe import plotting

FRAME = pd.DataFrame(
    {
        "kind": ["sp", "sp", "fr", "fr"],
        "method": ["dice", "logistic", "dice", "logistic"],
        "value": [0.5, 0.4, 0.3, np.nan],
        "low": [0.4, np.nan, 0.2, np.nan],
        "high": [0.6, np.nan, 0.29, np.nan],
        "all": [0.1, 0.1, 0.2, 0.2],
    }
)


def lightness(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_axes_that_were_removed_are_refused():
    ax = plotting.axes()
    ax.remove()
    with pytest.raises(ValueError, match="belong to no figure"):
        plotting.figure_of(ax)


def test_importing_it_loads_no_matplotlib_and_drawing_no_pyplot():
    code = (
        "import sys, dlprobe.plotting as p\n"
        "assert 'matplotlib' not in sys.modules\n"
        "p.png(p.axes())\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True)


def test_series_differ_in_each_field_and_beyond_seven_in_pairs_of_fields():
    marks = [plotting.mark(n) for n in range(49)]
    for one, other in combinations(marks[:7], 2):
        assert all(a != b for a, b in zip(one, other, strict=True))
    assert len({(m.colour, m.marker) for m in marks}) == 49
    assert plotting.mark(0) == plotting.mark(49)


def test_no_colour_is_lost_on_white():
    assert all(1.05 / (lightness(colour) + 0.05) > 2 for colour in plotting.PALETTE)


def test_axes_are_the_callers_or_new():
    own = Figure().add_subplot()
    assert plotting.axes(own) is own
    new = plotting.axes(width_in=3, height_in=2)
    assert tuple(plotting.figure_of(new).get_size_inches()) == (3, 2)
    assert [len(plotting.figure_of(plotting.panels(n)[0]).axes) for n in (1, 3, 4)] == [1, 3, 4]


@pytest.mark.parametrize("save", [plotting.png, plotting.svg])
def test_figures_are_the_same_bytes_twice(save):
    first, second = (save(plotting.dots(FRAME, rows="kind", series="method")) for _ in range(2))
    assert first == second


def test_an_svg_keeps_its_words():
    assert b">logistic</text>" in plotting.svg(plotting.dots(FRAME, rows="kind", series="method"))


@pytest.mark.parametrize("horizontal", [True, False])
def test_an_interval_runs_from_low_to_high_and_a_mark_without_one_is_hollow(horizontal):
    ax = plotting.axes()
    plotting.intervals(ax, [0, 1, 2], [0.5, 0.4, np.nan], [0.4, np.nan, 0], [0.6, np.nan, 1], horizontal=horizontal)
    (bars,) = ax.collections
    (segment,) = bars.get_segments()
    assert segment[:, 0 if horizontal else 1].tolist() == [0.4, 0.6]
    full, hollow = ax.lines
    assert full.get_markerfacecolor() == plotting.PALETTE[0]
    assert hollow.get_markerfacecolor() == "white"
    values = [line.get_xdata() if horizontal else line.get_ydata() for line in (full, hollow)]
    assert [list(part) for part in values] == [[0.5], [0.4]]


def test_an_estimate_outside_its_interval_is_drawn_as_it_is():
    ax = plotting.axes()
    plotting.intervals(ax, [0], [0.3], [0.1], [0.2])
    (segment,) = ax.collections[0].get_segments()
    assert segment[:, 1].tolist() == [0.1, 0.2]


def test_dots_name_rows_from_top_to_bottom_and_mark_the_reference():
    ax = plotting.dots(FRAME, rows="kind", series="method", reference="all", reference_label="marking everything")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["sp", "fr"]
    assert ax.get_yticks().tolist() == [1, 0]
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == ["dice", "logistic", "marking everything"]
    assert ax.lines[-1].get_xdata().tolist() == [0.1, 0.2]
    assert not ax.lines[-1].get_clip_on()


def test_bars_begin_at_0_also_where_all_are_0():
    ax = plotting.bars(["a", "b"], [0, 0], words="windows")
    assert ax.get_xlim() == (0, 1)
    ax = plotting.bars(["a", "b"], [1, 3], words="windows")
    assert [bar.get_width() for bar in ax.patches] == [1, 3]
    assert [text.get_text() for text in ax.texts] == ["1", "3"]


def test_one_series_needs_no_legend():
    ax = plotting.dots(FRAME[FRAME["method"] == "dice"], rows="kind", series="method")
    assert ax.get_legend() is None


def test_a_curve_has_a_band_where_there_is_an_interval():
    ax = plotting.axes()
    plotting.curve(ax, [0, 1], [0, 1], label="a")
    assert not ax.collections
    plotting.curve(ax, [0, 1], [0, 1], [0, 0.5], [0.5, 1.5], series=1)
    assert len(ax.collections) == 1
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
