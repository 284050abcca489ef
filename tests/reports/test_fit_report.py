"""The page of a fit: its numbers, names that cannot become markup, and what it does in a real browser."""

import re
import shutil
from html import unescape
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from jinja2 import Environment, PackageLoader
from PIL import Image
from scipy.special import expit
from sklearn.calibration import calibration_curve

from dlprobe.backbones import load_backbone
from dlprobe.cache import open_cache
from dlprobe.data import Manifest, label_patches
from dlprobe.errors import OutputError
from dlprobe.extraction import extract
from dlprobe.reports import Picture, report_folder, write_report
from dlprobe.reports.fits.examples import EXAMPLES
from dlprobe.reports.fits.writing import _sections, _without_intervals
from dlprobe.reports.page import GLOSSARY
from dlprobe.reports.slider import slider
from dlprobe.separability import SeparabilitySettings, separate
from dlprobe.studies import FitSettings, fit_caches, read_run

SCHEME = "autoencoded-pristine"
HOSTILE = "<img src=x onerror=document.title='owned'>.png"
#: Moves the slider and tells what the page shows; returns levels, scores, words, and whether pictures changed.
MOVE = """
  while (!page.body.dataset.ready) await pause();
  const slider = page.getElementById("threshold"), seen = [];
  for (const level of [60, 128, 200]) {
    slider.value = level;
    slider.dispatchEvent(new view.Event("input"));
    seen.push({
      score: Number(page.getElementById("score").textContent),
      words: [...page.querySelectorAll(".found")].map((one) => one.textContent),
      pictures: [...page.querySelectorAll(".case canvas")].map((canvas) => canvas.toDataURL().length),
    });
  }
  return {
    seen, captions: [...page.querySelectorAll(".case figcaption")].map((one) => one.textContent),
    strange: page.querySelectorAll('[src="x"]').length,
    title: page.title,
  };
"""
SORT = """
  const heads = (table) => [...table.tHead.rows[0].cells].map((head) => head.textContent);
  const place = (table) => heads(table).indexOf("marking everything");
  const table = [...page.querySelectorAll("table.sortable")].find((one) => place(one) >= 0), column = place(table);
  const values = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
  const seen = [values()];
  for (let click = 0; click < 2; click++) {
    table.tHead.rows[0].cells[column].querySelector("button").click();
    seen.push(values(), table.tHead.rows[0].cells[column].getAttribute("aria-sort"));
  }
  return seen;
"""
SCROLLED = """
  page.querySelectorAll("details").forEach((one) => { one.open = true; });
  const wide = [...page.querySelectorAll(".scroll:has(table)")].filter((one) => one.scrollWidth > one.clientWidth);
  const first = page.querySelector("table.sortable td:first-child");
  return [wide.map((one) => [one.textContent.trim().slice(0, 60), one.scrollWidth, one.clientWidth]),
    view.getComputedStyle(first).position === "sticky"];
"""
WIDTH = "const root = page.documentElement; return [root.scrollWidth, root.clientWidth, view.innerWidth];"


