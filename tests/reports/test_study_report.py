"""The page of a study."""

import re

import pytest

from dlprobe.reports import report_folder, write_study_report
from dlprobe.studies.designs import run_study

STUDY = """kind = "labelling"
title = "What a <b>label</b> costs"
question = "Is an auto-encoded background better taught as pristine?"
real = "Give a manifest of `dlprobe scan <folder>`."

[data]
manifest = "manifest.parquet"

[[backbones]]
cache = "CACHE"

[fit]
schemes = ["autoencoded-pristine", "autoencoded-fake"]
learning_rates = [1.0]
weight_decays = [0.01]
epochs = 2
baselines = []
"""
WIDTH = (
    "const root = page.documentElement; return [root.scrollWidth, root.clientWidth, page.querySelectorAll('b').length];"
)


@pytest.fixture(scope="module")
def study(tiny_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(STUDY.replace("CACHE", str(tiny_cache)))
    return run_study(folder / "study.toml", folder / "out")


def test_a_page_asks_answers_shows_and_says_from_what(study, browse):
    page = report_folder(study.path)
    html = page.read_text()
    record = study.record
    assert page == study.path / "report.html"
    for words in (record["study"]["question"], "What a &lt;b&gt;label&lt;/b&gt; costs", record["cells"][0]):
        assert words in html
    assert all(line.split(",")[0] in html for line in study.answer)
    assert "[[backbones]]" in re.search(r"<pre>(.*?)</pre>", html, re.DOTALL)[1]
    assert html.count('<table class="sortable">') == len(study.tables)
    assert html.count("data:image/png") == 1 + (study.plot_details() is not None)
    assert study.record["lead"].split(";")[0] in html
    assert all(note.split(",")[0].replace("'", "&#39;") in html for note in study.notes)
    for columns in re.findall(r"<thead><tr>(.*?)</tr>", html):
        assert re.findall(r"<th>(.*?)</th>", columns)[1] in {"value [interval]", "difference [interval]"}
        assert "_" not in columns
        assert "settings" not in columns  # the same long text in every row would make rows as high as a screen
        assert "fingerprint" not in columns
    assert "model_fingerprint" in html
    assert "Give a manifest of <code>dlprobe scan &lt;folder&gt;</code>." in html
    assert study.legend.split(";")[0] in re.search(r"<figcaption>(.*?)</figcaption>", html, re.DOTALL)[1]
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html)
    page.write_text(html.replace(study.notes[0], "timm:a_very_long_name_of_a_backbone.with_its_tag_in21k_ft_in1k " * 2))
    for width_px in (400, 1280):
        content, seen, bold = browse(page, WIDTH, width_px)
        assert content <= seen
        assert bold == 0


def test_the_page_of_a_study_may_be_put_elsewhere(study, tmp_path):
    assert write_study_report(study.path, tmp_path / "new" / "s.html").is_file()
