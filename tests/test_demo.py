"""The demo on small crops: the same steps, resumed when run again, and a report that needs nothing else."""

import re

import pandas as pd
import pytest

from dlprobe.demo import run_demo
from dlprobe.errors import OutputError
from dlprobe.studies import read_run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, run_demo(folder, photographs=8, side_px=128, window_px=112)


def test_prints_the_table_and_the_comparisons(demo):
    _, result = demo
    for words in ("iou@patch", "false_area@patch", "dice autoencoded-pristine", "logistic autoencoded-fake"):
        assert words in result.text
    assert "against the floor, on common windows" in result.text
    assert "residual:srm - timm:vit_small_patch14_dinov2" in result.text


def test_the_report_is_one_file_with_pictures(demo):
    _, result = demo
    html = result.report.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert html.count("data:image/png;base64,") >= 3 * 13
    assert "cache_fingerprint" in html
    assert "{{" not in html


def test_the_floor_is_measured_on_windows_that_both_hold(demo):
    folder, _ = demo
    images = read_run(folder / "run-floor").tables["images"]
    paths = images.groupby("model")["path"].agg(frozenset)
    assert len(paths) == 2
    assert paths.iloc[0] == paths.iloc[1]
    generators = set(images["generator"])
    assert not any("sr" in generator for generator in generators)


def test_a_second_run_extracts_nothing_and_says_the_same(demo):
    folder, result = demo
    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("cache-*/**/*") if p.is_file() and "locks" not in p.parts}
    before = pd.read_parquet(folder / "run/results.parquet")
    again = run_demo(folder, photographs=8, side_px=128, window_px=112)
    assert again.text == result.text
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "run/results.parquet"), before)


def test_another_folder_is_left_alone(tmp_path):
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no demo"):
        run_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["diary.txt"]