@pytest.fixture(scope="module")
def separability(tiny_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("separability") / "out"
    separate([tiny_cache], folder, settings=SeparabilitySettings(sample_per_class=40, groups=2))
    return folder


@pytest.fixture(scope="module")
def page(tiny_fit, tiny, separability, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "page.html"
    return report_folder(tiny_fit.out, out, separability=separability, images=tiny / "data")


def test_a_report_shows_the_numbers_of_its_run(page, tiny_fit):
    html = page.read_text()
    for row in tiny_fit.summary().itertuples(index=False):
        assert f"<td>{row.kind}</td>" in html
    value = tiny_fit.results.query("kind == 'sp' and metric == 'iou@patch' and method == 'dice'")["value"].iloc[0]
    assert f"{value:.3f} [" in html
    for note in tiny_fit.notes:
        assert note.split(":")[0] in html
    assert html.count('class="lost"') == (
        tiny_fit.comparisons.query("comparison == 'dice - everything'")["low"].gt(0).rsub(1).sum()
    )
    for words in ("Paired comparisons", "Calibration", "Separability", "PCA map 0", "model_fingerprint", "zarr"):
        assert words in html
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html)
    assert "http" not in html.replace("http://www.w3.org", "")


def test_a_page_begins_with_what_was_tested_and_explains_its_words(page, tiny_fit):
    html, images = page.read_text(), tiny_fit.images
    number, sources = images["path"].nunique(), images["source_id"].nunique()
    above = html.split("<h2>")[0]  # of the answer, which speaks of sp and fr
    assert f"tested on {number} images of {sources} photographs." in above
    assert all(f"{variant} = " in above for variant in images["variant"].unique())
    assert all(line in html for line in GLOSSARY)


def test_the_answer_comes_first_in_sentences_with_how_sure_it_is(page, tiny_fit):
    answer = page.read_text().split("<h2>")[1]
    assert answer.startswith("Answer: is what was inpainted found")
    asked = tiny_fit.comparisons.query("comparison == 'dice - everything' and metric == 'iou@patch'").set_index("kind")
    said = re.findall(r"<p>On (\w+), (the Dice probe|marking everything) is ahead of .+? by ([\d.]+) \[", answer)
    assert {(kind, ours == "the Dice probe", by) for kind, ours, by in said} == {
        (kind, row["difference"] >= 0, f"{abs(row['difference']):.3f}")
        for kind, row in asked.loc[["sp", "fr"]].iterrows()
    }
    for _, row in asked.loc[["sp", "fr"]].iterrows():
        settled = "after Holm: not settled)" if row["p_holm"] >= 0.05 else "after Holm)"
        assert f"({row['n_sources']} photographs, " in answer
        assert settled in answer


def test_a_footer_is_written_out_and_few_photographs_are_said_to_be_few(page, tiny_fit):
    footer = page.read_text().partition("<footer>")[2].partition("</footer>")[0]
    assert "Settings: schemes autoencoded-pristine / autoencoded-fake, objectives dice-batch" in footer
    assert not re.search("[{}]", footer)
    assert _without_intervals(tiny_fit.results) == []
    few = tiny_fit.results.assign(n_sources=6)
    assert _without_intervals(few) == ["No intervals: 6 photographs, 8 needed."]


@pytest.mark.parametrize(("grid", "unit", "other"), [("patch", "patch", "pixel"), ("px", "pixel", "patch")])
def test_words_of_scores_are_those_of_the_grid_that_they_were_taken_on(tiny_fit, grid, unit, other):
    tables = dict(read_run(tiny_fit.out).tables)
    tables |= {name: tables[name].assign(grid=grid) for name in ("images", "pooled")}
    scores, _, _, calibration, decided, ranked, _ = _sections(SimpleNamespace(tables=tables))
    for section in (scores, calibration, decided, ranked):
        words = " ".join([section.title, *section.text]).lower()
        assert unit in words
        assert other not in words
    assert f"all {unit}" in decided.title.lower()
    assert f"all {unit}" in ranked.title.lower()


def test_a_slider_tells_scores_near_0_and_1_by_what_is_left_and_by_logits(tmp_path, browse):
    text = """{% extends "base.html" %}{% import "slider.html" as slider %}{% block body %}
    {{ slider.gallery([], threshold) }}{{ slider.script(threshold) }}{% endblock %}"""
    environment = Environment(loader=PackageLoader("dlprobe.reports"), autoescape=True)
    path = tmp_path / "page.html"
    path.write_text(environment.from_string(text).render(title="t", threshold=slider(float(expit(13.1)))))
    script = 'while (!page.body.dataset.ready) await pause(); return page.getElementById("score").textContent;'
    assert browse(path, script) == "1 - 2e-6 (logit 13.1)"


def test_calibration_is_that_of_the_probes_that_never_saw_the_image(tiny_fit, tiny_cache):
    cache, images = open_cache(tiny_cache), tiny_fit.images
    rows = images[(images["method"] == "dice") & (images["scheme"] == SCHEME)]
    scores, truths = [], []
    for row in rows.itertuples():
        block = cache.read(np.flatnonzero((cache.windows["path"] == row.path).to_numpy()))
        probe = tiny_fit.probes[f"residual-srm/folds/dice-{SCHEME}-{row.fold}"]
        truth = label_patches(block.coverage, SCHEME)
        scores.append(expit(probe.logits(block.embeddings)[..., 0][truth >= 0]))
        truths.append(truth[truth >= 0] == 1)
    frequency, probability = calibration_curve(np.concatenate(truths), np.concatenate(scores), n_bins=10)
    found = read_run(tiny_fit.out).tables["calibration"]
    found = found[(found["method"] == "dice") & (found["scheme"] == SCHEME)]
    np.testing.assert_allclose(found["frequency"], frequency, atol=2e-3)
    np.testing.assert_allclose(found["probability"], probability, atol=2e-3)
    assert found["n"].sum() == sum(map(len, truths))


def test_the_slider_shows_the_scores_of_the_table_and_changes_masks(page, tiny_fit, browse):
    told = browse(page, MOVE)
    low, half, high = told["seen"]
    assert low["score"] < half["score"] == 0.5 < high["score"]
    images = tiny_fit.images.query(f"method == 'dice' and scheme == '{SCHEME}'").set_index("path")
    assert len(told["captions"]) > 4
    for words, caption in zip(half["words"], told["captions"], strict=True):
        path = next(word for word in caption.split() if word in images.index)
        row = images.loc[path]
        fake = row["variant"] in {"sp", "fr"}
        assert words.startswith("IoU " if fake else "marked ")
        expected = (row["iou"], 6e-4) if fake else (100 * row["false_area"], 0.06)
        assert float(words.split()[1]) == pytest.approx(expected[0], abs=expected[1])
    for one, other in ((low, half), (half, high)):
        assert one["words"] != other["words"]
        assert one["pictures"] != other["pictures"]
    shown = [float(words.split()[1]) for words in low["words"] if words.startswith("marked")]
    assert all(
        a >= b for a, b in zip(shown, [float(w.split()[1]) for w in high["words"] if "marked" in w], strict=True)
    )


def test_worst_and_best_are_the_ends_of_the_table(page, tiny_fit):
    captions = re.findall(r"</output>\s*((?:worst|best) of [^<]+)</figcaption>", page.read_text())
    rows = tiny_fit.images.query(f"method == 'dice' and scheme == '{SCHEME}' and variant == 'sp'")
    worst = next(caption for caption in captions if caption.startswith("worst of sp"))
    best = [caption for caption in captions if caption.startswith("best of sp")][-1]
    by_path = rows.set_index("path")["iou"]
    assert by_path[next(word for word in worst.split() if word in by_path.index)] == rows["iou"].min()
    assert by_path[next(word for word in best.split() if word in by_path.index)] == rows["iou"].max()
    assert sum(caption.startswith("worst of sp") for caption in captions) == EXAMPLES


def test_tables_sort_by_click_and_numbers_sort_as_numbers(page, browse):
    before, rising, up, falling, down = browse(page, SORT)
    assert (up, down) == ("ascending", "descending")
    assert [float(value) for value in rising] == sorted(map(float, before))
    assert [float(value) for value in falling] == sorted(map(float, before), reverse=True)


def test_no_table_scrolls_sideways_on_a_desk_with_every_scheme_there_is(tiny_fit, tmp_path, browse):
    run = tmp_path / "run"
    shutil.copytree(tiny_fit.out, run)
    results = tiny_fit.results
    one = results[results["scheme"] == SCHEME]
    more = [one.assign(scheme=scheme) for scheme in ("autoencoded-ignored", "three-class")]
    pd.concat([results, *more], ignore_index=True).to_parquet(run / "results.parquet")
    page = write_report(run, tmp_path / "page.html")
    for width_px in (1280, 400):
        scrolled, sticks = browse(page, SCROLLED, width_px)
        assert (scrolled == []) == (width_px == 1280)
        assert sticks == (width_px == 400)  # the first column, which says of what a number is


def test_of_kinds_lost_to_marking_everything_the_page_counts_and_lists_all(page, tiny_fit):
    html, table = page.read_text(), tiny_fit.comparisons
    against = table[table["comparison"].eq("dice - everything") & table["low"].notna()]
    lost = against[against["low"] <= 0]
    assert len(lost) > 2
    bullets = html.partition("before reading the numbers</h2>")[2].partition("</ul>")[0]
    assert f"on {len(lost)} of {len(against)} kinds of fake" in bullets
    assert max(map(len, re.findall(r"<li>(.*?)</li>", bullets))) < 450
    listed = html.partition(f"The {len(lost)} kinds of fake")[2].partition("</details>")[0]
    assert re.findall(r"<td>((?:sp|fr)[^<]*)</td>", listed) == lost["kind"].tolist()


def test_a_page_has_no_name_of_a_column_or_a_metric(page):
    html = page.read_text()
    heads = re.findall(r"<th>(.*?)</th>", html)
    assert {"kind of image", "score", "marking everything", "p after Holm", "photographs"} <= set(heads)
    assert [head for head in heads if re.search(r"[_@]|^(n|p) \w+$", head.replace("p after Holm", ""))] == []
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html)
    assert [
        cell for cell in cells if re.search(r"@|_val\b|everything$", cell) and "marking everything" not in cell
    ] == []
    assert "difference [interval]" in heads
    assert "dice - marking everything" in cells


