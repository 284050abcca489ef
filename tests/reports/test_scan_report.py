"""The page of a scan: every finding, pictures that show the fault, and names that stay names."""

import base64
import io
import re
from dataclasses import replace
from html import unescape

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from dlprobe.data import scan
from dlprobe.data.layouts import Finding, Reject
from dlprobe.errors import OutputError
from dlprobe.reports import write_scan_report
from dlprobe.reports.scan import MOST_REJECTS, PICTURE_PX, amplified, outlined

SIDE = 96
HOSTILE = "<b>x</b>&quot;\"onerror='1'"
BOX = (slice(24, 64), slice(16, 56))


def photograph(seed, shape=(SIDE, SIDE)):
    noise = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def faulty(tmp_path):
    """Return a set of four photographs; the mask of the last is inverted, and one name is hostile."""
    for seed, name in enumerate([HOSTILE.replace("/", "_"), "b", "c", "inverted"]):
        original = photograph(seed)
        fake = original.copy()
        fake[BOX] = 255 - fake[BOX]
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[BOX] = 255
        save(tmp_path / "real" / f"{name}.png", original)
        save(tmp_path / "sp" / f"{name}.png", fake)
        save(tmp_path / "masks" / f"{name}.png", 255 - mask if name == "inverted" else mask)
    return tmp_path


def pictures(html):
    """Return the label and pixels of every picture on a page."""
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="([^"]*)">', html)
    return [(unescape(alt), np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))) for data, alt in found]


def test_an_inverted_mask_is_shown_with_border_partner_and_difference(faulty, tmp_path):
    html = write_scan_report(scan(faulty, "folder"), tmp_path / "new" / "r.html").read_text()
    assert "mask-inverted" in html
    shown = {label: pixels for label, pixels in pictures(html) if "inverted" in label}
    assert [label.split(" of ")[0].split(" x ")[0] for label in shown] == [
        "image",
        "mask outlined",
        "authentic partner",
        "difference",
    ]
    image, outline, partner, difference = shown.values()
    inside = np.zeros((SIDE, SIDE), bool)
    inside[BOX] = True
    assert np.abs(image[~inside].astype(int) - partner[~inside]).mean() < 3  # JPEG
    assert np.abs(image[inside].astype(int) - partner[inside]).mean() > 15
    deep = cv2.erode(inside.astype(np.uint8), np.ones((17, 17), np.uint8)) > 0
    far = cv2.dilate(inside.astype(np.uint8), np.ones((17, 17), np.uint8)) == 0
    assert difference[deep].mean() > 50
    assert difference[far].mean() < 1
    assert np.abs(outline[deep].astype(int) - image[deep]).mean() < 3
    assert np.abs(outline[23, 24:48].astype(int) - (255, 140, 0)).mean() < 60  # white lies outside the box
    assert "white covers 82.6%" in html
    assert re.search(r"differs from real/inverted.png by 0.0 levels in white and \d+\.\d levels in black", html)


def test_names_from_users_are_text_and_nothing_else(faulty, tmp_path):
    name = HOSTILE.replace("/", "_")
    result = scan(faulty, "folder")
    finding = Finding("<i>planted</i>", "<script>alert(1)</script>", 1, "error", (f"sp/{name}.png",))
    reject = Reject("<u>gone</u>.png", "<script>2</script>", "missing")
    result = replace(result, findings=[finding], rejects=[reject], manifest=result.manifest)
    html = write_scan_report(result, tmp_path / "r.html").read_text()
    for tag in ("<script", "<i>", "<u>", "<b>x", "onerror='", 'x/b>"'):
        assert tag not in html
    assert unescape(html).count(f"sp/{name}.png") == 2 + 4  # table, caption, and each picture's text
    assert len(pictures(html)) == 4


def test_a_page_needs_nothing_else_and_accounts_for_every_file(faulty, tmp_path):
    (faulty / "notes.md").write_text("x")
    (faulty / "real" / "broken.png").write_bytes(b"\x89PNG no more")
    result = scan(faulty, "folder")
    html = write_scan_report(result, tmp_path / "r.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', html)
    assert "14 files\n= 8 records + 1 rejects + 5 ignored." in html
    assert "<li>mask: 4</li><li>table or text: 1</li>" in html
    assert "<td>sp</td><td></td><td></td><td>4</td><td>4</td>" in html
    assert html.count("real/broken.png</b>") == 1  # a caption with the reason in place of a picture
    many = replace(result, rejects=[Reject(f"r{n}.png", "gone", "missing") for n in range(MOST_REJECTS + 7)])
    html = write_scan_report(many, tmp_path / "r.html").read_text()
    assert html.count("<td>missing</td>") == MOST_REJECTS
    assert "And 7 more." in html


def test_examples_that_are_no_images_have_no_pictures_and_errors_come_first(faulty, tmp_path):
    result = scan(faulty, "folder")
    findings = [
        Finding("fact", "x", 1, "info", ("sp/b.png",)),
        Finding("crossing", "x", 1, "error", ("source-1",)),
        Finding("masked", "x", 1, "warning", ("masks/c.png", "sp/b.png")),
    ]
    result = replace(result, findings=findings)
    html = write_scan_report(result, tmp_path / "r.html", most_images=1).read_text()
    assert [row for row in re.findall(r"</td><td>(\w+)</td><td>1</td>", html) if row not in {"sp", "real"}] == [
        "crossing",
        "masked",
        "fact",
    ]
    assert [label.split(" of ")[1] for label, _ in pictures(html)] == ["sp/c.png"] * 4


def test_a_large_image_is_shown_small_and_one_above_the_limit_not_at_all(tmp_path):
    save(tmp_path / "real" / "wide.png", photograph(0, (200, 1000)))
    result = replace(scan(tmp_path, "folder"), findings=[Finding("x", "x", 1, "error", ("real/wide.png",))])
    html = write_scan_report(result, tmp_path / "r.html").read_text()
    assert [pixels.shape for _, pixels in pictures(html)] == [(PICTURE_PX // 5, PICTURE_PX, 3)]
    html = write_scan_report(result, tmp_path / "r.html", max_pixels=100_000).read_text()
    assert pictures(html) == []
    assert "more than 100,000; raise the limit" in html


def test_a_target_that_cannot_be_a_file_is_one_line(faulty, tmp_path):
    with pytest.raises(OutputError, match="no report can be written to"):
        write_scan_report(scan(faulty, "folder"), faulty)
    assert not list(tmp_path.glob(".dlprobe-scratch-*"))


def test_outlines_lie_on_the_masks_border():
    mask = np.zeros((9, 9), bool)
    mask[3:6, 3:6] = True
    drawn = outlined(np.full((9, 9, 3), 100, np.uint8), mask)
    expected = np.full((9, 9, 3), 100, np.uint8)
    expected[2:7, 2:7] = 0
    expected[3:6, 3:6] = (255, 140, 0)
    expected[4, 4] = 100
    assert_array_equal(drawn, expected)
    full = outlined(np.full((4, 4, 3), 100, np.uint8), np.ones((4, 4), bool))
    assert (full[1:3, 1:3] == 100).all()  # the image's own edge counts as a border
    assert_array_equal(full[0, 0], (255, 140, 0))


def test_differences_are_brightened_and_none_stays_black():
    difference = np.zeros((10, 10, 3), np.uint8)
    assert amplified(difference)[1] == 1.0
    difference[:5] = 10
    brightened, gain = amplified(difference)
    assert gain == 25.5
    assert_array_equal(np.unique(brightened), [0, 255])
