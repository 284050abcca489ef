"""What stands in a report, and that names from users cannot become markup."""

import numpy as np
import pytest

from dlprobe.errors import OutputError
from dlprobe.reports import Picture, write_report


def test_a_report_shows_the_numbers_of_its_run(tiny_fit, tmp_path):
    path = write_report(tiny_fit.out, tmp_path / "report.html")
    html = path.read_text()
    for row in tiny_fit.summary().itertuples(index=False):
        assert f"<td>{row.kind}</td>" in html
    value = tiny_fit.results.query("kind == 'sp' and metric == 'iou@patch' and method == 'dice'")["value"].iloc[0]
    assert f"{value:.3f} [" in html
    for note in tiny_fit.notes:
        assert note.split(":")[0] in html
    assert html.count('class="lost"') == (
        tiny_fit.comparisons.query("comparison == 'dice - everything'")["low"].gt(0).rsub(1).sum()
    )


def test_names_from_users_are_escaped(tiny_fit, tmp_path):
    nasty = "<script>alert('x')</script>.png"
    blank = np.zeros((20, 20), np.float32)
    picture = Picture(np.zeros((20, 20, 3), np.uint8), blank, np.zeros((20, 20, 3), np.uint8), nasty)
    html = write_report(tiny_fit.out, tmp_path / "r.html", title=nasty, lead=[nasty], pictures=[picture]).read_text()
    assert "<script>" not in html
    assert html.count("&lt;script&gt;") == 4


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(OutputError, match="no run"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())