@pytest.mark.parametrize("width_px", [400, 1280])
def test_no_page_is_wider_than_its_window(page, browse, width_px):
    content, seen, window = browse(page, WIDTH, width_px)
    assert window == width_px
    assert content <= seen


def test_names_from_users_are_escaped(tiny_fit, tmp_path):
    nasty = "<script>alert('x')</script>.png"
    blank = np.zeros((20, 20), np.float32)
    picture = Picture(np.zeros((20, 20, 3), np.uint8), blank, np.zeros((20, 20, 3), np.uint8), nasty)
    html = write_report(tiny_fit.out, tmp_path / "r.html", title=nasty, lead=[nasty], pictures=[picture]).read_text()
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;alert") == 4


def test_a_file_name_that_is_markup_stays_text_in_a_browser(tiny, tiny_manifest, tmp_path, browse):
    frame = tiny_manifest.frame.copy()
    frame = frame[frame["generator"].isin(["", "telea+pca"])].reset_index(drop=True)
    for at in frame.index[frame["variant"] == "sp"]:
        name = f"{at}{HOSTILE}"
        (tmp_path / "data").mkdir(exist_ok=True)
        shutil.copy(tiny / "data" / frame.loc[at, "path"], tmp_path / "data" / name)
        frame.loc[at, "path"] = name
    for column in ("path", "mask"):
        for name in set(frame[column]) - {""}:
            if not (tmp_path / "data" / name).exists():
                (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tiny / "data" / name, tmp_path / "data" / name)
    manifest = Manifest(frame, tmp_path / "data")
    extract(manifest, load_backbone("residual:srm", window_px=112), tmp_path / "cache", stride_px=112)
    settings = FitSettings(schemes=(SCHEME,), learning_rates=(1.0,), weight_decays=(1e-2,), epochs=1, baselines=())
    fit_caches([tmp_path / "cache"], tmp_path / "run", settings=settings)
    page = report_folder(tmp_path / "run", images=tmp_path / "data")
    told = browse(page, MOVE)
    assert sum(HOSTILE in caption for caption in told["captions"]) > 2
    assert told["strange"] == 0
    assert told["title"].startswith("dlprobe")
    assert HOSTILE not in page.read_text()
    assert HOSTILE in unescape(page.read_text())


