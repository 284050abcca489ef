"""Images of every kind that users have: odd sizes, depths, colours and files."""

import json
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image

from dlprobe.errors import DataError
from dlprobe.localization import localize


@pytest.fixture
def look(tmp_path, kit):
    """Return what localizes files and gives score, mask and record of each, or the reason of a reject."""
    backbone = kit.Backbone(window_px=112)
    probe = kit.probe(backbone, 1)

    def run(*paths, **options):
        found = []
        for result in localize(paths, backbone, probe, tmp_path / "out", stride_px=56, **options):
            if result.folder is None:
                found.append(result.reason)
                continue
            mask = np.asarray(Image.open(result.folder / "mask.png"))
            assert np.asarray(Image.open(result.folder / "overlay.png")).shape == (*mask.shape, 3)
            record = json.loads((result.folder / "result.json").read_text())
            assert mask.shape == (record["image"]["height"], record["image"]["width"])
            found.append((np.load(result.folder / "score.npy"), mask, record))
        return found

    return run


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (200, 5), (3, 3), (112, 112), (113, 111)])
def test_odd_sizes(look, tmp_path, kit, size):
    path = tmp_path / "odd.png"
    Image.fromarray(kit.photograph(*size, cell=1)).save(path)
    ((scores, mask, record),) = look(path)
    assert scores.shape == mask.shape == size
    assert np.isfinite(scores).all()
    assert min(record["working_size"].values()) >= 112
    assert record["windows_seen"] >= 1


def test_depths_colours_and_frames_are_those_of_the_plain_image(look, tmp_path, kit):
    pixels = kit.photograph(120, 150)
    plain = tmp_path / "plain.png"
    Image.fromarray(pixels).save(plain)
    ((expected, mask, _),) = look(plain)
    others = [tmp_path / name for name in ("deep.png", "alpha.webp", "animated.webp", "turned.png")]
    cv2.imwrite(str(others[0]), pixels[..., ::-1].astype(np.uint16) * 257)
    alpha = np.dstack([pixels, np.full((120, 150), 128, np.uint8)])
    Image.fromarray(alpha).save(others[1], lossless=True, exact=True)
    frames = [Image.fromarray(np.roll(pixels, 10 * i, axis=1)) for i in range(3)]
    frames[0].save(others[2], save_all=True, append_images=frames[1:], lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(np.rot90(pixels)).save(others[3], exif=exif)
    for path, (scores, marked, _) in zip(others, look(*others), strict=True):
        np.testing.assert_array_equal(scores, expected, err_msg=path.name)
        np.testing.assert_array_equal(marked, mask, err_msg=path.name)


def test_cmyk_and_grey_are_looked_at_as_rgb(look, tmp_path, kit):
    image = Image.fromarray(kit.photograph(120, 150))
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("L").convert("RGB").save(tmp_path / "spread.png")
    cmyk, grey, spread = look(*(tmp_path / name for name in ("cmyk.tif", "grey.png", "spread.png")))
    assert cmyk[0].shape == (120, 150)
    np.testing.assert_array_equal(grey[0], spread[0])


def test_what_cannot_be_read_is_a_reject_with_a_reason(look, tmp_path, kit):
    good = tmp_path / "good.png"
    Image.fromarray(kit.photograph(112, 112)).save(good)
    Image.fromarray(kit.photograph(400, 400)).save(tmp_path / "large.png")
    Image.fromarray(np.zeros((112, 112), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.zeros((1, 110_000, 3), np.uint8)).save(tmp_path / "line.png")
    (tmp_path / "torn.png").write_bytes(good.read_bytes()[:-500])
    (tmp_path / "text.png").write_text("no image")
    names = ("torn.png", "text.png", "float.tif", "large.png", "line.png", "none.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of damaged files is silenced by the command line
        kept, *reasons = look(good, *(tmp_path / name for name in names), max_pixels=120_000)
    assert kept[1].shape == (112, 112)
    words = ("torn.png", "text.png", "what white is", "raise the limit", "less narrow", "no image at")
    for reason, word in zip(reasons, words, strict=True):
        assert word in reason
    with pytest.raises(DataError, match=r"text\.png"):
        look(tmp_path / "text.png")
