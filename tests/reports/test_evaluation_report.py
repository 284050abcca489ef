"""The page of an evaluation: what stands in it, and what its slider does in a real browser."""

import json
import re
import shutil
import subprocess
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from dlprobe.data.images import read_mask
from dlprobe.errors import OutputError
from dlprobe.reports import report_folder, write_evaluation_report
from dlprobe.reports.page import GLOSSARY, table_section
from dlprobe.reports.slider import THRESHOLD_LEVEL, threshold_levels
from dlprobe.studies.displays import metric_words
from dlprobe.studies.evaluation.maps import MapStore

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MOVE = """<script>(async () => {
  while (!document.body.dataset.ready) await new Promise((done) => setTimeout(done, 20));
  const slider = document.getElementById("threshold"), seen = [];
  for (const level of [%s]) {
    slider.value = level;
    slider.dispatchEvent(new Event("input"));
    const marked = [...document.querySelectorAll(".case canvas")].map((canvas) =>
      [...canvas.toDataURL()].reduce((hash, letter) => (31 * hash + letter.charCodeAt(0)) >>> 0, 7));
    const words = [...document.querySelectorAll(".found")].map((one) => one.textContent);
    seen.push([level, document.getElementById("score").textContent, words, marked]);
  }
  document.title = JSON.stringify(seen);
})();</script></body>"""


@pytest.fixture(scope="module")
def page(small_evaluation, tmp_path_factory):
    return write_evaluation_report(small_evaluation.out, tmp_path_factory.mktemp("page") / "page.html")


def test_a_page_shows_tables_curves_notes_and_accounting_and_needs_nothing_else(page, small_evaluation):
    html = page.read_text()
    for row in small_evaluation.tables["overview"].itertuples():
        assert f">{metric_words(row.metric)}</td>" in html
    scored = small_evaluation.accounting["scored"]
    accounting = f"{scored} images in = {scored} scored + 0 rejected"
    for words in ("Robustness", "Object prior", "Post-processing", accounting, ", oracle, protocol dlprobe"):
        assert words in html
    assert small_evaluation.notes[0] in html
    assert all(line in html for line in GLOSSARY)
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html)
    assert "http" not in html.replace("http://www.w3.org", "")
    assert (page.parent / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_score_names_its_protocol_only_beside_those_of_others():
    names = ["dlprobe.original_px.iou_macro (oracle)", "dlprobe.original_px.false_area"]
    alone = table_section("", pd.DataFrame({"metric": names}))
    assert [row["cells"] for row in alone.rows] == [["IoU, mean over images, oracle"], ["falsely marked share"]]
    beside = table_section("", pd.DataFrame({"metric": [names[1], "tgif.original_px.f1"]}))
    assert [row["cells"] for row in beside.rows] == [["falsely marked share, protocol dlprobe"], ["F1, protocol tgif"]]
    fitted = table_section("", pd.DataFrame({"metric": ["iou@patch", "iou@patch"]}))
    assert [row["cells"] for row in fitted.rows] == [["IoU"], ["IoU"]]


def test_the_report_of_a_folder_is_the_one_that_belongs_there(small_evaluation, tmp_path):
    assert report_folder(small_evaluation.out, tmp_path / "a.html").is_file()
    with pytest.raises(OutputError, match="leave out --probe"):
        report_folder(small_evaluation.out, probe="x.safetensors")
    with pytest.raises(OutputError, match="nothing to report on"):
        report_folder(tmp_path)
    with pytest.raises(OutputError, match=r"\.html"):
        write_evaluation_report(small_evaluation.out, tmp_path / "a.png")


@pytest.mark.parametrize("threshold", [0.0, 1e-6, 0.08, 0.5, 0.97, 1 - 1e-6, 1.0, 1.0000001])
def test_the_middle_level_of_an_embedded_map_is_the_threshold_itself(threshold):
    scores = np.random.default_rng(0).beta(0.1, 0.1, (50, 60)).astype(np.float32)
    scores[0, :3] = 0, 1, min(threshold, 1)
    levels = threshold_levels(scores, threshold)
    np.testing.assert_array_equal(levels >= THRESHOLD_LEVEL, scores.astype(np.float64) >= threshold)
    order = np.argsort(scores, axis=None)
    assert (np.diff(levels.ravel()[order].astype(int)) >= 0).all()


def test_what_is_marked_has_a_black_border_also_on_what_is_orange_itself(page, browse):
    script = """
    while (!page.body.dataset.ready) await pause();
    const slider = page.getElementById("threshold");
    slider.value = 0;
    slider.dispatchEvent(new view.Event("input"));
    return [...page.querySelectorAll(".case")].filter((one) => !one.dataset.fake).map((one) => {
      const canvas = one.querySelector("canvas"), { width, height } = canvas;
      const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
      return [0, width * height - 1, 9 * width + 9].map((at) => [...data.slice(4 * at, 4 * at + 3)]);
    });
    """
    authentic = browse(page, script)
    assert authentic
    for first, last, inside in authentic:
        assert first == last == [0, 0, 0]
        assert inside[0] >= 0.55 * 213 - 1
    assert "Orange with a black border is marked" in page.read_text()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_the_slider_changes_masks_and_ious_in_a_browser(page, small_evaluation, tiny_manifest, tmp_path):
    settings = (100, THRESHOLD_LEVEL, 170, 255)
    (tmp_path / "moved.html").write_text(page.read_text().replace("</body>", MOVE % ",".join(map(str, settings))))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    command = [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", tmp_path / "moved.html"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in run.stderr
    seen = json.loads(re.search(r"<title>(\[.*?)</title>", run.stdout)[1].replace("&quot;", '"'))
    captions = re.findall(r'class="found">[^<]*</output>\s*([^<]+)<', run.stdout)
    images = small_evaluation.tables["images"].query("chain == 'clean'")
    store = MapStore(small_evaluation.out / "maps", {}, 112)
    cut = float(small_evaluation.tables["results"]["threshold"].iloc[0])
    assert len(captions) == len(images) > 2
    for position, caption in enumerate(captions):
        row = next(row for row in images.itertuples() if caption.strip().endswith(row.path))
        levels = threshold_levels(store.read(store.folder / row.map).original, cut)
        for level, _, words, _ in seen:
            marked = levels >= level
            expected = f"marked {100 * marked.mean():.1f} %"
            if row.mask:
                truth = read_mask(tiny_manifest.root / row.mask, marked.shape)
                expected = f"IoU {(marked & truth).sum() / (marked | truth).sum():.3f}"
            assert words[position] == expected, (row.path, level)
        own = images.loc[images["path"] == row.path, "dlprobe.original_px.iou"].iloc[0]
        assert not row.mask or seen[1][2][position] == f"IoU {own:.3f}"
    for (*_, words, pictures), (*_, other_words, other_pictures) in pairwise(seen):
        for word, picture, other_word, other_picture in zip(words, pictures, other_words, other_pictures, strict=True):
            assert word == other_word or picture != other_picture  # the picture moves, not the number alone
    logit = re.search(r"logit (-?[\d.]+)", seen[1][1])
    if logit:
        assert float(logit[1]) == pytest.approx(np.log(cut / (1 - cut)), abs=0.06)
    else:
        assert float(seen[1][1]) == pytest.approx(cut, rel=5e-3)
    assert len({json.dumps(marked) for _, _, _, marked in seen}) > 1