def test_caches_that_are_gone_are_a_line_and_photographs_that_are_gone_are_greys(tiny_fit, tiny_cache, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_fit.out, run)
    assert "folder (--images) photographs are shown" in write_report(run, tmp_path / "a.html").read_text()
    (tmp_path / "images").mkdir()
    html = write_report(run, tmp_path / "b.html", images=tmp_path / "images").read_text()
    assert "(the image is not there)" in html
    record = (run / "run.json").read_text()
    (run / "run.json").write_text(record.replace(str(tiny_cache), str(tmp_path / "gone")))
    html = write_report(run, tmp_path / "c.html").read_text()
    assert re.search(r"No worst and best images: .*gone", html)
    assert 'class="case"' not in html
    (run / "run.json").write_text(record.replace(open_cache(tiny_cache).cache_spec.fingerprint, "0" * 64))
    assert "is another cache by now" in write_report(run, tmp_path / "d.html").read_text()


def test_an_image_of_another_size_is_not_shown_as_the_one_that_was_scored(tiny_fit, tiny, tmp_path):
    shutil.copytree(tiny / "data", tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.png"):
        Image.new("RGB", (300, 40)).save(path)
    html = write_report(tiny_fit.out, tmp_path / "a.html", images=tmp_path / "data").read_text()
    assert html.count("(another image is there by now)") == html.count('class="case"') > 4


def test_wrong_folders_are_one_line(tiny_fit, tmp_path):
    with pytest.raises(OutputError, match="no run"):
        write_report(tmp_path)
    with pytest.raises(OutputError, match="was not written by `dlprobe separate -o`"):
        write_report(tiny_fit.out, tmp_path / "a.html", separability=tmp_path)
    with pytest.raises(OutputError, match=r"no folder .* with images"):
        write_report(tiny_fit.out, tmp_path / "a.html", images=tmp_path / "none")
    with pytest.raises(OutputError, match="holds nothing to report on"):
        report_folder(tmp_path)
    with pytest.raises(OutputError, match="holds a fit; leave out --probe"):
        report_folder(tiny_fit.out, probe="x.safetensors")
    assert not list(tmp_path.iterdir())
    assert isinstance(read_run(tiny_fit.out).tables["calibration"], pd.DataFrame)
