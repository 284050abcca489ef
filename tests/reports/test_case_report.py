"""The case report: what was measured, by what, what it does not say; file names cannot become markup."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from dlprobe.errors import OutputError, ProbeError
from dlprobe.localization import SlidingSettings, localize
from dlprobe.reports import report_folder, write_case_report

NASTY = "<b>x<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def localized(tiny_manifest, tiny_backbone, tiny_fit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    image = folder / NASTY
    shutil.copy(tiny_manifest.root / tiny_manifest.frame.query("variant == 'sp'")["path"].iloc[0], image)
    probe = tiny_fit.probes["residual-srm/dice-autoencoded-pristine"]
    probe.save(folder / "probe.safetensors")
    (result,) = localize([image], tiny_backbone, probe, folder / "out", sliding=SlidingSettings(stride_px=56))
    return result, folder / "probe.safetensors", probe


def test_a_case_says_what_was_measured_and_what_it_is_not(localized, tmp_path):
    result, path, probe = localized
    html = write_case_report(result.folder, tmp_path / "case.html", probe=path).read_text()
    assert "not by itself evidence" in html
    for fact in (result.sha256, probe.sha256, probe.card["threshold_policy"], f"{probe.threshold:.6g}", result.verdict):
        assert fact in html, fact
    assert f"{len(probe.card['data']['train_sources'])} photographs" in html
    assert "Known limits" in html
    for words in ("share of pixels that one window alone saw", "hatched where windows disagree by 0.2 or more"):
        assert words in html
    assert html.count('<img src="data:image/') == 4
    assert "http" not in html


def test_names_from_users_are_escaped(localized, tmp_path):
    html = write_case_report(localized[0].folder, tmp_path / "case.html").read_text()
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html
    assert "(--probe)" in html


def test_an_image_that_changed_since_is_not_shown(localized, tmp_path):
    result = localized[0]
    shutil.copytree(result.folder, tmp_path / "copy")
    record = (tmp_path / "copy" / "result.json").read_text()
    (tmp_path / "copy" / "result.json").write_text(record.replace(result.sha256, "0" * 64))
    html = write_case_report(tmp_path / "copy").read_text()
    assert "no longer where it was, or has changed" in html


def test_the_wrong_probe_or_folder_is_refused(localized, tiny_fit, tmp_path):
    result = localized[0]
    tiny_fit.probes["residual-srm/dice-autoencoded-fake"].save(tmp_path / "other.safetensors")
    with pytest.raises(ProbeError, match="not the probe that made this result"):
        report_folder(result.folder, tmp_path / "x.html", probe=tmp_path / "other.safetensors")
    with pytest.raises(OutputError, match="no readable result"):
        write_case_report(tmp_path)
    assert not (tmp_path / "x.html").exists()


def test_a_threshold_near_1_leaves_colours_between_marked_and_unmarked(localized, tmp_path):
    result = localized[0]
    folder = tmp_path / "copy"
    shutil.copytree(result.folder, folder)
    record = json.loads((folder / "result.json").read_text())
    height, width = record["image"]["height"], record["image"]["width"]
    logits = np.linspace(8, 16, height * width).reshape(height, width)
    np.save(folder / "score.npy", (1 / (1 + np.exp(-logits))).astype(np.float32))
    (folder / "result.json").write_text(json.dumps({**record, "threshold": float(1 / (1 + np.exp(-12.0)))}))
    html = write_case_report(folder).read_text()
    uri = re.search(r'src="data:image/png;base64,([^"]+)" alt="Score map', html)[1]
    colours = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB"))
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize(
    ("number", "words"), [(1, "1 connected region."), (2, "2 connected regions, the largest first.")]
)
def test_regions_are_counted(localized, tmp_path, number, words):
    folder = tmp_path / "copy"
    shutil.copytree(localized[0].folder, folder)
    record = json.loads((folder / "result.json").read_text())
    region = {"y": 0, "x": 0, "h": 9, "w": 9, "area_px": 81, "score_mean": 0.9}
    (folder / "result.json").write_text(json.dumps({**record, "regions": [region] * number, "n_regions": number}))
    assert f"<p>{words}</p>" in write_case_report(folder).read_text()


HINTS = """
const one = page.documentElement, hints = [...page.querySelectorAll(".scroll")].map((box) =>
  [box.scrollWidth > box.clientWidth, view.getComputedStyle(box, "::before").content !== "none"]);
return [one.scrollWidth, view.innerWidth, hints];
"""


def test_on_a_phone_facts_wrap_and_only_what_does_not_says_scroll(localized, tmp_path, browse):
    page = write_case_report(localized[0].folder, tmp_path / "case.html", probe=localized[1])
    content, seen, hints = browse(page, HINTS, 400)
    assert content <= seen
    assert [wide for wide, _ in hints if wide] == [wide for wide, hint in hints if wide and hint]
    facts = [hint for _, hint in (hints[0], *hints[-2:])]
    assert facts == [False] * 3
