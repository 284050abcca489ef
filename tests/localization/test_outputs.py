"""What localize writes, and what it does with images that it cannot read."""

import json

import numpy as np
import pytest
from PIL import Image

from dlprobe.backbones import load_backbone
from dlprobe.backbones.residual import ResidualBackbone
from dlprobe.errors import DataError, IdentityError, OutputError, ProbeError
from dlprobe.localization import localize, localize_files, overlay, score_map
from dlprobe.probes import Probe, make_card


@pytest.fixture(scope="module")
def backbone():
    return ResidualBackbone(window_px=112)


@pytest.fixture(scope="module")
def probe(backbone):
    rng = np.random.default_rng(3)
    card = make_card(
        model=backbone.spec,
        scheme="autoencoded-pristine",
        objective="dice-batch",
        classes=["INPAINTED"],
        threshold=0.6,
        threshold_policy="best F1 on validation",
        weights="none",
    )
    return Probe(rng.normal(0, 0.05, (1, backbone.spec.width)), np.zeros(1), card)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (130, 170, 3), dtype=np.uint8)).save(path)
    return path


def test_writes_everything_and_says_what_it_is(tmp_path, backbone, probe, image):
    (result,) = localize([image], backbone, probe, tmp_path / "out", stride_px=56)
    found = score_map(np.asarray(Image.open(image)), backbone, probe, stride_px=56)
    scores = np.load(result.folder / "score.npy", allow_pickle=False)
    np.testing.assert_array_equal(scores, found.scores)
    mask = np.asarray(Image.open(result.folder / "mask.png"))
    np.testing.assert_array_equal(mask, np.where(scores >= 0.6, 255, 0))
    sixteen = np.asarray(Image.open(result.folder / "score.png"))
    np.testing.assert_allclose(sixteen / 65535, scores, atol=1e-5)
    assert np.asarray(Image.open(result.folder / "overlay.png")).shape == (130, 170, 3)
    record = json.loads((result.folder / "result.json").read_text())
    assert record["threshold"] == 0.6
    assert record["threshold_policy"] == "best F1 on validation"
    assert record["model_fingerprint"] == backbone.spec.fingerprint
    assert record["probe_sha256"] == probe.sha256
    assert result.image_score == pytest.approx(np.percentile(found.working_scores, 99))
    assert result.area == pytest.approx((scores >= 0.6).mean())


def test_one_bad_image_among_many_is_rejected_and_the_rest_goes_on(tmp_path, backbone, probe, image):
    bad = tmp_path / "bad.png"
    bad.write_bytes(image.read_bytes()[:200])
    good, rejected, missing = localize(
        [image, bad, tmp_path / "none.png"], backbone, probe, tmp_path / "out", stride_px=56
    )
    assert good.folder is not None
    assert rejected.folder is None
    assert "bad.png" in rejected.reason
    assert "none.png" in missing.reason
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["photo"]


def test_nothing_is_written_when_no_image_can_be_read(tmp_path, backbone, probe):
    with pytest.raises(DataError, match=r"none\.png"):
        localize([tmp_path / "none.png"], backbone, probe, tmp_path / "out", stride_px=56)
    assert not (tmp_path / "out").exists()


def test_images_of_one_name_do_not_overwrite_each_other_and_a_second_run_replaces(tmp_path, backbone, probe, image):
    other = tmp_path / "other" / "photo.png"
    other.parent.mkdir()
    Image.open(image).transpose(Image.Transpose.ROTATE_90).save(other)
    for _ in range(2):
        results = localize([image, other], backbone, probe, tmp_path / "out", stride_px=56)
    assert [r.folder.name for r in results] == ["photo", "photo-2"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["photo", "photo-2"]


def test_foreign_folders_are_left_alone(tmp_path, backbone, probe, image):
    foreign = tmp_path / "out" / "photo"
    foreign.mkdir(parents=True)
    (foreign / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no result"):
        localize([image], backbone, probe, tmp_path / "out", stride_px=56)
    assert (foreign / "diary.txt").read_text() == "mine"
    with pytest.raises(OutputError, match="is no folder"):
        localize([image], backbone, probe, image, stride_px=56)


def test_a_threshold_by_hand_is_named_as_such(tmp_path, backbone, probe, image):
    (result,) = localize([image], backbone, probe, tmp_path / "out", threshold=0.25, stride_px=56)
    record = json.loads((result.folder / "result.json").read_text())
    assert (record["threshold"], record["threshold_policy"]) == (0.25, "given by hand")


def test_files_load_the_backbone_that_the_card_names(tmp_path, probe, image, backbone):
    probe.save(tmp_path / "probe.safetensors")
    (result,) = localize_files(tmp_path / "probe.safetensors", [image], tmp_path / "out", stride_px=56)
    found = score_map(np.asarray(Image.open(image)), backbone, probe, stride_px=56)
    np.testing.assert_allclose(np.load(result.folder / "score.npy"), found.scores, atol=1e-6)
    anonymous = Probe(probe.weights, probe.bias, {**probe.card, "model": None, "model_fingerprint": None})
    anonymous.save(tmp_path / "anonymous.safetensors")
    with pytest.raises(ProbeError, match="does not name its backbone"):
        localize_files(tmp_path / "anonymous.safetensors", [image], tmp_path / "out")


def test_the_overlay_tints_by_score_and_draws_the_border():
    pixels = np.full((64, 64, 3), 100, np.uint8)
    scores = np.zeros((64, 64), np.float32)
    mask = np.zeros((64, 64), bool)
    np.testing.assert_array_equal(overlay(pixels, scores, mask), pixels)
    scores[20:40, 20:40] = 1
    mask[20:40, 20:40] = True
    tinted = overlay(pixels, scores, mask)
    assert tinted[30, 30, 0] > 140
    assert tuple(tinted[30, 30]) != (100, 100, 100)
    assert tuple(tinted[19, 30]) == (255, 255, 255)
    assert tuple(tinted[5, 5]) == (100, 100, 100)


def test_other_weights_than_the_probes_are_refused_by_name(tmp_path, image):
    name = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    fitted = load_backbone(name, weights="random:0", window_px=112, layers=(0,))
    card = make_card(
        model=fitted.spec,
        scheme="autoencoded-pristine",
        objective="dice-batch",
        classes=["INPAINTED"],
        threshold=0.5,
        threshold_policy="fixed",
        weights="random:0",
    )
    path = tmp_path / "probe.safetensors"
    Probe(np.ones((1, fitted.spec.width), np.float32), np.zeros(1, np.float32), card).save(path)
    (result,) = localize_files(path, [image], tmp_path / "out", stride_px=112)
    assert json.loads((result.folder / "result.json").read_text())["weights"] == "random:0"
    with pytest.raises(IdentityError, match="weights_sha256"):
        localize_files(path, [image], tmp_path / "other", weights="random:1")
    assert not (tmp_path / "other").exists()
